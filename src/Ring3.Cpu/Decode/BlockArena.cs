using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Bump allocator for blocks. Nothing is freed singly: the arena is retired as a whole, and reused when no processor can hold a pointer into it.
/// </summary>
/// <remarks>SAFETY: offsets stay below the mapping's size.</remarks>
internal sealed unsafe class BlockArena(nuint bytes)
{
    private readonly byte* _base = HostMemory.Map(bytes);
    private nuint _used;

    /// <summary>Machine epoch at which the arena was retired. Reusable once every active processor has seen it.</summary>
    public long RetiredAt;

    /// <summary>Translated code of the arena's blocks, made with the first. Decode lock.</summary>
    public RegionArena? Regions;

    public byte* Start => _base;
    public byte* End => _base + _used;

    /// <summary>64-byte aligned room, or null when the arena is full.</summary>
    public byte* Allocate(nuint size)
    {
        size = (size + 63) & ~(nuint)63;
        if (_used + size > bytes)
            return null;
        byte* at = _base + _used;
        _used += size;
        return at;
    }

    public void Reset()
    {
        HostMemory.Discard(_base, bytes);
        _used = 0;
        Regions?.Reset();
    }

    public void Free()
    {
        HostMemory.Unmap(_base, bytes);
        Regions?.Return();
    }
}
