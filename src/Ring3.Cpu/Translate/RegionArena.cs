using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Memory of the regions of one block arena: code, and what describes it. Recycled by the process, never unmapped, because the fault handler knows the code's
/// ranges for good.
/// </summary>
/// <remarks>SAFETY: offsets stay below the mappings' sizes.</remarks>
internal sealed unsafe class RegionArena
{
    private const int CodeSize = 32 << 20, DataSize = 64 << 20, MaxArenas = 128, Ahead = 256 << 10;

    private static readonly RankedLock s_lock = new(LockRank.RegionArena);
    private static readonly Stack<RegionArena> s_free = new();
    private static int s_count;

    private readonly TranslatedMemory _code = new(CodeSize);
    private readonly byte* _data = HostMemory.Map(DataSize);
    private int _dataUsed, _dataPresent;

    public Region* First;

    /// <summary>As many as a machine has while the old one cannot be used again yet.</summary>
    private const int Prepared = 2;

    private static int s_prepared;

    /// <summary>
    /// Makes arenas ahead, once in the process: a client's threads may be confined to few system calls by the time something is translated.
    /// </summary>
    public static void Prepare()
    {
        if (Interlocked.Exchange(ref s_prepared, 1) != 0)
            return;
        RegionArena?[] arenas = new RegionArena?[Prepared];
        for (int i = 0; i < Prepared; i++)
            arenas[i] = Take();
        foreach (RegionArena? arena in arenas)
            arena?.Return();
    }

    /// <summary>An empty arena, or null when the process has enough of them.</summary>
    public static RegionArena? Take()
    {
        using (s_lock.Enter())
        {
            if (s_free.TryPop(out RegionArena? arena))
                return arena;
            if (s_count == MaxArenas)
                return null;
            s_count++;
        }
        try { return new RegionArena(); }
        catch (Exception e) when (e is IOException or OutOfMemoryException)
        {
            // The host gives no more executable memory: what is not translated by now is interpreted.
            using (s_lock.Enter())
                s_count = MaxArenas;
            return null;
        }
    }

    /// <summary>No processor can reach the code any more.</summary>
    public void Return()
    {
        Reset();
        using (s_lock.Enter())
            s_free.Push(this);
    }

    public void Reset()
    {
        HostMemory.Discard(_data, DataSize);
        _code.Reset();
        _dataUsed = _dataPresent = 0;
        First = null;
    }

    public TranslatedMemory Code => _code;

    public bool HasRoom(int codeBytes, int dataBytes) => _code.Free >= codeBytes + 64 && DataSize - _dataUsed >= dataBytes + 64;

    /// <summary>16-byte aligned zeroed room. The caller has asked <see cref="HasRoom"/>.</summary>
    public byte* Allocate(int bytes)
    {
        byte* at = _data + _dataUsed;
        _dataUsed += (bytes + 15) & ~15;
        if (_dataUsed > _dataPresent)
        {
            // As TranslatedMemory does.
            int more = Math.Min(DataSize - _dataPresent, (_dataUsed - _dataPresent + Ahead - 1) & -Ahead);
            HostMemory.Populate(_data + _dataPresent, (nuint)more);
            _dataPresent += more;
        }
        return at;
    }
}
