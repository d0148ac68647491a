using System.Runtime.CompilerServices;

namespace Ring3.Host;

/// <summary>Guest memory and the threads that run guests.</summary>
/// <remarks>SAFETY: a range is valid for the handler when its end is above its begin; begin is stored before end, and end is cleared first. Records are claimed
/// under the lock.</remarks>
public static partial class FaultGuard
{
    private const int MaxClaimed = 4000;
    private const nuint MaxRanges = 1 << 20;

    private static readonly Stack<nint> s_freeRanges = new();
    private static int s_claimed;

    /// <summary>Declares [<paramref name="begin"/>, <paramref name="end"/>) as memory that guests access. Ranges may overlap. Returns a ticket for
    /// <see cref="RemoveGuestMemory"/>.</summary>
    public static unsafe nint AddGuestMemory(ulong begin, ulong end) =>
        AddRange(s_freeRanges, s_control->Ranges, &s_control->RangesEnd, MaxRanges, new GuestRange { Begin = begin, End = end });

    /// <summary>Takes a range back. No thread accesses it through guest translations any more.</summary>
    public static void RemoveGuestMemory(nint ticket) => RemoveRange(s_freeRanges, ticket);

    /// <summary>Enters a range into one of the handler's tables, whose entries begin at <paramref name="table"/> and end at *<paramref name="tableEnd"/>. The
    /// handler reads without a lock.</summary>
    private static unsafe nint AddRange(Stack<nint> free, GuestRange* table, GuestRange** tableEnd, nuint max, GuestRange range)
    {
        using (s_lock.Enter())
        {
            if (!free.TryPop(out nint ticket))
            {
                if (*tableEnd - table == (nint)max)
                    throw new InvalidOperationException("too many ranges of guest memory");
                ticket = (nint)(*tableEnd);
                Volatile.Write(ref *(nint*)tableEnd, ticket + sizeof(GuestRange));
            }
            GuestRange* r = (GuestRange*)ticket;
            Volatile.Write(ref r->Begin, range.Begin);
            Volatile.Write(ref r->End, range.End);
            return ticket;
        }
    }

    private static unsafe void RemoveRange(Stack<nint> free, nint ticket)
    {
        GuestRange* r = (GuestRange*)ticket;
        using (s_lock.Enter())
        {
            Volatile.Write(ref r->End, 0);
            Volatile.Write(ref r->Begin, ulong.MaxValue);
            free.Push(ticket);
        }
    }

    /// <summary>The calling thread's record. <paramref name="last"/>: what an earlier call returned, perhaps on another thread, or null.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe FaultRecord* RecordOfThread(FaultRecord* last)
    {
        ulong thread = s_threadPointer();
        return last != null && last->Thread == thread ? last : Claim(thread);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static unsafe FaultRecord* Claim(ulong thread)
    {
        using (s_lock.Enter())
        {
            uint index = (uint)(thread >> FaultRecord.HashDrop) * FaultRecord.HashFactor >> FaultRecord.HashShift;
            FaultRecord* home = s_control->Records + index;
            for (FaultRecord* r = home; r->Thread != 0; r = s_control->Records + (++index & FaultRecord.Count - 1))
                if (r->Thread == thread)
                    return r;
            if (s_claimed == MaxClaimed)
                return Evict(home, thread);
            FaultRecord* free = s_control->Records + (index & FaultRecord.Count - 1);
            s_claimed++;
            Volatile.Write(ref free->Thread, thread);
            return free;
        }
    }

    /// <summary>So many thread pointers have been seen that most of their threads are gone: takes over a record, on the probe path of its new owner, whose
    /// thread is not inside a guest.</summary>
    private static unsafe FaultRecord* Evict(FaultRecord* home, ulong thread)
    {
        FaultRecord* r = home;
        while (r->Thread != 0 && r->Inside != 0)
            r = s_control->Records + ((r - s_control->Records + 1) & FaultRecord.Count - 1);
        Volatile.Write(ref r->Thread, thread);
        return r;
    }
}
