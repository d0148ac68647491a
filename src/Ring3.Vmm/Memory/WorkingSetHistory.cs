using Ring3.Arch;
using Ring3.Host;
using Ring3.Reclaim;

namespace Ring3.Vmm;

/// <summary>How the working set of a machine developed: a column for each moment, a row for each piece of guest memory. When there are too many columns every
/// other one is dropped and moments come half as often.</summary>
/// <remarks>One thread adds; reading is for afterwards.</remarks>
public sealed class WorkingSetHistory
{
    /// <summary>Rows of a column, at most, and columns.</summary>
    public const int MaxRows = 256, MaxColumns = 800;

    /// <summary>Heat of a row none of whose pages was ever used, and of one whose used pages are all evicted. From there up to <see cref="Hottest"/>: mean over
    /// its used pages.</summary>
    public const byte Untouched = 0, Coldest = 1, Hottest = 255;

    /// <summary>One moment. Sizes in bytes; Active: pages used since the last pass but one.</summary>
    public readonly record struct Moment(double Seconds, byte[] Heat, ulong Resident, ulong Active, long Refaults);

    private readonly ulong _hva, _pages;
    private readonly long _startNs = HostClock.MonotonicNs();
    private readonly byte[] _ages;
    private int _skip, _skipped;

    public WorkingSetHistory(MachineRam ram, ulong? limit)
    {
        (_hva, _pages, Limit) = (ram.HostRange.Start, ram.HostRange.Bytes >> Page.Shift, limit);
        Rows = (int)Math.Min(MaxRows, _pages);
        (MemoryBytes, LowRamEnd) = (ram.Bytes, ram.LowRamEnd);
        _ages = new byte[_pages / (ulong)Rows + 1];
    }

    public int Rows { get; }
    public ulong MemoryBytes { get; }
    /// <summary>Memory beyond this many bytes is at 4 GiB and above.</summary>
    public ulong LowRamEnd { get; }
    /// <summary>The resident limit in bytes; null: none.</summary>
    public ulong? Limit { get; }
    public List<Moment> Moments { get; } = [];

    /// <summary>First page of a row.</summary>
    private ulong FirstPage(int row) => _pages * (ulong)row / (ulong)Rows;

    /// <summary>Notes the present state.</summary>
    public void Add(ResidentLimit limit)
    {
        if (_skipped++ < _skip)
            return;
        _skipped = 0;
        byte[] heat = new byte[Rows];
        for (int row = 0; row < Rows; row++)
        {
            ulong first = FirstPage(row);
            Span<byte> ages = _ages.AsSpan(0, (int)(FirstPage(row + 1) - first));
            heat[row] = limit.ReadAges(_hva + (first << Page.Shift), ages) ? HeatOf(ages) : Untouched;
        }
        WorkingSet set = limit.Measure();
        ulong active = set.Generations[0].Bytes + (set.Generations.Count > 1 ? set.Generations[1].Bytes : 0);
        Moments.Add(new Moment((HostClock.MonotonicNs() - _startNs) / 1e9, heat, (ulong)Math.Max(0, set.ResidentPages) << Page.Shift, active, set.Refaults));
        if (Moments.Count == MaxColumns)
            Halve();
    }

    private static byte HeatOf(ReadOnlySpan<byte> ages)
    {
        const int Generations = 8;
        int used = 0, sum = 0;
        foreach (byte age in ages)
        {
            if (age == ResidentLimit.Untouched)
                continue;
            used++;
            sum += age == ResidentLimit.Evicted ? 0 : Generations - Math.Min(age, (byte)(Generations - 1));
        }
        return used == 0 ? Untouched : (byte)(Coldest + (Hottest - Coldest) * sum / (used * Generations));
    }

    private void Halve()
    {
        for (int i = 0; i < MaxColumns / 2; i++)
            Moments[i] = Moments[2 * i];
        Moments.RemoveRange(MaxColumns / 2, MaxColumns / 2);
        _skip = 2 * _skip + 1;
    }
}
