namespace Ring3.Sync;

/// <summary>An object that is given back after a grace period. Intrusive: deferring allocates nothing.</summary>
public abstract class RcuDeferred
{
    internal RcuDeferred? NextDeferred;

    /// <summary>Runs on the worker when no reader can hold the object any more.</summary>
    protected internal abstract void Reclaim();
}

/// <summary>Collects unlinked objects and reclaims them in batches, one grace period a batch, on the VM's worker.</summary>
public sealed class RcuReclaimer(WorkQueue queue) : WorkItem
{
    private RcuDeferred? _head;

    /// <summary>Reclaims <paramref name="node"/> after a grace period. Any lock may be held. Once per object.</summary>
    public void Defer(RcuDeferred node)
    {
        RcuDeferred? head;
        do
        {
            head = Volatile.Read(ref _head);
            node.NextDeferred = head;
        } while (Interlocked.CompareExchange(ref _head, node, head) != head);
        queue.Queue(this);
    }

    protected internal override void Run()
    {
        RcuDeferred? node = Interlocked.Exchange(ref _head, null);
        if (node is null)
            return;
        Rcu.Synchronize();
        while (node is not null)
        {
            RcuDeferred? next = node.NextDeferred;
            node.NextDeferred = null;
            node.Reclaim();
            node = next;
        }
    }
}
