using Ring3.Host;

namespace Ring3.Sync.Tests;

public class LockTests
{
    [Fact]
    public void MmuLock_ExcludesAndShares()
    {
        var l = new MmuLock(LockRank.MmuLock);
        long a = 0, b = 0;
        int torn = 0, readersInside = 0, maxReaders = 0;
        var threads = new List<Thread>();
        for (int i = 0; i < 2; i++)
        {
            threads.Add(new Thread(() =>
            {
                for (int n = 0; n < 20_000; n++)
                {
                    l.EnterWrite();
                    a++;
                    b++;
                    l.ExitWrite();
                }
            }));
            threads.Add(new Thread(() =>
            {
                for (int n = 0; n < 20_000; n++)
                {
                    l.EnterRead();
                    int inside = Interlocked.Increment(ref readersInside);
                    if (inside > Volatile.Read(ref maxReaders))
                        Volatile.Write(ref maxReaders, inside);
                    if (Volatile.Read(ref a) != Volatile.Read(ref b))
                        Interlocked.Increment(ref torn);
                    Interlocked.Decrement(ref readersInside);
                    l.ExitRead();
                }
            }));
        }
        threads.ForEach(t => t.Start());
        threads.ForEach(t => t.Join());
        Assert.Equal((40_000L, 40_000L, 0), (a, b, torn));
    }

    [Fact]
    public void MmuLock_WaitingWriterIsHintedAndGoesFirst()
    {
        var l = new MmuLock(LockRank.MmuLock);
        l.EnterRead();
        Assert.False(l.NeedsBreak);
        var writer = new Thread(() => { l.EnterWrite(); l.ExitWrite(); });
        writer.Start();
        Assert.True(SpinWait.SpinUntil(() => l.NeedsBreak, 10_000));
        bool entered = true;
        var reader = new Thread(() => entered = l.TryEnterRead());
        reader.Start();
        reader.Join();
        Assert.False(entered);
        l.ExitRead();
        Assert.True(writer.Join(10_000));
        l.EnterRead();
        l.ExitRead();
    }

    [Fact]
    public void MmuLock_SleepersAreWoken()
    {
        var l = new MmuLock(LockRank.MmuLock);
        l.EnterWrite();
        int done = 0;
        var threads = Enumerable.Range(0, 6).Select(i => new Thread(() =>
        {
            if (i % 2 == 0)
            {
                l.EnterRead();
                Interlocked.Increment(ref done);
                l.ExitRead();
            }
            else
            {
                l.EnterWrite();
                Interlocked.Increment(ref done);
                l.ExitWrite();
            }
        })).ToList();
        threads.ForEach(t => t.Start());
        Thread.Sleep(30);
        Assert.Equal(0, done);
        l.ExitWrite();
        threads.ForEach(t => Assert.True(t.Join(10_000)));
        Assert.Equal(6, done);
    }

    [Fact]
    public void FutexMutex_Excludes()
    {
        var m = new FutexMutex(LockRank.SlotsLock);
        int value = 0;
        var threads = Enumerable.Range(0, 4).Select(_ => new Thread(() =>
        {
            for (int n = 0; n < 20_000; n++)
            {
                using (m.Enter())
                    value++;
            }
        })).ToList();
        threads.ForEach(t => t.Start());
        threads.ForEach(t => t.Join());
        Assert.Equal(80_000, value);
        Assert.False(m.IsHeldByMe);
    }

    [Fact]
    public void SeqCount_ReadersNeverSeeATornPair()
    {
        var box = new Pair();
        bool stop = false;
        int torn = 0, reads = 0;
        var reader = new Thread(() =>
        {
            while (!Volatile.Read(ref stop))
            {
                uint s;
                long x, y;
                do
                {
                    s = box.Sequence.BeginRead();
                    x = Volatile.Read(ref box.X);
                    y = Volatile.Read(ref box.Y);
                } while (box.Sequence.NeedsRetry(s));
                if (x != y)
                    torn++;
                reads++;
            }
        });
        reader.Start();
        for (int i = 0; i < 300_000; i++)
        {
            box.Sequence.BeginWrite();
            Volatile.Write(ref box.X, i);
            Volatile.Write(ref box.Y, i);
            box.Sequence.EndWrite();
        }
        SpinWait.SpinUntil(() => Volatile.Read(ref reads) > 0);
        stop = true;
        reader.Join();
        Assert.Equal(0, torn);
    }

    private sealed class Pair
    {
        public SeqCount Sequence;
        public long X, Y;
    }

    [Fact]
    public void WaitQueue_WakeBetweenCheckAndWait_IsNotLost()
    {
        var q = new WaitQueue();
        int ticket = q.Ticket;
        q.WakeAll();
        Assert.True(q.Wait(ticket, 10_000_000_000));
        Assert.False(q.Wait(q.Ticket, 1_000_000));
    }
}
