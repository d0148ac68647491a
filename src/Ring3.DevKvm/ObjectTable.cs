using System.Runtime.CompilerServices;
using Ring3.Host;

namespace Ring3.DevKvm;

/// <summary>
/// Handles to objects. A lookup is two loads and takes no lock; a handle that was released, or never given, finds nothing, also when its place is used again.
/// </summary>
internal static class ObjectTable
{
    private const int SegmentBits = 10, SegmentSize = 1 << SegmentBits, MaxSegments = 4096;

    private static readonly RankedLock s_lock = new(LockRank.ObjectTable);
    private static readonly KvmObject?[]?[] s_segments = new KvmObject?[MaxSegments][];
    private static readonly Stack<int> s_free = new();
    private static int s_used;
    private static uint s_generation;

    /// <summary>Objects in the table.</summary>
    public static int Count
    {
        get
        {
            using (s_lock.Enter())
                return s_used - s_free.Count;
        }
    }

    /// <summary>The object with a handle, or null.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static KvmObject? Find(ulong handle)
    {
        uint index = (uint)handle - 1;
        if (index >= MaxSegments * SegmentSize || Volatile.Read(ref s_segments[index >> SegmentBits]) is not { } segment)
            return null;
        KvmObject? o = Volatile.Read(ref segment[index & (SegmentSize - 1)]);
        return o is not null && o.Handle == handle ? o : null;
    }

    /// <summary>Gives an object its handle: low half place + 1, high half a generation. False when the table is full.</summary>
    public static bool TryAdd(KvmObject o)
    {
        using (s_lock.Enter())
        {
            if (!s_free.TryPop(out int index))
            {
                if (s_used == MaxSegments * SegmentSize)
                    return false;
                index = s_used++;
            }
            ref KvmObject?[]? segment = ref s_segments[index >> SegmentBits];
            if (segment is null)
                Volatile.Write(ref segment, new KvmObject?[SegmentSize]);
            o.Handle = (ulong)++s_generation << 32 | (uint)(index + 1);
            Volatile.Write(ref segment![index & (SegmentSize - 1)], o);
            return true;
        }
    }

    /// <summary>Takes an object out; null when the handle is not, or no longer, in the table.</summary>
    public static KvmObject? Remove(ulong handle)
    {
        using (s_lock.Enter())
        {
            if (Find(handle) is not { } o)
                return null;
            int index = (int)((uint)handle - 1);
            Volatile.Write(ref s_segments[index >> SegmentBits]![index & (SegmentSize - 1)], null);
            s_free.Push(index);
            return o;
        }
    }

    /// <summary>The objects of one kind that are in the table now.</summary>
    public static List<T> All<T>() where T : KvmObject
    {
        List<T> found = [];
        using (s_lock.Enter())
        {
            for (int i = 0; i < s_used; i++)
                if (s_segments[i >> SegmentBits]![i & (SegmentSize - 1)] is T o)
                    found.Add(o);
        }
        return found;
    }
}
