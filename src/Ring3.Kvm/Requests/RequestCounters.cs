namespace Ring3.Kvm;

/// <summary>What was asked of a vCPU. Every request (and every bare kick) ends in exactly one of three: a kick, a wake-up, or neither because the vCPU was
/// outside, on its way out already, or in a mode that the request does not concern.</summary>
internal struct RequestCounters
{
    /// <summary>Stores to the poll word of a running vCPU: at most one for each stay in the guest,
    /// as waiting requesters that find another's kick under way are not counted here.</summary>
    public long Kicks;
    /// <summary>Requests that needed neither kick nor wake-up.</summary>
    public long KicksElided;
    /// <summary>Wake-ups of a sleeping vCPU.</summary>
    public long Wakeups;
    /// <summary>Requests that waited for the vCPU to leave the mode in which it was found.</summary>
    public long Waits;
    /// <summary>Waits that slept, because the vCPU did not leave within the time of a few thousand instructions.</summary>
    public long Sleeps;

    /// <summary>Requests made, bare kicks included.</summary>
    public readonly long Requests => Kicks + KicksElided + Wakeups;

    public static RequestCounters operator +(RequestCounters a, RequestCounters b) => new()
    {
        Kicks = a.Kicks + b.Kicks,
        KicksElided = a.KicksElided + b.KicksElided,
        Wakeups = a.Wakeups + b.Wakeups,
        Waits = a.Waits + b.Waits,
        Sleeps = a.Sleeps + b.Sleeps,
    };
}
