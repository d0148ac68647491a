using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Memory;

/// <summary>
/// Memory that only a guest sees (KVM_CREATE_GUEST_MEMFD): the private pages of slots with KVM_MEM_GUEST_MEMFD. The descriptor is the client's; the hypervisor
/// has a mapping of its own.
/// </summary>
/// <remarks>
/// Entries name the mapping, not pages behind it, so a hole punched into the file needs no invalidation: what is mapped reads as zero afterwards, as it must.
/// Decoded code is dropped.
/// SAFETY: (whole file) the mapping lives as long as this object.
/// </remarks>
public sealed class GuestMemfd
{
    private const int KeepSize = 1, PunchHole = 2;

    private readonly MemorySlots _slots;
    private readonly unsafe byte* _mapping;
    /// <summary>Slots that use the memory. Under the slots lock.</summary>
    private readonly List<Memslot> _bindings = [];
    private readonly nint _guard;
    private int _released;

    private unsafe GuestMemfd(MemorySlots slots, int fd, byte* mapping, ulong size)
    {
        (_slots, Fd, Size) = (slots, fd, size);
        _mapping = mapping;
        // The client can shrink the file through its descriptor.
        _guard = FaultGuard.AddGuestMemory((ulong)mapping, (ulong)mapping + size);
    }

    unsafe ~GuestMemfd()
    {
        FaultGuard.RemoveGuestMemory(_guard);
        HostMemory.Unmap(_mapping, (nuint)Size);
    }

    /// <summary>Creates the memory and a descriptor for it, which then belongs to the caller.</summary>
    /// <returns>0, -EINVAL for a bad size, or the host's errno.</returns>
    public static unsafe int Create(MemorySlots slots, ulong size, out GuestMemfd? memory)
    {
        memory = null;
        if ((long)size <= 0 || (size & Page.OffsetMask) != 0)
            return -Errno.EINVAL;
        int fd = MemFd.Create("kvm-gmem", size);
        if (fd < 0)
            return fd;
        byte* mapping = HostMemory.TryMapSharedAligned(fd, (nuint)size, (nuint)(size >= Page.Size1G ? Page.Size1G : Page.Size2M));
        if (mapping == null)
        {
            MemFd.Close(fd);
            return -Errno.ENOMEM;
        }
        // KVM: this descriptor survives an exec, unlike all others.
        FileDescriptor.KeepOnExec(fd);
        memory = new GuestMemfd(slots, fd, mapping, size);
        return 0;
    }

    /// <summary>The descriptor made by <see cref="Create"/>.</summary>
    public int Fd { get; }

    /// <summary>Bytes.</summary>
    public ulong Size { get; }

    /// <summary>Host virtual address of the first byte.</summary>
    public unsafe ulong Hva => (ulong)_mapping;

    /// <summary>The last descriptor is closed: the memory is gone, though slots still name it.</summary>
    public bool IsReleased => Volatile.Read(ref _released) != 0;

    /// <summary>Whether a slot of this VM can use [offset, offset + size). Caller holds the slots lock.</summary>
    internal bool CanBind(MemorySlots slots, ulong offset, ulong size)
    {
        if (slots != _slots || IsReleased || (offset & Page.OffsetMask) != 0 || offset + size < offset || offset + size > Size)
            return false;
        ulong first = offset >> Page.Shift, end = first + (size >> Page.Shift);
        foreach (Memslot slot in _bindings)
            if (slot.PrivatePage < end && slot.PrivatePage + slot.NPages > first)
                return false;
        return true;
    }

    internal void Bind(Memslot slot) => _bindings.Add(slot);

    internal void Unbind(Memslot slot) => _bindings.RemoveAll(s => s.Id == slot.Id && s.AsId == slot.AsId);

    /// <summary>fallocate on the client's descriptor: the memory never changes its size.</summary>
    /// <param name="fd">A descriptor of the memory.</param>
    /// <returns>0, -EINVAL, -EOPNOTSUPP, or the host's errno.</returns>
    public unsafe int Allocate(int fd, int mode, long offset, long length)
    {
        if (offset < 0 || length <= 0 || offset + length < 0)
            return -Errno.EINVAL;
        if ((mode & KeepSize) == 0 || (mode & ~(KeepSize | PunchHole)) != 0)
            return -Errno.EOPNOTSUPP;
        if (((ulong)(offset | length) & Page.OffsetMask) != 0)
            return -Errno.EINVAL;
        bool punch = (mode & PunchHole) != 0;
        if (!punch && (ulong)(offset + length) > Size)
            return -Errno.EINVAL;
        if (punch && (ulong)offset >= Size)
            return 0;
        length = Math.Min(length, (long)Size - offset);
        int r = HostMemory.Allocate(fd, mode, offset, length);
        if (r == 0 && punch)
            _slots.CodeWriteSink?.CodeWritten((nint)(_mapping + offset), (nuint)length);
        return r;
    }

    /// <summary>The last descriptor is closed. No vCPU reaches the memory afterwards; accesses to private pages are memory faults.</summary>
    public unsafe void Release()
    {
        using var _ = _slots.SlotsLock.Enter();
        if (Interlocked.Exchange(ref _released, 1) != 0)
            return;
        foreach (Memslot slot in _bindings)
            _slots.Notifier.UnmapGfns(slot.BaseGfn, slot.EndGfn, _slots.RenewAttributes);
        _slots.CodeWriteSink?.CodeWritten((nint)_mapping, (nuint)Size);
        HostMemory.RemoveShared(_mapping, (nuint)Size);
    }
}
