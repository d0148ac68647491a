using Ring3.Host;

namespace Ring3.Sync;

/// <summary>Work that a <see cref="WorkQueue"/> runs. One object stands for one piece of work: queued again before it has started it still runs once.</summary>
public abstract class WorkItem
{
    internal WorkItem? Next;
    /// <summary>In the queue. Under the queue's lock.</summary>
    internal bool Pending;
    /// <summary>Number of the oldest queueing that the next completed run answers.</summary>
    internal long Ticket;

    /// <summary>Runs on the worker. May queue itself or others. Short: what takes long is a <see cref="BulkWorkItem"/>.</summary>
    protected internal abstract void Run();
}

/// <summary>
/// Work that can wait and may be long. Runs in slices: between them the worker gives way to ordinary items and rests when its share of the processor is used
/// up. The worker holds no lock and is in no RCU section between slices.
/// </summary>
public abstract class BulkWorkItem : WorkItem
{
    /// <summary>Does some work: returns when all is done, or soon after <see cref="WorkQueue.ShouldYield"/>. Steps between two looks at that take well below a
    /// millisecond.</summary>
    /// <returns>True when nothing is left.</returns>
    protected internal abstract bool RunSlice();

    protected internal sealed override void Run() => throw new InvalidOperationException("bulk work runs in slices");
}

/// <summary>
/// One worker thread per VM, started by <see cref="Start"/> or with the first item. Ordinary items run in the order in which they were queued, before bulk
/// items, which do the same among themselves. Queueing allocates nothing, never blocks, and may be done under any lock; the queue is bounded because an item
/// can be in it only once.
/// </summary>
public sealed class WorkQueue(string name, IShareClock? clock = null) : IDisposable
{
    /// <summary>Items in order; intrusive.</summary>
    private struct Fifo
    {
        public WorkItem? Head;
        private WorkItem? _tail;

        public void Add(WorkItem item)
        {
            item.Next = null;
            if (_tail is null)
                Head = item;
            else
                _tail.Next = item;
            _tail = item;
        }

        public WorkItem? Take()
        {
            WorkItem? item = Head;
            if (item is null)
                return null;
            Head = item.Next;
            if (Head is null)
                _tail = null;
            item.Next = null;
            return item;
        }

        public readonly long OldestTicket()
        {
            long oldest = long.MaxValue;
            for (WorkItem? item = Head; item is not null; item = item.Next)
                oldest = Math.Min(oldest, item.Ticket);
            return oldest;
        }
    }

    private readonly WaitQueue _wake = new(), _done = new();
    private TinyLock _lock = new(LockRank.WorkQueue);
    private Fifo _ordinary, _bulk;
    private long _queued, _completed, _yields;
    private long _runningTicket = long.MaxValue;
    private Thread? _thread;
    private bool _stop, _faulted;

    /// <summary>Called on the worker with an exception that escaped an item: the owner marks its VM dead.</summary>
    public Action<Exception>? Failed { get; set; }

    /// <summary>What bulk items may take of a processor.</summary>
    public CpuShare Share { get; } = new(clock);

    /// <summary>Items completed.</summary>
    public long Completed => Volatile.Read(ref _completed);

    /// <summary>Bulk slices that ended early, for other work or for the share.</summary>
    public long Yields => Volatile.Read(ref _yields);

    /// <summary>An exception has escaped an item: what it should have done may never be done.</summary>
    public bool IsFaulted => Volatile.Read(ref _faulted);

    /// <summary>True on the worker thread itself.</summary>
    public bool OnWorker => Thread.CurrentThread == _thread;

    /// <summary>For a running bulk item: ordinary work waits, or the share is used up. Charges the time since the last look.</summary>
    public bool ShouldYield => !Share.MayGoOn() | Volatile.Read(ref _ordinary.Head) is not null;

    /// <summary>Queues an item.</summary>
    /// <returns>False if it was already waiting to run: it will run once for both.</returns>
    public bool Queue(WorkItem item)
    {
        _lock.Enter();
        if (item.Pending)
        {
            _lock.Exit();
            return false;
        }
        if (_stop)
        {
            _lock.Exit();
            throw new ObjectDisposedException(nameof(WorkQueue));
        }
        item.Ticket = ++_queued;
        Add(item);
        bool start = _thread is null;
        _lock.Exit();
        if (start)
            Start();
        _wake.WakeAll();
        return true;
    }

    private void Add(WorkItem item)
    {
        item.Pending = true;
        if (item is BulkWorkItem)
            _bulk.Add(item);
        else
            _ordinary.Add(item);
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

    /// <summary>Waits until everything queued before the call has run to its end. Must not be called on the worker or in an RCU read section.</summary>
    public void Flush()
    {
        if (OnWorker)
            throw new InvalidOperationException("the worker cannot wait for itself");
        LockOrder.WaitingForReaders();
        long target = Volatile.Read(ref _queued);
        while (true)
        {
            int ticket = _done.Ticket;
            if (OldestTicket() > target)
                return;
            _done.Wait(ticket);
        }
    }

    /// <summary>Waits until the queue is empty, items queued by items included.</summary>
    public void Drain()
    {
        while (OldestTicket() != long.MaxValue)
            Flush();
    }

    private long OldestTicket()
    {
        _lock.Enter();
        long oldest = Math.Min(_runningTicket, Math.Min(_ordinary.OldestTicket(), _bulk.OldestTicket()));
        _lock.Exit();
        return oldest;
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
            if (Take(out long waitNs) is { } item)
            {
                Finish(item, Run(item));
                continue;
            }
            if (waitNs < 0 && Volatile.Read(ref _stop))
                return;
            _wake.Wait(ticket, waitNs);
        }
    }

    /// <summary>The next item. Null: nothing to do for <paramref name="waitNs"/> nanoseconds (negative: until somebody queues).</summary>
    private WorkItem? Take(out long waitNs)
    {
        waitNs = -1;
        _lock.Enter();
        WorkItem? item = _ordinary.Take();
        if (item is null && _bulk.Head is not null && (waitNs = Share.WaitNs()) == 0)
            item = _bulk.Take();
        if (item is not null)
        {
            // Whoever queues after this point gets a run of its own.
            item.Pending = false;
            _runningTicket = item.Ticket;
        }
        _lock.Exit();
        return item;
    }

    /// <returns>True when the item is done.</returns>
    private bool Run(WorkItem item)
    {
        bool done = true;
        try
        {
            if (item is BulkWorkItem bulk)
            {
                Share.Begin();
                done = bulk.RunSlice();
                Share.MayGoOn();
            }
            else
                item.Run();
        }
        catch (Exception e)
        {
            Volatile.Write(ref _faulted, true);
            Failed?.Invoke(e);
        }
        return done;
    }

    private void Finish(WorkItem item, bool done)
    {
        _lock.Enter();
        if (done)
            _completed++;
        else
        {
            _yields++;
            // What is left answers the first queueing; a later one, made meanwhile, has put the item into the queue already.
            if (!item.Pending)
                Add(item);
            item.Ticket = _runningTicket;
        }
        _runningTicket = long.MaxValue;
        _lock.Exit();
        if (done)
            _done.WakeAll();
    }
}
