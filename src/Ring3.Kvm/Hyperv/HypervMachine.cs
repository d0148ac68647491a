namespace Ring3.Kvm;

/// <summary>What a VM has of Hyper-V, besides its vCPUs.</summary>
internal sealed class HypervMachine
{
    /// <summary>HV_X64_MSR_GUEST_OS_ID: who the guest says it is. 0: it has not said.</summary>
    public ulong GuestOsId { get; set; }
}
