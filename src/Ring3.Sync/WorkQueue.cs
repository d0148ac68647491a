namespace Ring3.Sync;

/// <summary>Work that a <see cref="WorkQueue"/> runs. One object stands for one piece of work: queued again before it has started it still runs once.</summary>
public abstract class WorkItem
{
    internal WorkItem? Next;
    internal int Pending;

    /// <summary>Runs on the worker. May queue itself or others. Should yield between bounded steps.</summary>
    protected internal abstract void Run();
}

/// <summary>
/// One worker thread per VM, started by <see cref="Start"/> or with the first item. Items run one after the other in the order in which they were queued. Queueing allocates nothing, never blocks, and may be done under any lock;
/// the queue is bounded because an item can be in it only once.
/// </summary>
public sealed class WorkQueue(string name) : IDisposable
{
    private readonly WaitQueue _wake = new(), _done = new();
    private TinyLock _lock;
    private WorkItem? _head, _tail;
    private long _queued, _completed;
    private Thread? _thread;
    private bool _stop;

    /// <summary>Called on the worker with an exception that escaped an item: the owner marks its VM dead.</summary>
    public Action<Exception>? Failed { get; set; }

    /// <summary>Items completed.</summary>
    public long Completed => Volatile.Read(ref _completed);

    /// <summary>True on the worker thread itself.</summary>
    public bool OnWorker => Thread.CurrentThread == _thread;

    /// <summary>Queues an item.</summary>
    /// <returns>False if it was already waiting to run: it will run once for both.</returns>
    public bool Queue(WorkItem item)
    {
        if (Interlocked.Exchange(ref item.Pending, 1) != 0)
            return false;
        _lock.Enter();
        if (_stop)
        {
            _lock.Exit();
            throw new ObjectDisposedException(nameof(WorkQueue));
        }
        item.Next = null;
        if (_tail is null)
            _head = item;
        else
            _tail.Next = item;
        _tail = item;
        _queued++;
        bool start = _thread is null;
        _lock.Exit();
        if (start)
            Start();
        _wake.WakeAll();
        return true;
    }

    /// <summary>Starts the worker, if it does not run yet, so that the first <see cref="Queue"/> does not have to (hundreds of microseconds).</summary>
    public void Start()
    {
        if (Volatile.Read(ref _thread) is not null)
            return;
        var thread = new Thread(Loop, 512 * 1024) { IsBackground = true, Name = name };
        _lock.Enter();
        bool start = _thread is null && !_stop;
        if (start)
            _thread = thread;
        _lock.Exit();
        if (start)
            thread.Start();
    }

    /// <summary>Waits until everything queued before the call has run. Must not be called on the worker or in an RCU read section.</summary>
    public void Flush()
    {
        if (OnWorker)
            throw new InvalidOperationException("the worker cannot wait for itself");
        long target = Volatile.Read(ref _queued);
        while (true)
        {
            int ticket = _done.Ticket;
            if (Volatile.Read(ref _completed) >= target)
                return;
            _done.Wait(ticket);
        }
    }

    /// <summary>Waits until the queue is empty, items queued by items included.</summary>
    public void Drain()
    {
        while (Volatile.Read(ref _completed) != Volatile.Read(ref _queued))
            Flush();
    }

    /// <summary>Runs what is queued, then stops the worker. Nothing may be queued afterwards.</summary>
    public void Dispose()
    {
        Drain();
        _lock.Enter();
        _stop = true;
        Thread? thread = _thread;
        _lock.Exit();
        _wake.WakeAll();
        thread?.Join();
    }

    private void Loop()
    {
        while (true)
        {
            int ticket = _wake.Ticket;
            WorkItem? item = Take();
            if (item is null)
            {
                if (Volatile.Read(ref _stop))
                    return;
                _wake.Wait(ticket);
                continue;
            }
            // PAIRS-WITH: Queue. Whoever queues after this point gets a run of its own.
            Interlocked.Exchange(ref item.Pending, 0);
            try { item.Run(); }
            catch (Exception e) { Failed?.Invoke(e); }
            Interlocked.Increment(ref _completed);
            _done.WakeAll();
        }
    }

    private WorkItem? Take()
    {
        _lock.Enter();
        WorkItem? item = _head;
        if (item is not null)
        {
            _head = item.Next;
            if (_head is null)
                _tail = null;
            item.Next = null;
        }
        _lock.Exit();
        return item;
    }
}
