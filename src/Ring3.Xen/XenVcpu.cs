using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Xen;

/// <summary>
/// The Xen side of a virtual processor. Members are for the thread that runs the vCPU, or any thread while it does not run; those that say so are for any
/// thread.
/// </summary>
public sealed partial class XenVcpu
{
    private readonly XenVm _vm;
    private ulong _pendingSel;
    private byte _upcallVector;
    private uint _xenId;

    public XenVcpu(XenVm vm, IXenProcessor processor)
    {
        _vm = vm;
        Processor = processor;
        _xenId = (uint)processor.Index;
        VcpuInfo = new GfnToPfnCache(vm.Slots);
        TimeInfo = new GfnToPfnCache(vm.Slots);
        FifoControl = new GfnToPfnCache(vm.Slots);
        Runstate = new Runstate(vm);
    }

    public IXenProcessor Processor { get; }
    internal int Index => Processor.Index;
    public Runstate Runstate { get; }
    internal GfnToPfnCache VcpuInfo { get; }
    internal GfnToPfnCache TimeInfo { get; }
    internal GfnToPfnCache FifoControl { get; }

    /// <summary>The guest's number of this vCPU. Neither KVM's id nor its index; only the client knows it.</summary>
    public uint XenId => Volatile.Read(ref _xenId);

    /// <summary>Vector of this vCPU's own upcall through its local APIC; 0: none.</summary>
    public byte UpcallVector => Volatile.Read(ref _upcallVector);

    /// <summary>Events are recorded that the vCPU's own thread has to write to vcpu_info. Any thread.</summary>
    public bool HasShadowEvents => Volatile.Read(ref _pendingSel) != 0;

    /// <summary>The shadow itself, for tests.</summary>
    internal ref ulong Shadow => ref _pendingSel;

    // ---- Delivery ----

    /// <summary>
    /// Sets a bit of evtchn_pending_sel, in the guest's vcpu_info or, when that cannot be reached without waiting, in the shadow. Any thread.
    /// </summary>
    /// <returns>True if the bit was clear: the vCPU has to be told.</returns>
    internal bool MarkPending(int selector, bool longMode)
    {
        ulong bit = 1UL << selector;
        if (XenVm.TryAcquire(VcpuInfo, XenAbi.VcpuInfo.Size))
        {
            bool done = SetGuestSelector(bit, longMode, out bool newly);
            VcpuInfo.Lock.ExitRead();
            if (done)
                return newly;
        }
        // PAIRS-WITH: MergePendingEvents, which clears exactly the bits it has written to the guest.
        return (Interlocked.Or(ref _pendingSel, bit) & bit) == 0;
    }

    /// <summary>Sets evtchn_upcall_pending for the FIFO ABI, which has no selector. Any thread.</summary>
    /// <returns>True if it was clear: the vCPU has to be told.</returns>
    internal bool MarkUpcall()
    {
        if (XenVm.TryAcquire(VcpuInfo, XenAbi.VcpuInfo.Size))
        {
            bool done = UserCopy.CompareExchange(VcpuInfo.Hva + XenAbi.VcpuInfo.UpcallPending, (byte)1, (byte)0, out byte old);
            VcpuInfo.Lock.ExitRead();
            if (done)
                return old == 0;
        }
        return (Interlocked.Or(ref _pendingSel, 1) & 1) == 0;
    }

    /// <summary>Caller holds VcpuInfo's lock after a positive check.</summary>
    private bool SetGuestSelector(ulong bits, bool longMode, out bool newly)
    {
        ulong hva = VcpuInfo.Hva;
        ulong old;
        if (longMode)
        {
            if (!GuestBits.Or64(hva + XenAbi.VcpuInfo.PendingSel64, bits, out old))
            {
                newly = false;
                return false;
            }
        }
        else
        {
            newly = false;
            if (!GuestBits.Or32(hva + XenAbi.VcpuInfo.PendingSel32, (uint)bits, out uint old32))
                return false;
            old = old32;
            bits = (uint)bits;
        }
        newly = (old & bits) != bits;
        // After the selector: a guest that finds the flag finds the bit. PAIRS-WITH: the guest clears the flag and then takes the selector.
        return !newly || UserCopy.TryWrite1(hva + XenAbi.VcpuInfo.UpcallPending, 1);
    }

    /// <summary>Tells the vCPU of new events: by its own vector, or by a kick that makes it look at vcpu_info. Any thread.</summary>
    internal void Notify()
    {
        byte vector = UpcallVector;
        // With events in the shadow the vector would come too early: the merge sends it.
        if (vector != 0 && !HasShadowEvents)
            Processor.InjectVector(vector);
        else
            Processor.KickForEvents();
    }

    /// <summary>Moves the shadow to the guest's vcpu_info. Owner thread, before an entry; may wait for the page.</summary>
    public void MergePendingEvents()
    {
        ulong bits = Volatile.Read(ref _pendingSel);
        if (bits == 0 || XenVm.Acquire(VcpuInfo, XenAbi.VcpuInfo.Size) != 0)
            return;
        bool longMode = _vm.LongMode;
        if (!longMode)
            bits = (uint)bits;
        bool done = MergeIntoGuest(bits, longMode);
        VcpuInfo.Lock.ExitRead();
        if (!done)
            return;
        // Only now, and only these bits: what was added meanwhile stays, and a failed write has lost nothing.
        Interlocked.And(ref _pendingSel, ~bits);
        if (UpcallVector is not 0 and var vector)
            Processor.InjectVector(vector);
    }

    private bool MergeIntoGuest(ulong bits, bool longMode)
    {
        ulong hva = VcpuInfo.Hva;
        bool ok = longMode ? GuestBits.Or64(hva + XenAbi.VcpuInfo.PendingSel64, bits, out _)
            : GuestBits.Or32(hva + XenAbi.VcpuInfo.PendingSel32, (uint)bits, out _);
        return ok && UserCopy.TryWrite1(hva + XenAbi.VcpuInfo.UpcallPending, 1);
    }

    /// <summary>
    /// Whether the VM's upcall vector is to be injected: the guest's evtchn_upcall_pending is set.
    /// </summary>
    /// <param name="mayWait">False while the caller prepares to sleep: then "true" may also mean "ask again when you can wait".</param>
    public bool HasInterrupt(bool mayWait)
    {
        if (_vm.UpcallVector == 0 || !VcpuInfo.IsActive)
            return false;
        if (mayWait)
        {
            // A mapping that the client has broken gives no interrupts.
            if (XenVm.Acquire(VcpuInfo, XenAbi.VcpuInfo.Size) != 0)
                return false;
        }
        else if (!XenVm.TryAcquire(VcpuInfo, XenAbi.VcpuInfo.Size))
            return true;
        bool ok = UserCopy.TryRead1(VcpuInfo.Hva + XenAbi.VcpuInfo.UpcallPending, out byte pending);
        VcpuInfo.Lock.ExitRead();
        return ok && pending != 0;
    }

    /// <summary>A reason to leave HLT. Never waits.</summary>
    public bool HasPendingWork => HasShadowEvents || HasPendingTimer;

    /// <summary>The local APIC was switched on by software: an upcall that came before was not accepted.</summary>
    public void LapicEnabled()
    {
        if (UpcallVector is not 0 and var vector && VcpuInfo.IsActive && XenVm.TryAcquire(VcpuInfo, XenAbi.VcpuInfo.Size))
        {
            bool ok = UserCopy.TryRead1(VcpuInfo.Hva + XenAbi.VcpuInfo.UpcallPending, out byte pending);
            VcpuInfo.Lock.ExitRead();
            if (ok && pending != 0)
                Processor.InjectVector(vector);
        }
    }

    // ---- Clocks ----

    /// <summary>Writes the vCPU's clock to the pages that the client registered. Owner thread.</summary>
    public void WriteClocks(pvclock_vcpu_time_info clock)
    {
        if (_vm.PvclockTscUnstable)
            clock.flags &= unchecked((byte)~KvmPara.PVCLOCK_TSC_STABLE_BIT);
        if (VcpuInfo.IsActive && XenVm.Acquire(VcpuInfo, XenAbi.VcpuInfo.Size) == 0)
        {
            WriteClock(VcpuInfo.Hva + XenAbi.VcpuInfo.Time, clock);
            VcpuInfo.Lock.ExitRead();
        }
        const uint Length = 32;
        if (TimeInfo.IsActive && XenVm.Acquire(TimeInfo, Length) == 0)
        {
            WriteClock(TimeInfo.Hva, clock);
            TimeInfo.MarkDirty(Length);
            TimeInfo.Lock.ExitRead();
        }
    }

    private static unsafe void WriteClock(ulong hva, pvclock_vcpu_time_info clock)
    {
        if (!UserCopy.TryRead4(hva, out uint version) || !UserCopy.TryRead1(hva + 29, out byte flags))
            return;
        // The guest clears this one itself when it has seen it.
        clock.flags |= (byte)(flags & KvmPara.PVCLOCK_GUEST_STOPPED);
        version = version + 1 | 1;
        // PAIRS-WITH: the guest's read of version, contents, version (pvclock ABI). Stores of x86 become visible in their order.
        if (!UserCopy.TryWrite4(hva, version))
            return;
        // SAFETY: the copy starts behind the version, inside the local.
        if (UserCopy.TryWrite(hva + 8, (byte*)&clock + 8, (nuint)sizeof(pvclock_vcpu_time_info) - 8))
            _ = UserCopy.TryWrite4(hva, version + 1);
    }

    /// <summary>Stops timers and forgets the guest's memory. No thread uses the vCPU any more.</summary>
    public void Dispose()
    {
        StopTimer();
        VcpuInfo.Deactivate();
        TimeInfo.Deactivate();
        FifoControl.Deactivate();
        Runstate.Dispose();
    }
}
