using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Memory;

/// <summary>
/// A cached translation of a piece of one guest page, for structures that the hypervisor writes often and from contexts that cannot wait (event channels, run
/// states, clocks).
/// </summary>
/// <remarks>
/// <para>Use. <c>cache.Lock.EnterRead(); while (!cache.Check(length)) { ExitRead; if (cache.Refresh(length) != 0) fail; EnterRead }</c>, then access
/// <see cref="Pointer"/>, then <see cref="MarkDirty"/>, then ExitRead. A context that cannot wait uses <see cref="MmuLock.TryEnterRead"/>, and when
/// <see cref="Check"/> fails hands the work to a thread that may refresh.</para>
/// <para>While a reader holds <see cref="Lock"/> with a positive <see cref="Check"/> the memory stays: the notifier invalidates under the write side, before
/// the host's mapping changes.
/// A reader must not take mmu_lock or the slots lock, nor wait for a vCPU.</para>
/// </remarks>
public sealed class GfnToPfnCache : IInvalidatedByHva
{
    /// <summary>"No gpa": the cache was activated by host address.</summary>
    public const ulong InvalidGpa = ulong.MaxValue;

    private readonly MemorySlots _slots;
    private readonly int _asId;
    private readonly FutexMutex _refreshLock = new(LockRank.GpcRefresh);
    private ulong _generation;
    private Memslot? _slot;
    private bool _active, _valid;

    public GfnToPfnCache(MemorySlots slots, int asId = 0)
    {
        _slots = slots;
        _asId = asId;
    }

    /// <summary>Read side: use of the pointer. Write side: invalidation and refresh.</summary>
    public MmuLock Lock { get; } = new(LockRank.Gpc);

    /// <summary>Guest-physical address in bytes, or <see cref="InvalidGpa"/>.</summary>
    public ulong Gpa { get; private set; } = InvalidGpa;

    /// <summary>Host virtual address of the first byte. Meaningful under <see cref="Lock"/> after a positive <see cref="Check"/>.</summary>
    public ulong Hva { get; private set; }

    public bool IsActive => Volatile.Read(ref _active);

    /// <summary>Starts caching [gpa, gpa + length), which must not cross a page.</summary>
    /// <returns>0, -EINVAL for a range that crosses a page, -EFAULT without usable memory.</returns>
    public int Activate(ulong gpa, uint length) => Activate(gpa, 0, length);

    /// <summary>Starts caching host memory, whatever slot it is in, if any. Otherwise as <see cref="Activate(ulong, uint)"/>.</summary>
    public int ActivateHva(ulong hva, uint length) => Activate(InvalidGpa, hva, length);

    private int Activate(ulong gpa, ulong hva, uint length)
    {
        using var _ = _refreshLock.Enter();
        if (!_active)
        {
            _slots.Notifier.AddCache(this);
            Lock.EnterWrite();
            Volatile.Write(ref _active, true);
            Lock.ExitWrite();
        }
        return RefreshLocked(gpa, hva, length);
    }

    /// <summary>True if the pointer may be used for <paramref name="length"/> bytes. Caller holds <see cref="Lock"/>.</summary>
    public bool Check(uint length)
    {
        Lock.AssertHeld();
        if (!_active || !_valid)
            return false;
        if (Gpa != InvalidGpa && _generation != _slots.Generation)
            return false;
        return (Hva & Page.OffsetMask) + length <= Page.Size;
    }

    /// <summary>Translates again. May wait for an invalidation to end. Caller holds no lock of the VM and is in no RCU section.</summary>
    /// <returns>0, -EINVAL if not active or the range crosses a page, -EFAULT without usable memory.</returns>
    public int Refresh(uint length)
    {
        using var _ = _refreshLock.Enter();
        if (!_active)
            return -Errno.EINVAL;
        return RefreshLocked(Gpa, Hva, length);
    }

    private int RefreshLocked(ulong gpa, ulong hva, uint length)
    {
        _refreshLock.AssertHeld();
        if (((gpa == InvalidGpa ? hva : gpa) & Page.OffsetMask) + length > Page.Size)
            return -Errno.EINVAL;
        var backoff = new Backoff();
        while (true)
        {
            // The order matters: what is noted first is compared last, under the write lock.
            ulong seq = _slots.Notifier.InvalidateSeq;
            ulong generation = _slots.Generation;
            Memslot? slot = null;
            ulong found = hva;
            if (gpa != InvalidGpa && !Find(gpa, out slot, out found))
            {
                SetInvalid(gpa);
                return -Errno.EFAULT;
            }
            // As a fault of the kernel's own would: memory that is not there or may not be written is no translation. After the notes above, so that a change
            // behind our back makes another round.
            bool usable = UserCopy.ProbeWrite(found);
            if (usable)
                _slots.Residency?.Touched(found, 1);
            Lock.EnterWrite();
            bool stale = _slots.Notifier.CacheNeedsRetry(seq) || gpa != InvalidGpa && _slots.Generation != generation;
            if (!stale)
            {
                (Gpa, Hva, _slot, _generation) = (gpa, found, slot, generation);
                _valid = usable;
            }
            Lock.ExitWrite();
            if (!stale)
                return usable ? 0 : -Errno.EFAULT;
            backoff.Pause();
        }
    }

    private bool Find(ulong gpa, out Memslot? slot, out ulong hva)
    {
        using var _ = Rcu.Read();
        slot = _slots.Find(gpa >> Page.Shift, _asId);
        if (slot is null || slot.IsInvalid || slot.IsReadOnly)
        {
            hva = 0;
            return false;
        }
        hva = slot.HvaOf(gpa >> Page.Shift) | (gpa & Page.OffsetMask);
        return true;
    }

    private void SetInvalid(ulong gpa)
    {
        Lock.EnterWrite();
        _valid = false;
        Gpa = gpa;
        _slot = null;
        Lock.ExitWrite();
    }

    /// <summary>Reports a write through the pointer to the dirty log and the decoder. Caller holds <see cref="Lock"/> after a positive
    /// <see cref="Check"/>.</summary>
    public void MarkDirty(uint length)
    {
        Lock.AssertHeld();
        _slot?.MarkDirty(Gpa >> Page.Shift);
        _slots.CodeWriteSink?.CodeWritten((nint)Hva, length);
    }

    /// <summary>Stops caching. On return no reader uses the pointer and the notifier has forgotten the cache.</summary>
    public void Deactivate()
    {
        using var _ = _refreshLock.Enter();
        if (!_active)
            return;
        Lock.EnterWrite();
        Volatile.Write(ref _active, false);
        _valid = false;
        _slot = null;
        Gpa = InvalidGpa;
        Lock.ExitWrite();
        _slots.Notifier.RemoveCache(this);
    }

    void IInvalidatedByHva.InvalidateHvaRange(ulong start, ulong end)
    {
        Lock.EnterWrite();
        ulong page = Hva & Page.Mask;
        if (_valid && page < end && page + Page.Size > start)
            _valid = false;
        Lock.ExitWrite();
    }
}
