using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;

// SAFETY: pointers are to the stack; guest memory is only touched through UserCopy.
namespace Ring3.Xen;

/// <summary>
/// In which of four states a vCPU is, how long it has been in each, and the guest's copy of that. INVARIANT: the four times add up to the entry time.
/// Owner thread of the vCPU.
/// </summary>
public sealed class Runstate(XenVm vm)
{
    private const uint PageBytes = 4096;
    private readonly GfnToPfnCache _first = new(vm.Slots), _second = new(vm.Slots);
    private readonly ulong[] _times = new ulong[XenAbi.RunstateInfo.Times];
    private ulong _entryTime;
    private long _lastRunDelay;

    /// <summary>RUNSTATE_*.</summary>
    public int State { get; private set; }

    internal bool IsActive => _first.IsActive;
    internal ulong Gpa => _first.Gpa;

    internal kvm_xen_vcpu_attr.runstate_t Data => new()
    {
        state = (ulong)State, state_entry_time = _entryTime, time_running = _times[0], time_runnable = _times[1], time_blocked = _times[2],
        time_offline = _times[3],
    };

    /// <summary>The vCPU has moved to another host thread, whose waiting time starts elsewhere.</summary>
    public void ThreadChanged(long runDelayNs) => _lastRunDelay = runDelayNs;

    /// <summary>
    /// Accounts the time up to <paramref name="now"/> (kvmclock) and enters a state. Time that the thread waited for a processor while "running" was
    /// "runnable".
    /// A vCPU that becomes runnable is losing its processor: then the guest's copy is written only if that needs no waiting.
    /// </summary>
    internal void Update(int state, ulong now, long runDelayNs)
    {
        if (_entryTime == 0)
            State = XenAbi.RUNSTATE_offline;
        ulong delta = now > _entryTime ? now - _entryTime : 0;
        if (State == XenAbi.RUNSTATE_running)
        {
            ulong stolen = Math.Min((ulong)Math.Max(0, runDelayNs - _lastRunDelay), delta);
            _times[XenAbi.RUNSTATE_runnable] += stolen;
            _times[State] += delta - stolen;
        }
        else
            _times[State] += delta;
        _lastRunDelay = runDelayNs;
        State = state;
        _entryTime += delta;
        if (_first.IsActive)
            WriteGuest(state == XenAbi.RUNSTATE_runnable);
    }

    /// <summary>KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR: any byte alignment, also across a page.</summary>
    internal int SetAddress(ulong gpa)
    {
        if (gpa == KvmApi.KVM_XEN_INVALID_GPA)
        {
            Dispose();
            return 0;
        }
        uint size = (uint)Layout().Size, inFirst = PageBytes - (uint)(gpa & (PageBytes - 1));
        int r = _first.Activate(gpa, inFirst);
        if (r == 0 && inFirst < size)
            r = _second.Activate(gpa + inFirst, size - inFirst);
        else if (r == 0)
            _second.Deactivate();
        if (r != 0)
        {
            Dispose();
            return r;
        }
        WriteGuest(false);
        return 0;
    }

    private static bool AddsUp(in kvm_xen_vcpu_attr.runstate_t d) => d.state_entry_time == d.time_running + d.time_runnable + d.time_blocked + d.time_offline;

    /// <summary>KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA.</summary>
    internal int SetData(in kvm_xen_vcpu_attr.runstate_t d, ulong now, long runDelayNs)
    {
        if (d.state > XenAbi.RUNSTATE_offline || !AddsUp(d) || now < d.state_entry_time)
            return -Errno.EINVAL;
        State = (int)d.state;
        _entryTime = d.state_entry_time;
        (_times[0], _times[1], _times[2], _times[3]) = (d.time_running, d.time_runnable, d.time_blocked, d.time_offline);
        _lastRunDelay = runDelayNs;
        return 0;
    }

    /// <summary>KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST: adds (signed) times; a state of -1 leaves the state.</summary>
    internal int Adjust(in kvm_xen_vcpu_attr.runstate_t d, ulong now, long runDelayNs)
    {
        if (d.state > XenAbi.RUNSTATE_offline && d.state != ulong.MaxValue || !AddsUp(d) || now < _entryTime + d.state_entry_time)
            return -Errno.EINVAL;
        _entryTime += d.state_entry_time;
        _times[0] += d.time_running;
        _times[1] += d.time_runnable;
        _times[2] += d.time_blocked;
        _times[3] += d.time_offline;
        if (d.state <= XenAbi.RUNSTATE_offline)
            Update((int)d.state, now, runDelayNs);
        else if (_first.IsActive)
            WriteGuest(false);
        return 0;
    }

    private (int Size, int EntryTime) Layout() => vm.LongMode
        ? (XenAbi.RunstateInfo.Size64, XenAbi.RunstateInfo.EntryTime64)
        : (XenAbi.RunstateInfo.Size32, XenAbi.RunstateInfo.EntryTime32);

    /// <summary>Writes the guest's copy. With <paramref name="atomic"/> it gives up rather than wait: the next update brings it up to date.</summary>
    private void WriteGuest(bool atomic)
    {
        var (size, entryOffset) = Layout();
        while (true)
        {
            uint inFirst = Math.Min((uint)size, PageBytes - (uint)(_first.Gpa & (PageBytes - 1))), inSecond = (uint)size - inFirst;
            if (!Acquire(_first, inFirst, atomic))
                return;
            // Order of the locks: first page, then second; nothing else holds two.
            bool both = inSecond == 0 || XenVm.TryAcquire(_second, inSecond);
            if (both)
                Copy(size, entryOffset, inFirst);
            if (both && inSecond != 0)
            {
                _second.MarkDirty(inSecond);
                _second.Lock.ExitRead();
            }
            if (both)
                _first.MarkDirty(inFirst);
            ulong next = _first.Gpa + inFirst;
            _first.Lock.ExitRead();
            if (both || atomic)
                return;
            // The guest may have gone from 32 to 64 bits since it registered the area, which then reaches a page that nobody has translated yet.
            if (_second.Activate(next, inSecond) != 0)
                return;
        }
    }

    private static bool Acquire(GfnToPfnCache gpc, uint length, bool atomic) => atomic ? XenVm.TryAcquire(gpc, length) : XenVm.Acquire(gpc, length) == 0;

    /// <summary>Caller holds the locks of all pages of the area.</summary>
    private unsafe void Copy(int size, int entryOffset, uint inFirst)
    {
        byte* image = stackalloc byte[XenAbi.RunstateInfo.Size64];
        bool flag = vm.RunstateUpdateFlag;
        *(ulong*)image = 0;
        *(int*)image = State;
        *(ulong*)(image + entryOffset) = flag ? _entryTime | XenAbi.XEN_RUNSTATE_UPDATE : _entryTime;
        for (int i = 0; i < XenAbi.RunstateInfo.Times; i++)
            *(ulong*)(image + entryOffset + 8 + i * 8) = _times[i];
        // The flag is bit 7 of the entry time's last byte. It is written as that byte alone: the field may be unaligned, and the byte on the second page.
        uint flagAt = (uint)entryOffset + 7;
        ulong flagHva = flagAt < inFirst ? _first.Hva + flagAt : _second.Hva + (flagAt - inFirst);
        // PAIRS-WITH: the guest's snapshot: entry time, contents, entry time again; equal and without the flag. x86 keeps stores in order; each call below is
        // one.
        if (flag && !UserCopy.TryWrite1(flagHva, (byte)((_entryTime | XenAbi.XEN_RUNSTATE_UPDATE) >> 56)))
            return;
        if (inFirst == size)
            _ = StoreFields(image, entryOffset);
        else if (UserCopy.TryWrite(_first.Hva, image, inFirst))
            _ = UserCopy.TryWrite(_second.Hva, image + inFirst, (nuint)size - inFirst);
        if (flag)
            _ = UserCopy.TryWrite1(flagHva, (byte)(_entryTime >> 56 & 0x7f));
    }

    private unsafe bool StoreFields(byte* image, int entryOffset)
    {
        ulong hva = _first.Hva;
        bool ok = UserCopy.TryWrite4(hva, (uint)State);
        for (int at = entryOffset; at < entryOffset + 40; at += 8)
            ok = ok && UserCopy.TryWrite8(hva + (ulong)at, *(ulong*)(image + at));
        return ok;
    }

    internal void Dispose()
    {
        _first.Deactivate();
        _second.Deactivate();
    }
}
