using Ring3.Host;

namespace Ring3.Sync;

/// <summary>
/// A client's eventfd that any thread may signal while another gives it up. The descriptor is closed when nobody can be using its number any more: the next
/// file of the process gets the same one.
/// </summary>
/// <remarks><see cref="Signal"/> is for RCU read sections in which the caller has found the owner published. It never waits, whatever the client has done to
/// the eventfd.</remarks>
public sealed class RcuEventFd
{
    private readonly bool _mayBlock;

    private RcuEventFd(int fd)
    {
        Fd = fd;
        _mayBlock = EventFd.MayBlock(fd);
    }

    /// <summary>The descriptor.</summary>
    public int Fd { get; }

    /// <summary>A descriptor of our own for the client's <paramref name="fd"/>, which it may close; null when there is none left.</summary>
    public static RcuEventFd? TryDuplicate(int fd) => EventFd.Duplicate(fd) is >= 0 and var own ? new RcuEventFd(own) : null;

    /// <summary>Adds one to the counter, unless it is full.</summary>
    public void Signal()
    {
        Rcu.AssertInSection();
        _ = _mayBlock ? EventFd.SignalUnlessFull(Fd) : EventFd.Signal(Fd);
    }

    /// <summary>Closes the descriptor. After a grace period that began when nobody new could find the owner.</summary>
    public void Close() => EventFd.Close(Fd);
}
