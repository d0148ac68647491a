using System.Runtime.InteropServices;

namespace Ring3.Mmu.Power;

/// <summary>Memory of radix tables, which have the size of their level and are aligned to it.</summary>
/// <remarks>SAFETY: (whole type) tables come from here and go back once, when neither processor nor walker can reach them.</remarks>
internal sealed class RadixTables
{
    private int _allocated;

    /// <summary>For checks: takes over a table of a size in bytes that would be freed.</summary>
    public Action<ulong, nuint>? Keep { get; init; }

    public int Allocated => Volatile.Read(ref _allocated);

    /// <summary>A zeroed table of a level.</summary>
    public unsafe ulong Allocate(int level)
    {
        nuint bytes = (nuint)8 << RadixFormat.IndexBits(level);
        void* table = NativeMemory.AlignedAlloc(bytes, bytes);
        NativeMemory.Clear(table, bytes);
        Interlocked.Increment(ref _allocated);
        return (ulong)table;
    }

    public unsafe void Free(ulong table, int level)
    {
        if (Keep is null)
            NativeMemory.AlignedFree((void*)table);
        else
            Keep(table, (nuint)8 << RadixFormat.IndexBits(level));
        Interlocked.Decrement(ref _allocated);
    }

    /// <summary>Frees a table and all below it.</summary>
    public unsafe void FreeTree(ulong table, int level)
    {
        if (level > 1)
            foreach (ulong entry in new ReadOnlySpan<ulong>((void*)table, 1 << RadixFormat.IndexBits(level)))
                if (RadixFormat.IsPresent(entry) && !RadixFormat.IsLeaf(entry, level))
                    FreeTree(RadixFormat.TableAddress(entry), level - 1);
        Free(table, level);
    }
}
