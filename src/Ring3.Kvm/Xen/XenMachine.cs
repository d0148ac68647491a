using Ring3.Host;
using Ring3.Sync;
using Ring3.Xen;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>The VM as Ring3.Xen needs it.</summary>
internal sealed class XenMachine(VmCore core, VmMemory memory, VmClock clock) : IXenMachine
{
    /// <summary>What KVM_CHECK_EXTENSION answers for KVM_CAP_XEN_HVM.</summary>
    public const uint Features = KVM_XEN_HVM_CONFIG_HYPERCALL_MSR | KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_SHARED_INFO
        | KVM_XEN_HVM_CONFIG_RUNSTATE | KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND | KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG
        | KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE | KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA;

    private readonly RankedLock _making = new(LockRank.XenMachine);
    private XenVm? _side;
    private DeferredDelivery? _delivery;

    /// <summary>The Xen side, made on first use. Any thread.</summary>
    public XenVm Side
    {
        get
        {
            if (Volatile.Read(ref _side) is { } side)
                return side;
            using (_making.Enter())
                return _side ??= new XenVm(memory.Slots, this);
        }
    }

    /// <summary>The Xen side if anybody has asked for it.</summary>
    public XenVm? SideOrNull => Volatile.Read(ref _side);

    public void Dispose() => _side?.Dispose();

    // ---- For Ring3.Xen ----

    public long ClockNs => clock.NowNs;

    public long WallClockEpochNs => HostClock.RealtimeNs() - clock.NowNs;

    public void RequestClockUpdate() => core.Vcpus.Make(VcpuRequest.ClockUpdate);

    public XenVcpu? FindVcpu(uint kvmId) => core.Vcpus.Find(kvmId)?.Xen;

    public XenVcpu? VcpuAt(int index) => core.Vcpus.All is var all && (uint)index < (uint)all.Length ? all[index].Xen : null;

    public void QueueDeferred() => core.Work.Queue(_delivery ??= new DeferredDelivery(Side));

    public void FlushDeferred()
    {
        if (Volatile.Read(ref _delivery) is not null)
            core.Work.Flush();
    }

    /// <summary>Events whose page was not at hand, delivered where waiting is allowed.</summary>
    private sealed class DeferredDelivery(XenVm xen) : WorkItem
    {
        protected override void Run() => xen.DeliverDeferred();
    }
}
