namespace Ring3.Host;

/// <summary>
/// Paged memory: mappings of the product's own that are readable and writable except while <see cref="PageStore"/> writes some of their pages to the store. A
/// write that meets such a moment is repeated until it is over, in whatever code it is, so no store is lost and none fails.
/// </summary>
/// <remarks>
/// The waiting thread may be anywhere in managed code, also where a collection waits for it; so whoever write-protects paged memory must allow writing again
/// without going through managed code (<see cref="SystemCallList"/>).
/// SAFETY: as for guest memory: a range is valid for the handler when its end is above its begin.
/// </remarks>
public static partial class FaultGuard
{
    private const nuint MaxPaged = 4096;
    private const long PagedWaitNs = 20_000;

    private static readonly Stack<nint> s_freePaged = new();

    /// <summary>Declares [<paramref name="begin"/>, <paramref name="end"/>). Returns a ticket for <see cref="RemovePagedMemory"/>.</summary>
    internal static unsafe nint AddPagedMemory(ulong begin, ulong end) =>
        AddRange(s_freePaged, s_control->Paged, &s_control->PagedEnd, MaxPaged, new GuestRange { Begin = begin, End = end });

    /// <summary>Takes a range back. It is writable, and stays so.</summary>
    internal static void RemovePagedMemory(nint ticket) => RemoveRange(s_freePaged, ticket);
}
