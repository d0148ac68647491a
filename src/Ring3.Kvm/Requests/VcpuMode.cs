namespace Ring3.Kvm;

/// <summary>Where a vCPU's thread is, as other threads need to know it. KVM: vcpu-requests.rst, "VCPU Mode".</summary>
internal enum VcpuMode
{
    /// <summary>Not in the guest: it will look at its requests before it enters.</summary>
    OutsideGuestMode = 0,
    /// <summary>In the guest, or about to be: it has looked at its requests already.</summary>
    InGuestMode = 1,
    /// <summary>In the guest, and somebody has kicked it: no second kick is needed.</summary>
    ExitingGuestMode = 2,
    /// <summary>Outside the guest, and reading tables that a waiting requester wants to free.</summary>
    ReadingShadowPageTables = 3,
}
