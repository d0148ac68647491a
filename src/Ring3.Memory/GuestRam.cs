using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Memory;

/// <summary>
/// Anonymous memory for a guest: zeroed, lazily backed, aligned so that the largest nested mappings fit. Give ranges back with <see cref="Discard"/>.
/// </summary>
public sealed class GuestRam : IDisposable
{
    private readonly unsafe byte* _mapping;
    private readonly nuint _mappingBytes;
    private int _disposed;

    /// <param name="bytes">Size, rounded up to pages.</param>
    /// <param name="hugePages">Let the host back the memory with huge pages: faster, but resident memory grows in larger steps.</param>
    /// <exception cref="OutOfMemoryException">The address space cannot be reserved.</exception>
    public unsafe GuestRam(ulong bytes, bool hugePages = false)
    {
        Size = (bytes + Page.OffsetMask) & Page.Mask;
        ulong alignment = Size >= Page.Size1G ? Page.Size1G : Page.Size2M;
        _mappingBytes = (nuint)(Size + alignment);
        _mapping = HostMemory.Map(_mappingBytes, hugePages);
        Hva = ((ulong)_mapping + alignment - 1) & ~(alignment - 1);
    }

    /// <summary>Host virtual address of the first byte: aligned to 1 GiB from that size on, else to 2 MiB.</summary>
    public ulong Hva { get; }

    /// <summary>Bytes.</summary>
    public ulong Size { get; }

    /// <summary>First byte.</summary>
    public unsafe byte* Pointer => (byte*)Hva;

    /// <summary>
    /// Gives the pages that lie wholly in [offset, offset + length) back to the host; they read as zero afterwards. Mappings of the VM go first, through its
    /// notifier.
    /// </summary>
    /// <param name="notifier">The notifier of the VM that uses the memory, or null if none does.</param>
    public unsafe void Discard(ulong offset, ulong length, MmuNotifier? notifier)
    {
        ulong end = Math.Min(Size, offset > Size ? Size : offset + Math.Min(length, Size - offset));
        ulong start = (offset + Page.OffsetMask) & Page.Mask;
        end &= Page.Mask;
        if (start >= end)
            return;
        bool active = notifier is not null && notifier.InvalidateRangeStart(Hva + start, Hva + end);
        // SAFETY: the range lies inside the mapping.
        if (notifier?.Residency is not { } residency || !residency.TryDiscard(Hva + start, end - start))
            HostMemory.Discard((void*)(Hva + start), (nuint)(end - start));
        if (active)
            notifier!.InvalidateRangeEnd(Hva + start, Hva + end);
    }

    /// <summary>Unmaps. The VM must have dropped its slots before.</summary>
    public unsafe void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) == 0)
            // SAFETY: mapped by the constructor, unmapped once.
            HostMemory.Unmap(_mapping, _mappingBytes);
        GC.SuppressFinalize(this);
    }

    ~GuestRam() => Dispose();
}
