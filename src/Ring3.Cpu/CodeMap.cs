using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Decoded code of one host page.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct PageCode
{
    /// <summary>
    /// Bit n: a store that starts in 64-byte granule n may touch bytes of a decoded block. TLB entries point here. Set and cleared under the machine's decode
    /// lock, read by any processor.
    /// </summary>
    public ulong Bits;
    /// <summary>Blocks whose first byte lies in the page, and page-crossing ones that end in it. Decode lock.</summary>
    public Block* First;
}

/// <summary>
/// Which bytes of host memory hold decoded code: a radix tree over host addresses (13, 14 and 9 bits of a 47-bit user address above the page offset). Lookups
/// take no lock; nodes are never freed before the machine is.
/// SAFETY: node pointers come from the tree's own zeroed mappings and are published by release stores.
/// </summary>
public sealed unsafe class CodeMap : IDisposable
{
    private const int TopBits = 13, MidBits = 14, LeafBits = 9;
    private readonly PageCode*** _top = (PageCode***)HostMemory.Map((nuint)sizeof(nint) << TopBits);

    private readonly RankedLock _lock = new(LockRank.CodeMap);
    /// <summary>The nodes below the top, for <see cref="Dispose"/>: to look for a few of them in sparse tables would be to touch all pages of these.</summary>
    private readonly List<(nint Node, nuint Bytes)> _nodes = [];

    /// <summary>Bitmap word of a host page; the address stays valid as long as the machine lives.</summary>
    public ulong* BitsFor(byte* hostPage) => &PageFor(hostPage)->Bits;

    internal PageCode* PageFor(byte* host)
    {
        PageCode* found = Find(host);
        return found != null ? found : Create(host);
    }

    /// <summary>Entry of the page, or null when nothing was ever asked about it.</summary>
    internal PageCode* Find(byte* host)
    {
        nuint page = (nuint)host >> 12;
        PageCode** mid = Volatile.Read(ref *(nint*)&_top[page >> (MidBits + LeafBits) & ((1 << TopBits) - 1)]) is var m and not 0 ? (PageCode**)m : null;
        if (mid == null)
            return null;
        nint leaf = Volatile.Read(ref *(nint*)&mid[page >> LeafBits & ((1 << MidBits) - 1)]);
        return leaf == 0 ? null : (PageCode*)leaf + (page & ((1 << LeafBits) - 1));
    }

    private PageCode* Create(byte* host)
    {
        nuint page = (nuint)host >> 12;
        PageCode** mid = (PageCode**)Publish((nint*)&_top[page >> (MidBits + LeafBits) & ((1 << TopBits) - 1)], (nuint)sizeof(nint) << MidBits);
        PageCode* leaf = (PageCode*)Publish((nint*)&mid[page >> LeafBits & ((1 << MidBits) - 1)], (nuint)sizeof(PageCode) << LeafBits);
        return leaf + (page & ((1 << LeafBits) - 1));
    }

    private nint Publish(nint* slot, nuint bytes)
    {
        nint node = Volatile.Read(ref *slot);
        if (node != 0)
            return node;
        using (_lock.Enter())
        {
            node = *slot;
            if (node != 0)
                return node;
            node = (nint)HostMemory.Map(bytes);
            _nodes.Add((node, bytes));
            Volatile.Write(ref *slot, node);
            return node;
        }
    }

    public void Dispose()
    {
        foreach ((nint node, nuint bytes) in _nodes)
            HostMemory.Unmap((void*)node, bytes);
        _nodes.Clear();
        HostMemory.Unmap(_top, (nuint)sizeof(nint) << TopBits);
    }
}
