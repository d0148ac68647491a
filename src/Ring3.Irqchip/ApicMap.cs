using System.Numerics;

namespace Ring3.Irqchip;

/// <summary>
/// Destination map of all local APICs: an immutable snapshot, published by reference and read without a lock. A destination resolves to a window of one of its
/// tables: the entries whose bit is set in a mask, from a start index. Irregular set-ups (duplicate ids, several bits in a flat logical id, mixed modes) have
/// no window; they are matched one by one.
/// </summary>
internal sealed class ApicMap
{
    private enum LogicalModel { None, Flat, Cluster, X2Apic, Irregular }

    /// <summary>All local APICs by vCPU index order.</summary>
    internal readonly Lapic[] All;
    private readonly Lapic?[] _physical;
    private readonly Lapic?[] _logical = new Lapic?[64];
    private readonly LogicalModel _model;
    private readonly bool _irregularIds;
    private const int ClusterWidth = 4;

    internal ApicMap(Lapic[] all)
    {
        All = all;
        uint max = 255;
        foreach (Lapic apic in all)
            max = Math.Max(max, apic.Id);
        _physical = new Lapic?[(max | 15) + 1];
        foreach (Lapic apic in all)
        {
            if (!apic.HardwareEnabled)
                continue;
            _irregularIds |= !AddPhysical(apic);
            AddLogical(apic, ref _model);
        }
    }

    private bool AddPhysical(Lapic apic)
    {
        // A vCPU whose id does not fit the 8 bits of an xAPIC id answers to its full id in either mode.
        uint id = apic.X2ApicEnabled || apic.Id > 0xff ? apic.Id : apic.XApicId;
        if (_physical[id] is not null)
            return false;
        _physical[id] = apic;
        return true;
    }

    private void AddLogical(Lapic apic, ref LogicalModel model)
    {
        uint ldr = apic.LogicalId;
        if (ldr == 0)
            return;
        LogicalModel mine = apic.X2ApicEnabled ? LogicalModel.X2Apic : apic.FlatModel ? LogicalModel.Flat : LogicalModel.Cluster;
        if (model == LogicalModel.None)
            model = mine;
        if (model != mine)
        {
            model = LogicalModel.Irregular;
            return;
        }
        if (mine == LogicalModel.X2Apic)
            return;
        ldr >>= 24;
        uint bits = mine == LogicalModel.Flat ? ldr : ldr & 0xf;
        uint start = mine == LogicalModel.Flat ? 0 : (ldr >> 4) * ClusterWidth;
        if (bits == 0)
            return;
        if (!BitOperations.IsPow2(bits) || _logical[start + (uint)BitOperations.TrailingZeroCount(bits)] is not null)
            model = LogicalModel.Irregular;
        else
            _logical[start + (uint)BitOperations.TrailingZeroCount(bits)] = apic;
    }

    /// <summary>Resolves a destination without shorthand that is not a broadcast. False: match every APIC by <see cref="Matches"/>.</summary>
    internal bool TryGetWindow(in LapicInterrupt irq, out ReadOnlySpan<Lapic?> window, out uint mask)
    {
        uint dest = irq.Dest;
        window = default;
        mask = 0;
        if (!irq.Logical)
        {
            if (dest < (uint)_physical.Length)
            {
                window = _physical.AsSpan((int)dest, 1);
                mask = 1;
            }
            return !_irregularIds;
        }
        switch (_model)
        {
            case LogicalModel.None:
                return true;
            case LogicalModel.Flat:
                window = _logical.AsSpan(0, 8);
                mask = dest & 0xff;
                return dest <= 0xff;
            case LogicalModel.Cluster:
                window = _logical.AsSpan((int)(dest >> 4 & 15) * ClusterWidth, ClusterWidth);
                mask = dest & 0xf;
                return dest < 0xf0;
            case LogicalModel.X2Apic:
                ulong start = (dest >> 16) * 16UL;
                if (start < (uint)_physical.Length)
                {
                    window = _physical.AsSpan((int)start, 16);
                    mask = dest & 0xffff;
                }
                return !_irregularIds;
            default:
                return false;
        }
    }

    /// <summary>Whether one APIC matches a destination that is not a broadcast. SPEC: SDM volume 3, "Determining IPI Destination".</summary>
    internal static bool Matches(Lapic apic, in LapicInterrupt irq)
    {
        if (!apic.HardwareEnabled)
            return false;
        uint dest = irq.Dest, ldr = apic.LogicalId;
        if (!irq.Logical)
            return apic.X2ApicEnabled || apic.Id > 0xff && dest == apic.Id ? dest == apic.Id : dest == apic.XApicId;
        if (apic.X2ApicEnabled)
            return ldr >> 16 == dest >> 16 && (ldr & dest & 0xffff) != 0;
        ldr >>= 24;
        if (dest == 0xff)
            return true;
        return apic.FlatModel ? (ldr & dest) != 0 : ldr >> 4 == dest >> 4 && (ldr & dest & 0xf) != 0;
    }
}
