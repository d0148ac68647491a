using System.Diagnostics;

namespace Ring3.Irqchip.Tests;

/// <summary>No interrupt is left in IRR with its vCPU asleep.</summary>
public class NotificationTests
{
    private sealed class SleepingVcpu : IVcpuInterruptSink
    {
        internal readonly SemaphoreSlim Wake = new(0);
        public void InterruptPending() => Wake.Release();
        public void RaiseNmi() { }
        public void RaiseSmi() { }
        public void RaiseInit() { }
        public void RaiseSipi(byte vector) { }
        public void IoapicEoi(byte vector) { }
        public ulong GuestTsc() => 0;
        public uint GuestTscKhz => 1;
    }

    /// <summary>
    /// Each sender sends its vector and waits until the owner has taken it; the owner sleeps whenever it finds nothing. A lost notification stops the
    /// test.
    /// </summary>
    [Fact]
    public async Task Notify_ReachesASleepingOwner()
    {
        const int senders = 3, rounds = 1000;
        var chip = new VmIrqchip(new FakeTimers());
        var vcpu = new SleepingVcpu();
        Lapic apic = chip.CreateLapic(vcpu, 0, 0, true);
        apic.MmioWrite(ApicRegister.SVR, [0xff, 1, 0, 0]);
        var taken = new int[256];
        Task[] tasks = Enumerable.Range(0, senders).Select(t => Task.Run(() =>
        {
            var spin = new SpinWait();
            // Vectors of different classes, and one shared by all.
            for (int i = 1; i <= rounds; i++)
            {
                byte vector = (byte)(0x30 + 0x20 * t);
                Assert.Equal(1, chip.Bus.Deliver(null, new LapicInterrupt { Vector = vector, Assert = true, Dest = 0 }));
                _ = chip.Bus.Deliver(null, new LapicInterrupt { Vector = 0xe1, Assert = true, Dest = 0 });
                while (Volatile.Read(ref taken[vector]) < i)
                    spin.SpinOnce();
            }
        })).ToArray();
        Task all = Task.WhenAll(tasks);
        var clock = Stopwatch.StartNew();
        bool lost = false;
        while (!all.IsCompleted && !lost)
        {
            int vector = apic.AckInterrupt();
            if (vector >= 0)
            {
                apic.SetEoi();
                Interlocked.Increment(ref taken[vector]);
            }
            else if (!vcpu.Wake.Wait(2000) && apic.HasInterrupt())
            {
                lost = true;
            }
        }
        Assert.False(lost, "a vector waits in IRR and nobody was told");
        await all;
        for (int t = 0; t < senders; t++)
            Assert.Equal(rounds, taken[0x30 + 0x20 * t]);
        Assert.True(clock.Elapsed < TimeSpan.FromSeconds(60));
    }

    /// <summary>Senders raise edges of IOAPIC pins and change destinations while the map is rebuilt: every acceptance is taken by exactly one vCPU.</summary>
    [Fact]
    public async Task Delivery_SurvivesMapChanges()
    {
        var rig = new Rig(4);
        for (int i = 0; i < 4; i++)
            rig.Write(i, ApicRegister.LDR, 1u << (24 + i));
        using var stop = new CancellationTokenSource();
        Task churn = Task.Run(() =>
        {
            for (uint i = 0; !stop.IsCancellationRequested; i++)
                rig.Write(3, ApicRegister.LDR, (i & 1) << 31);
        });
        int accepted = 0, taken = 0;
        for (int i = 0; i < 20_000; i++)
        {
            accepted += Math.Max(0, rig.Chip.Bus.Deliver(null, new LapicInterrupt { Vector = 0x41, Logical = true, Assert = true, Dest = 0x7 }));
            for (int v = 0; v < 4; v++)
                while (rig.Apics[v].AckInterrupt() >= 0)
                {
                    taken++;
                    rig.Apics[v].SetEoi();
                }
        }
        await stop.CancelAsync();
        await churn;
        Assert.Equal(60_000, accepted);
        Assert.Equal(accepted, taken);
    }
}
