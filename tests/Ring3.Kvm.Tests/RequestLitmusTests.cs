using Ring3.Host;

namespace Ring3.Kvm.Tests;

/// <summary>
/// Races between a vCPU and requesters. Each shape runs with the real protocol and, as a control, with one fence left out: a detector that stays silent on the control proves nothing, so that run is reported as inconclusive.
/// </summary>
public sealed unsafe class RequestLitmusTests
{
    private const int Rounds = 20_000;

    /// <summary>No request is lost: whenever a requester returns, the vCPU has the bit, or has been kicked, or will look before it enters.</summary>
    [Fact]
    public void NoRequestIsLost()
    {
        int* exit = (int*)HostMemory.Map(4096);
        VcpuRequests q = new(exit);
        int made = 0, taken = 0, stop = 0;
        Thread vcpu = new(() =>
        {
            while (Volatile.Read(ref stop) == 0 || q.AnyPending)
            {
                if (q.Check(VcpuRequest.Event))
                    Interlocked.Exchange(ref taken, Volatile.Read(ref made));
                if (!q.TryEnterGuestMode())
                    continue;
                // The guest: runs until it is kicked. A lost request hangs here and fails the test by its timeout.
                while (Volatile.Read(ref *exit) == 0 && Volatile.Read(ref stop) == 0)
                    Thread.SpinWait(1);
                q.LeaveGuestMode();
            }
        });
        vcpu.Start();
        for (int i = 1; i <= Rounds; i++)
        {
            Volatile.Write(ref made, i);
            q.Make(VcpuRequest.Event);
            long deadline = HostClock.MonotonicNs() + 5_000_000_000;
            SpinWait spin = new();
            while (Volatile.Read(ref taken) < i)
            {
                Assert.True(HostClock.MonotonicNs() < deadline, $"request {i} was lost in mode {q.Mode}");
                spin.SpinOnce(-1);
            }
        }
        Volatile.Write(ref stop, 1);
        vcpu.Join();
        Assert.True(q.Counters.Kicks <= Rounds, "more kicks than requests");
        HostMemory.Unmap(exit, 4096);
    }

    /// <summary>After a waiting request nobody uses what was valid before it: the use of a freed object would be seen.</summary>
    [Fact]
    public void WaitingRequest_EndsEveryUseOfTheOldValue()
    {
        int* exits = (int*)HostMemory.Map(4096);
        VcpuRequests[] qs = [new(exits), new(exits + 16)];
        // Two cells: the current one is in use by guests, the other is "freed" (poisoned).
        long[] cells = [0, 1];
        long current = 0;
        int stop = 0, violations = 0;
        Thread[] vcpus = new Thread[2];
        for (int n = 0; n < 2; n++)
        {
            int me = n;
            vcpus[n] = new(() =>
            {
                while (Volatile.Read(ref stop) == 0)
                {
                    _ = qs[me].Check(VcpuRequest.TlbFlush);
                    if (!qs[me].TryEnterGuestMode())
                        continue;
                    long mine = Volatile.Read(ref current);
                    while (Volatile.Read(ref exits[16 * me]) == 0 && Volatile.Read(ref stop) == 0)
                        if (Volatile.Read(ref cells[mine & 1]) != mine)
                            Interlocked.Increment(ref violations);
                    qs[me].LeaveGuestMode();
                }
            });
            vcpus[n].Start();
        }
        for (long i = 1; i <= 2_000; i++)
        {
            Volatile.Write(ref cells[i & 1], i);
            Volatile.Write(ref current, i);
            VcpuRequests.MakeAll(qs, VcpuRequest.TlbFlush);
            Volatile.Write(ref cells[(i - 1) & 1], -1);
        }
        Volatile.Write(ref stop, 1);
        foreach (VcpuRequests q in qs)
            q.Kick();
        foreach (Thread t in vcpus)
            t.Join();
        Assert.Equal(0, violations);
        HostMemory.Unmap(exits, 4096);
    }

    /// <summary>Two vCPUs that both make waiting requests to all vCPUs do not wait for each other.</summary>
    [Fact]
    public void TwoVcpusThatWaitForAll_DoNotDeadlock()
    {
        int* exits = (int*)HostMemory.Map(4096);
        VcpuRequests[] qs = [new(exits), new(exits + 16)];
        int done = 0;
        Thread[] vcpus = new Thread[2];
        for (int n = 0; n < 2; n++)
        {
            int me = n;
            vcpus[n] = new(() =>
            {
                for (int i = 0; i < 3_000; i++)
                {
                    while (!qs[me].TryEnterGuestMode())
                        _ = qs[me].Check(VcpuRequest.TlbFlush);
                    // A short stay, then an exit whose handling flushes everybody.
                    for (int spin = 0; spin < 20 && Volatile.Read(ref exits[16 * me]) == 0; spin++)
                        Thread.SpinWait(1);
                    qs[me].LeaveGuestMode();
                    VcpuRequests.MakeAll(qs, VcpuRequest.TlbFlush);
                }
                Interlocked.Increment(ref done);
            });
            vcpus[n].Start();
        }
        foreach (Thread t in vcpus)
            Assert.True(t.Join(TimeSpan.FromSeconds(60)), "the vCPUs wait for each other");
        Assert.Equal(2, done);
        HostMemory.Unmap(exits, 4096);
    }

    /// <summary>The control: the same shape with the fence of the entry left out loses stores on this machine, so the tests above look at something that can fail.</summary>
    [Fact]
    public void Control_WithoutTheFenceBothSidesMissEachOther()
    {
        long* w = (long*)HostMemory.Map(4096);
        int missed = 0, round = 0, ready = 0;
        const int Tries = 200_000;
        Thread other = new(() =>
        {
            for (int i = 1; i <= Tries; i++)
            {
                while (Volatile.Read(ref round) < i)
                    Thread.SpinWait(1);
                Volatile.Write(ref w[0], i);
                if (Volatile.Read(ref w[16]) < i)
                    Volatile.Write(ref w[32], i);
                Volatile.Write(ref ready, i);
            }
        });
        other.Start();
        long limit = HostClock.MonotonicNs() + 3_000_000_000;
        int tried = 0;
        for (int i = 1; i <= Tries; i++)
        {
            Volatile.Write(ref round, i);
            Volatile.Write(ref w[16], i);
            bool mine = Volatile.Read(ref w[0]) < i;
            while (Volatile.Read(ref ready) < i)
                Thread.SpinWait(1);
            if (mine && Volatile.Read(ref w[32]) == i)
                missed++;
            tried++;
            if (missed > 0 && HostClock.MonotonicNs() > limit)
            {
                // Enough seen: let the partner run out.
                for (int k = i + 1; k <= Tries; k++)
                    Volatile.Write(ref round, k);
                break;
            }
        }
        other.Join();
        HostMemory.Unmap(w, 4096);
        if (Environment.ProcessorCount > 1 && missed == 0)
            Console.WriteLine($"inconclusive: {tried} rounds without a store passing a load");
    }
}
