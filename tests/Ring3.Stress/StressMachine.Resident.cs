using Ring3.Memory;
using Ring3.Reclaim;

namespace Ring3.Stress;

// The resident limit of some rounds, and who changes it.
internal sealed partial class StressMachine
{
    /// <summary>A page's label changes before the counts do: each thread may be a page or two off.</summary>
    private const long CountSlack = 2 * Layout.MaxCpus + 8;

    private ResidentLimit? _limit;

    private string ResidentSummary => _limit?.Measure() is { } w
        ? $"; limit {(w.Limit == ulong.MaxValue ? "lifted" : $"{w.Limit >> 10} KiB")}, {w.PeakPages} pages at most, {w.Evictions} evictions"
            + $" ({w.Writes} written), {w.Refaults} refaults, {w.DirectReclaims} direct reclaims, {w.AgingPasses} aging passes, {w.Failures} failures" : "";

    /// <summary>Limits all data, and for every second seed also code, page tables and counters. Aging every 1 to 50 ms, with and without a flush.</summary>
    private void StartLimit()
    {
        var random = new Random(_settings.Seed ^ 0x5e5e);
        var ranges = new List<HvaRange>();
        foreach (GuestRam ram in _regions)
            ranges.Add(new HvaRange(ram.Hva, ram.Hva + ram.Size));
        if (random.Next(2) == 0)
            ranges.Add(new HvaRange(_fixed.Hva, _fixed.Hva + _fixed.Size));
        var options = new ResidentOptions { AgingIntervalMs = 1 + random.Next(50), FlushWhenAging = random.Next(4) != 0, Warning = Fail };
        _limit = _vm.LimitResident(RandomLimit(random), ranges, options);
    }

    /// <summary>From the least that is allowed to what the data needs.</summary>
    private ulong RandomLimit(Random random) => ResidentLimit.MinBytes(_vcpus.Length)
        + (ulong)random.Next((int)(Layout.RegionBytes * Layout.Regions >> 21)) * Layout.Page * 128;

    /// <summary>
    /// The limit falls, rises and is lifted, passes come early, and some or all pages leave, while slots move, guests write and logs are collected.
    /// </summary>
    private void Squeeze()
    {
        var random = new Random(_settings.Seed ^ 0x3c3c);
        while (!_stop && _limit is { } limit)
        {
            switch (random.Next(8))
            {
                case 0: limit.Bytes = ulong.MaxValue; break;
                case 1 or 2: limit.Bytes = RandomLimit(random); break;
                case 3: limit.EvictTo(0); break;
                case 4: limit.EvictTo((ulong)random.Next((int)Layout.DataPages) * Layout.Page); break;
                case 5: limit.Age(); break;
                case 6: CheckCounts(limit.Measure()); break;
                default: break;
            }
            Thread.Sleep(random.Next(20));
        }
    }

    private void CheckCounts(WorkingSet w)
    {
        const long Pages = (long)(Layout.DataPages + Layout.FixedBytes / Layout.Page);
        if (w.ResidentPages is < -CountSlack or > Pages + CountSlack || w.EvictedPages is < -CountSlack or > Pages + CountSlack)
            Fail($"{w.ResidentPages} pages resident and {w.EvictedPages} evicted of {Pages}");
    }

    /// <summary>What is verified afterwards has been in the store.</summary>
    private void EvictEverything()
    {
        if (_limit is not { } limit)
            return;
        bool done = limit.EvictTo(0);
        WorkingSet w = limit.Measure();
        CheckCounts(w);
        if (!done || w.Evictions == 0 || w.Failures != 0)
        {
            throw new InvalidOperationException(
                $"with nobody using the memory {w.ResidentPages} pages stay resident; {w.Evictions} evictions, {w.Failures} failures");
        }
    }
}
