using Ring3.Abi;
using Ring3.Xen;

namespace Ring3.Kvm;

/// <summary>
/// The vCPU of a Xen guest, as the run loop meets it: events and run state around an entry, and the upcall as an interrupt. What Ring3.Xen asks of the vCPU is
/// <see cref="XenProcessor"/>.
/// </summary>
internal sealed class XenPort(VcpuCore core, RunDelay runDelay) : VcpuPart(core)
{
    private XenVcpu? _xen;
    private bool _lapicWasOn;

    /// <summary>The Xen side, or null while nobody has asked for it.</summary>
    public XenVcpu? Side => Volatile.Read(ref _xen);

    /// <summary>The Xen side, made on first use. Any thread.</summary>
    public XenVcpu SideFor(IXenProcessor processor)
    {
        if (Volatile.Read(ref _xen) is { } xen)
            return xen;
        var created = new XenVcpu(Vm.Xen.Side, processor);
        created.Runstate.ThreadChanged(runDelay.NowNs);
        // First the mark: who finds the Xen side may have events for an entry that comes at once.
        _core.Work.Xen = true;
        return Interlocked.CompareExchange(ref _xen, created, null) ?? created;
    }

    /// <summary>The vCPU has come to another thread.</summary>
    public void ThreadChanged() => _xen?.Runstate.ThreadChanged(runDelay.LastNs);

    /// <summary>
    /// Before an entry: what other threads have left in the shadow goes to the guest, and the upcall is considered. True: there is one to deliver.
    /// </summary>
    public bool Prepare(XenVcpu xen)
    {
        if (xen.HasShadowEvents)
            xen.MergePendingEvents();
        if (xen.HasPendingTimer)
            xen.InjectPendingTimer();
        if (_core.Arrives)
        {
            _core.Arrives = false;
            if (runDelay.Use())
                xen.Runstate.ThreadChanged(runDelay.LastNs);
            if (Vm.Xen.Side.IsEnabled)
                xen.UpdateRunstate(XenAbi.RUNSTATE_running);
        }
        if (Lapic is null)
            return false;
        bool on = Lapic.SoftwareEnabled;
        if (on && !_lapicWasOn)
            xen.LapicEnabled();
        _lapicWasOn = on;
        return xen.HasInterrupt(mayWait: true);
    }

    /// <summary>An upcall waits to be delivered by its vector.</summary>
    /// <param name="mayWait">The caller may wait for the page in which the guest masks upcalls.</param>
    public bool HasInterrupt(bool mayWait) => _xen is { } xen && Lapic is not null && xen.HasInterrupt(mayWait);

    public void Dispose() => _xen?.Dispose();
}
