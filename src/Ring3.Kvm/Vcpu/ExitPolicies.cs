using static Ring3.Abi.KvmApi;

// SAFETY: _s lives as long as the vCPU.
namespace Ring3.Kvm;

/// <summary>What the processor is told of the exits that exist because the client has asked for them on the VM: bus locks, windows for events that never open, addresses beyond the guest's MAXPHYADDR.</summary>
internal sealed unsafe class ExitPolicies(VcpuCore core) : VcpuPart(core)
{
    /// <summary>Gives the processor what the client has enabled on the VM.</summary>
    public void Apply()
    {
        _s->BusLockExits = Vm.BusLockExits ? (byte)1 : (byte)0;
        _s->NotifyExits = (Vm.NotifyFlags & KVM_X86_NOTIFY_VMEXIT_ENABLED) != 0 ? (byte)1 : (byte)0;
        _s->NotifyWindow = Vm.NotifyWindow;
        UpdateWideAddresses();
    }

    /// <summary>
    /// GUEST_MAXPHYADDR &lt; HOST_MAXPHYADDR. The guest's page walk is made with its own MAXPHYADDR, so an address beyond it is a page fault for a reserved bit, whatever the instruction. KVM has to emulate the instruction
    /// for that where the hardware's MAXPHYADDR is larger; a client that wants to know what KVM's emulator cannot do is told here as well.
    /// </summary>
    public void UpdateWideAddresses() =>
        _s->InterceptReservedFaults = Vm.ExitsOnEmulationFailure && Cpu.CpuidFeatures.PhysicalAddressBits < HostPhysicalAddressBits ? (byte)1 : (byte)0;

    /// <summary>What the tables can address: bits 51:12 of an entry.</summary>
    private const int HostPhysicalAddressBits = 52;
}
