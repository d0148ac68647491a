namespace Ring3.Memory.Tests;

public class MmuNotifierTests : IDisposable
{
    private const long Minute = 60_000_000_000;
    private readonly MemorySlots _slots = new();
    private readonly GuestRam _ram = new(0x10000);

    public MmuNotifierTests() => _slots.SetRegion(0, 0, 0, 0x10000, _ram.Hva);

    public void Dispose() => _ram.Dispose();

    [Fact]
    public void AwaitEnd_WithNothingInProgress_DoesNotWait()
    {
        Assert.False(_slots.Notifier.AwaitEnd(Minute));
        _slots.Notifier.InvalidateRangeStart(_ram.Hva, _ram.Hva + 0x1000);
        _slots.Notifier.InvalidateRangeEnd(_ram.Hva, _ram.Hva + 0x1000);
        Assert.False(_slots.Notifier.AwaitEnd(Minute));
    }

    [Fact]
    public void AwaitEnd_IsWokenByTheEnd_NotByTheClock()
    {
        MmuNotifier notifier = _slots.Notifier;
        for (int round = 0; round < 200; round++)
        {
            Assert.True(notifier.InvalidateRangeStart(_ram.Hva, _ram.Hva + 0x1000));
            using var asleep = new ManualResetEventSlim();
            var thread = new Thread(() =>
            {
                asleep.Set();
                notifier.AwaitEnd(Minute);
            });
            thread.Start();
            asleep.Wait();
            // Every other round lets the end meet a thread that is about to sleep.
            if (round % 2 == 0)
                Thread.SpinWait(round * 50);
            notifier.InvalidateRangeEnd(_ram.Hva, _ram.Hva + 0x1000);
            Assert.True(thread.Join(TimeSpan.FromSeconds(30)), $"round {round}: the end woke nobody");
        }
    }

    [Fact]
    public void AwaitEnd_EndsWithItsTime()
    {
        _slots.Notifier.InvalidateRangeStart(_ram.Hva, _ram.Hva + 0x1000);
        Assert.True(_slots.Notifier.AwaitEnd(1_000_000));
        _slots.Notifier.InvalidateRangeEnd(_ram.Hva, _ram.Hva + 0x1000);
    }
}
