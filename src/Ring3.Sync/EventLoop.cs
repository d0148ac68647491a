using Ring3.Host;

namespace Ring3.Sync;

/// <summary>
/// One thread that waits for descriptors and deadlines, of all VMs of the process. It starts with the first of either, and never ends the process,
/// which may not be ours: what throws on it costs its owner.
/// </summary>
/// <remarks>
/// Descriptors and a timerfd are in one epoll. An earlier deadline sets the timerfd anew, so arming costs a system call at most, and none while the
/// thread is busy with timers. Nobody is called with a lock held. Timers that are
/// due come first, then each ready descriptor once: neither can keep the other waiting for longer than one round.
/// </remarks>
public sealed class EventLoop : ITimerService, IDisposable
{
    private const ulong TimerKey = 0;
    private const int OutOfMemory = 12;

    /// <summary>Protects everything below; a leaf.</summary>
    private readonly RankedLock _lock = new(LockRank.EventLoop);
    private readonly Dictionary<ulong, IPolled> _members = [];
    private readonly Dictionary<IPolled, ulong> _keys = [];
    private readonly TimerQueue _timers = new();
    /// <summary>The thread's: what it fires in this round.</summary>
    private readonly List<HostTimer> _due = [];
    private ulong _lastKey = TimerKey;
    private Epoll? _epoll;
    private TimerFd? _timerFd;
    private Thread? _thread;

    /// <summary>What the timerfd is set to; <see cref="long.MinValue"/> while the thread fires timers and will look at the queue again by itself.</summary>
    private long _sleepUntilNs = long.MaxValue;

    /// <summary>The member that is being told, and how many wait for the end of that.</summary>
    private IPolled? _telling;
    private int _detaching;
    private readonly WaitQueue _told = new();
    private bool _stop;

    /// <summary>The one loop of the process.</summary>
    public static EventLoop Shared { get; } = new();

    public long NowNs => HostClock.MonotonicNs();

    /// <summary>Starts the thread, if it does not run yet: what comes later needs no descriptor and no memory of the host. 0 or -errno.</summary>
    public int TryStart()
    {
        using (_lock.Enter())
            return StartLocked();
    }

    private int StartLocked()
    {
        if (_thread is not null)
            return 0;
        Epoll? epoll = null;
        TimerFd? timerFd = null;
        int error;
        try
        {
            (epoll, timerFd) = (new Epoll(), new TimerFd());
            error = epoll.Add(timerFd.Fd, TimerKey);
            if (error == 0)
            {
                (_epoll, _timerFd, _sleepUntilNs) = (epoll, timerFd, long.MaxValue);
                var thread = new Thread(Run) { IsBackground = true, Name = "ring3-events" };
                thread.Start();
                _thread = thread;
                return 0;
            }
        }
        catch (HostCallException e)
        {
            error = -e.Errno;
        }
        catch (Exception e) when (e is OutOfMemoryException or ThreadStartException)
        {
            error = -OutOfMemory;
        }
        (_epoll, _timerFd) = (null, null);
        epoll?.Dispose();
        timerFd?.Dispose();
        return error;
    }

    /// <summary>Watches a descriptor. 0 or -errno.</summary>
    public int Attach(IPolled member)
    {
        using (_lock.Enter())
        {
            int error = StartLocked();
            if (error != 0)
                return error;
            ulong key = ++_lastKey;
            error = _epoll!.Add(member.Fd, key);
            if (error == 0)
            {
                _members.Add(key, member);
                _keys.Add(member, key);
            }
            return error;
        }
    }

    /// <summary>
    /// Lets go of a descriptor, watched or not. On return its owner is not and will not be called; by the owner itself, when it is called: not
    /// again.
    /// </summary>
    public void Detach(IPolled member)
    {
        using (_lock.Enter())
        {
            Forget(member);
            if (_telling != member || Thread.CurrentThread == _thread)
                return;
            _detaching++;
        }
        while (true)
        {
            int ticket = _told.Ticket;
            if (Volatile.Read(ref _telling) != member)
                break;
            _told.Wait(ticket);
        }
        using (_lock.Enter())
            _detaching--;
    }

    private void Forget(IPolled member)
    {
        if (!_keys.Remove(member, out ulong key))
            return;
        _members.Remove(key);
        _epoll?.Remove(member.Fd);
    }

    public void Arm(HostTimer timer, long deadlineNs)
    {
        int error;
        using (_lock.Enter())
        {
            error = StartLocked();
            if (error == 0)
            {
                timer.IsDue = false;
                _timers.Arm(timer, deadlineNs);
                if (deadlineNs < _sleepUntilNs)
                    SleepUntil(deadlineNs);
            }
        }
        if (error != 0)
            timer.Fail(new HostCallException("cannot start the event loop", -error));
    }

    public void Cancel(HostTimer timer)
    {
        using (_lock.Enter())
        {
            timer.IsDue = false;
            _ = _timers.Cancel(timer);
        }
    }

    private void SleepUntil(long deadlineNs)
    {
        _sleepUntilNs = deadlineNs;
        _timerFd!.Set(deadlineNs);
    }

    private void Run()
    {
        try
        {
            Span<ulong> keys = stackalloc ulong[64];
            while (Round(keys))
            {
            }
        }
        catch (Exception e)
        {
            End(e);
        }
    }

    /// <returns>False when the loop is to end.</returns>
    private bool Round(Span<ulong> keys)
    {
        int n = _epoll!.Wait(keys, -1);
        if (n < 0)
            throw new HostCallException("the event loop's epoll", -n);
        ReadOnlySpan<ulong> ready = keys[..n];
        if (ready.Contains(TimerKey) && !FireTimers())
            return false;
        foreach (ulong key in ready)
            if (key != TimerKey)
                Tell(key);
        return true;
    }

    private bool FireTimers()
    {
        long now = NowNs;
        CollectDue(now);
        // Those that become due meanwhile, again or for the first time, come in the next round, when descriptors have had theirs.
        for (int i = 0; i < _due.Count; i++)
            if (TakeDue(i) is { } timer)
                timer.Fire(now);
        _due.Clear();
        using (_lock.Enter())
        {
            if (_stop)
                return false;
            SleepUntil(_timers.NextDeadlineNs);
            return true;
        }
    }

    private void CollectDue(long now)
    {
        using (_lock.Enter())
        {
            _sleepUntilNs = long.MinValue;
            while (_timers.PopExpired(now) is { } timer)
            {
                timer.IsDue = true;
                _due.Add(timer);
            }
        }
    }

    /// <summary>Null: cancelled or armed again since it was collected.</summary>
    private HostTimer? TakeDue(int i)
    {
        using (_lock.Enter())
        {
            HostTimer timer = _due[i];
            bool due = timer.IsDue;
            timer.IsDue = false;
            return due ? timer : null;
        }
    }

    private void Tell(ulong key)
    {
        IPolled? member;
        using (_lock.Enter())
        {
            if (!_members.TryGetValue(key, out member))
                return;
            // PAIRS-WITH: Detach, which takes the member away under the lock, and then waits until it is not being told.
            Volatile.Write(ref _telling, member);
        }
        try
        {
            member.Signalled();
        }
        catch (Exception e)
        {
            using (_lock.Enter())
                Forget(member);
            Fail(member, e);
        }
        bool awaited;
        using (_lock.Enter())
        {
            Volatile.Write(ref _telling, null);
            awaited = _detaching != 0;
        }
        if (awaited)
            _told.WakeAll();
    }

    private static void Fail(IPolled member, Exception e)
    {
        try
        {
            member.Failed(e);
        }
        catch (Exception)
        {
            // As HostTimer.Fail.
        }
    }

    /// <summary>
    /// The loop cannot go on (its descriptors were closed behind its back): tells everybody, rather than letting them wait for ever. The next to
    /// come starts another.
    /// </summary>
    private void End(Exception e)
    {
        IPolled[] members;
        var timers = new List<HostTimer>();
        using (_lock.Enter())
        {
            members = [.. _members.Values];
            _members.Clear();
            _keys.Clear();
            timers.AddRange(_due.Where(static t => t.IsDue));
            _due.Clear();
            while (_timers.PopAny() is { } timer)
                timers.Add(timer);
            // Not closed: the numbers may be somebody else's.
            (_epoll, _timerFd, _thread) = (null, null, null);
        }
        foreach (IPolled member in members)
            Fail(member, e);
        foreach (HostTimer timer in timers)
            timer.Fail(e);
    }

    public void Dispose()
    {
        Thread? thread;
        using (_lock.Enter())
        {
            _stop = true;
            _timerFd?.Set(0);
            thread = _thread;
        }
        thread?.Join();
        _epoll?.Dispose();
        _timerFd?.Dispose();
    }
}
