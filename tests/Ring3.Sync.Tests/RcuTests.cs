namespace Ring3.Sync.Tests;

public class RcuTests
{
    [Fact]
    public void Synchronize_WaitsForAnOpenSection_NotForALaterOne()
    {
        using var inside = new ManualResetEventSlim();
        using var leave = new ManualResetEventSlim();
        var reader = new Thread(() =>
        {
            using (Rcu.Read())
            {
                Rcu.Enter();
                Rcu.Exit();
                inside.Set();
                leave.Wait();
            }
        });
        reader.Start();
        inside.Wait();
        var writer = new Thread(Rcu.Synchronize);
        writer.Start();
        Assert.False(writer.Join(30));
        leave.Set();
        Assert.True(writer.Join(10_000));
        reader.Join();
    }

    [Fact]
    public void Stall_NamesTheReader()
    {
        using var inside = new ManualResetEventSlim();
        using var leave = new ManualResetEventSlim();
        string? text = null;
        void OnStall(string s) => text = s;
        long old = Rcu.StallWarningNs;
        Rcu.StallWarningNs = 1_000_000;
        Rcu.Stalled += OnStall;
        var reader = new Thread(() => { using var _ = Rcu.Read(); inside.Set(); leave.Wait(); });
        reader.Start();
        inside.Wait();
        var writer = new Thread(Rcu.Synchronize);
        writer.Start();
        Assert.True(SpinWait.SpinUntil(() => Volatile.Read(ref text) is not null, 10_000));
        leave.Set();
        writer.Join();
        Rcu.Stalled -= OnStall;
        Rcu.StallWarningNs = old;
        Assert.Contains($"thread {reader.ManagedThreadId} ", text);
        reader.Join();
    }

    /// <summary>
    /// Readers look at an object through a published reference; the writer poisons it after a grace period. Control: without the grace period the
    /// detector must see poison.
    /// </summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public unsafe void Readers_NeverSeeReclaimedMemory(bool withGracePeriod)
    {
        const int Slots = 64;
        long* memory = stackalloc long[Slots];
        nint published = (nint)memory;
        bool stop = false;
        int poison = 0;
        var readers = new Thread[2];
        memory[0] = 1;
        for (int i = 0; i < readers.Length; i++)
        {
            readers[i] = new Thread(() =>
            {
                while (!Volatile.Read(ref stop))
                {
                    Rcu.Enter();
                    long* p = (long*)Volatile.Read(ref published);
                    for (int n = 0; n < 20; n++)
                    {
                        Thread.SpinWait(5);
                        if (Volatile.Read(ref *p) != 1)
                            Interlocked.Increment(ref poison);
                    }
                    Rcu.Exit();
                }
            });
            readers[i].Start();
        }
        long end = Environment.TickCount64 + (withGracePeriod ? 700 : 5000);
        for (int i = 0; Environment.TickCount64 < end && (withGracePeriod || Volatile.Read(ref poison) == 0); i++)
        {
            long* old = memory + i % Slots, next = memory + (i + 1) % Slots;
            Volatile.Write(ref *next, 1);
            Volatile.Write(ref published, (nint)next);
            if (withGracePeriod)
                Rcu.Synchronize();
            Volatile.Write(ref *old, 0xdead);
        }
        stop = true;
        foreach (Thread t in readers)
            t.Join();
        Assert.Equal(withGracePeriod, poison == 0);
    }

    [Fact]
    public void Reclaimer_ReclaimsAfterTheReadersAreGone()
    {
        using var queue = new WorkQueue("test");
        var reclaimer = new RcuReclaimer(queue);
        var node = new Node();
        Rcu.Enter();
        reclaimer.Defer(node);
        Thread.Sleep(20);
        Assert.False(node.Reclaimed);
        Rcu.Exit();
        queue.Drain();
        Assert.True(node.Reclaimed);
    }

    private sealed class Node : RcuDeferred
    {
        public volatile bool Reclaimed;
        protected internal override void Reclaim() => Reclaimed = true;
    }
}
