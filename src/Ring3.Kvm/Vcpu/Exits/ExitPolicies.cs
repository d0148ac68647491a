using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: _s and KvmRun live as long as the vCPU.
namespace Ring3.Kvm;

/// <summary>
/// Exits that exist because the client has asked for them on the VM: bus locks, windows for events that never open, addresses beyond the guest's MAXPHYADDR.
/// </summary>
internal sealed class ExitPolicies(VcpuCore core) : VcpuPart(core)
{
    /// <summary>Gives the processor what the client has enabled on the VM.</summary>
    public unsafe void Apply()
    {
        _s->BusLockExits = Vm.Settings.BusLockExits ? (byte)1 : (byte)0;
        _s->NotifyExits = (Vm.Settings.NotifyFlags & KVM_X86_NOTIFY_VMEXIT_ENABLED) != 0 ? (byte)1 : (byte)0;
        _s->NotifyWindow = Vm.Settings.NotifyWindow;
        UpdateWideAddresses();
    }

    /// <summary>A locked access across a cache line. The instruction has retired; the flag is set in <see cref="AddRunFlags"/>.</summary>
    public unsafe int ExitBusLock()
    {
        _s->BusLockSeen = 1;
        KvmRun->exit_reason = KVM_EXIT_X86_BUS_LOCK;
        return ToClient;
    }

    /// <summary>KVM_RUN returns. A bus lock may coincide with another exit: the flag is what tells, not the reason.</summary>
    public unsafe void AddRunFlags()
    {
        if (_s->InSmm != 0)
            KvmRun->flags |= KVM_RUN_X86_SMM;
        if (_s->BusLockSeen != 0)
            KvmRun->flags |= KVM_RUN_X86_BUS_LOCK;
        _s->BusLockSeen = 0;
    }

    /// <summary>
    /// No window for events has opened for too long. KVM_NOTIFY_CONTEXT_INVALID never applies: the state of a software processor is exact at every exit.
    /// </summary>
    public unsafe int HandleNotify()
    {
        Stats.notify_window_exits++;
        if ((Vm.Settings.NotifyFlags & KVM_X86_NOTIFY_VMEXIT_USER) == 0)
            return KeepRunning;
        KvmRun->exit_reason = KVM_EXIT_NOTIFY;
        KvmRun->notify.flags = 0;
        return ToClient;
    }

    /// <summary>
    /// GUEST_MAXPHYADDR &lt; HOST_MAXPHYADDR. The guest's page walk is made with its own MAXPHYADDR, so an address beyond it is a page fault for a reserved
    /// bit, whatever the instruction. KVM has to emulate the instruction for that where the hardware's MAXPHYADDR is larger; a client that wants to know what
    /// KVM's emulator cannot do is told here as well.
    /// </summary>
    public unsafe void UpdateWideAddresses()
    {
        bool isNarrow = Cpu.CpuidFeatures.PhysicalAddressBits < HostPhysicalAddressBits;
        _s->InterceptReservedFaults = Vm.Settings.ExitsOnEmulationFailure && isNarrow ? (byte)1 : (byte)0;
    }

    /// <summary>What the tables can address: bits 51:12 of an entry.</summary>
    private const int HostPhysicalAddressBits = 52;
}
