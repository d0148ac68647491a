namespace Ring3.Sync.Tests;

public class WorkQueueTests
{
    private sealed class Item(Action run) : WorkItem
    {
        protected internal override void Run() => run();
    }

    [Fact]
    public void Item_QueuedTwiceBeforeItRuns_RunsOnce_QueuedWhileRunning_RunsAgain()
    {
        using var queue = new WorkQueue("test");
        using var gate = new ManualResetEventSlim();
        using var started = new ManualResetEventSlim();
        int runs = 0;
        var blocker = new Item(() => { started.Set(); gate.Wait(); });
        var item = new Item(() => runs++);
        Assert.True(queue.Queue(blocker));
        started.Wait();
        Assert.True(queue.Queue(item));
        Assert.False(queue.Queue(item));
        Assert.True(queue.Queue(blocker));
        gate.Set();
        queue.Flush();
        Assert.Equal(1, runs);
        Assert.Equal(3, queue.Completed);
    }

    [Fact]
    public void Flush_WaitsForWhatWasQueued_DrainAlsoForWhatThatQueues()
    {
        using var queue = new WorkQueue("test");
        int depth = 0;
        Item? item = null;
        item = new Item(() =>
        {
            if (++depth < 100)
                queue.Queue(item!);
        });
        queue.Queue(item);
        queue.Flush();
        Assert.True(depth >= 1);
        queue.Drain();
        Assert.Equal(100, depth);
    }

    [Fact]
    public void Order_IsFirstInFirstOut_AndFailuresAreReported()
    {
        var order = new List<int>();
        Exception? failure = null;
        var queue = new WorkQueue("test") { Failed = e => failure = e };
        queue.Queue(new Item(() => order.Add(1)));
        queue.Queue(new Item(() => throw new InvalidOperationException("x")));
        queue.Queue(new Item(() => order.Add(2)));
        queue.Dispose();
        Assert.Equal([1, 2], order);
        Assert.Equal("x", failure?.Message);
        Assert.Throws<ObjectDisposedException>(() => queue.Queue(new Item(() => { })));
    }

    [Fact]
    public void UnusedQueue_DisposesWithoutAThread() => new WorkQueue("test").Dispose();
}
