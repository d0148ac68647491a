using Ring3.Abi;
using Ring3.Arch;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs).
namespace Ring3.Kvm;

// Exits that exist because the client asked for them: bus locks, windows for events that never open, addresses beyond the guest's MAXPHYADDR.
public sealed unsafe partial class Vcpu
{
    /// <summary>Gives the processor what the client has enabled on the VM.</summary>
    internal void ApplyExitPolicies()
    {
        _s->BusLockExits = Vm.BusLockExits ? (byte)1 : (byte)0;
        _s->NotifyExits = (Vm.NotifyFlags & KVM_X86_NOTIFY_VMEXIT_ENABLED) != 0 ? (byte)1 : (byte)0;
        _s->NotifyWindow = Vm.NotifyWindow;
        UpdateWideAddresses();
    }

    // ---- Bus locks ----

    /// <summary>The instruction has retired; the flag is set in <see cref="AddRunFlags"/>.</summary>
    private int ExitBusLock()
    {
        _s->BusLockSeen = 1;
        KvmRun->exit_reason = KVM_EXIT_X86_BUS_LOCK;
        return ToClient;
    }

    /// <summary>A bus lock may coincide with another exit: the flag is what tells, not the reason.</summary>
    private void AddRunFlags()
    {
        if (InSmm)
            KvmRun->flags |= KVM_RUN_X86_SMM;
        if (_s->BusLockSeen != 0)
            KvmRun->flags |= KVM_RUN_X86_BUS_LOCK;
        _s->BusLockSeen = 0;
    }

    // ---- No window for events ----

    /// <summary>KVM_NOTIFY_CONTEXT_INVALID never applies: the state of a software processor is exact at every exit.</summary>
    private int HandleNotify()
    {
        Stats.notify_window_exits++;
        if ((Vm.NotifyFlags & KVM_X86_NOTIFY_VMEXIT_USER) == 0)
            return KeepRunning;
        KvmRun->exit_reason = KVM_EXIT_NOTIFY;
        KvmRun->notify.flags = 0;
        return ToClient;
    }

    // ---- GUEST_MAXPHYADDR < HOST_MAXPHYADDR ----

    /// <summary>
    /// The guest's page walk is made with its own MAXPHYADDR, so an address beyond it is a page fault for a reserved bit, whatever the instruction. KVM has to emulate the instruction for that where the hardware's MAXPHYADDR is larger; a client
    /// that wants to know what KVM's emulator cannot do is told here as well.
    /// </summary>
    private void UpdateWideAddresses() => _s->InterceptReservedFaults = Vm.ExitsOnEmulationFailure && Cpu.CpuidFeatures.PhysicalAddressBits < HostPhysicalAddressBits ? (byte)1 : (byte)0;

    /// <summary>What the tables can address: bits 51:12 of an entry.</summary>
    private const int HostPhysicalAddressBits = 52;
}
