using Ring3.Abi;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>
/// The VM's clocks: kvmclock (nanoseconds since the VM was created, unless set), and the common base of the vCPUs' TSCs.
/// When the host's TSC is invariant, all vCPUs publish one pair (host TSC, time) — the master clock — so that their pages agree
/// and guests may read any of them.
/// </summary>
public sealed class VmClock
{
    private readonly VcpuList _vcpus;
    private readonly RankedLock _lock = new(LockRank.VmClock);
    private long _offsetNs;
    private ulong _masterTsc;
    private long _masterNs;
    private long _lastTscWriteNs;
    private ulong _lastTscWrite, _lastTscOffset, _currentTscOffset;
    private uint _lastTscKhz;
    private bool _tscSetByClient;

    internal VmClock(VcpuList vcpus, uint tscKhz)
    {
        _vcpus = vcpus;
        DefaultTscKhz = tscKhz;
        _offsetNs = -HostClock.BootNs();
        Resample();
    }

    /// <summary>TSC frequency of new vCPUs, in kHz (KVM_SET_TSC_KHZ on the VM).</summary>
    public uint DefaultTscKhz { get; private set; }

    /// <summary>Whether pages carry PVCLOCK_TSC_STABLE_BIT.</summary>
    internal static bool IsStable => HostTsc.IsInvariant;

    /// <summary>KVM_SET_TSC_KHZ on the VM: 0 or -EINVAL. For vCPUs created later.</summary>
    public int SetTscKhz(uint khz)
    {
        if (khz == 0)
            khz = HostTsc.Khz;
        if (!IsPossible(khz))
            return -Errno.EINVAL;
        DefaultTscKhz = khz;
        return 0;
    }

    internal static bool IsPossible(uint khz) => khz is >= 1000 and < 1u << 31 && khz / (double)HostTsc.Khz is < 4096 and > 1e-6;

    /// <summary>kvmclock now, in nanoseconds.</summary>
    internal long NowNs
    {
        get
        {
            using (_lock.Enter())
                return IsStable ? _masterNs + HostTicksToNs(HostClock.Tsc() - _masterTsc) : HostClock.BootNs() + _offsetNs;
        }
    }

    private static long HostTicksToNs(ulong ticks) => (long)((UInt128)ticks * 1_000_000 / HostTsc.Khz);

    /// <summary>The pair that clock pages are made from.</summary>
    internal (ulong HostTsc, long Ns) Master
    {
        get
        {
            if (IsStable)
                using (_lock.Enter())
                    return (_masterTsc, _masterNs);
            (ulong tsc, long boot) = HostClock.BootWithTsc();
            return (tsc, boot + Volatile.Read(ref _offsetNs));
        }
    }

    private void Resample()
    {
        (ulong tsc, long boot) = HostClock.BootWithTsc();
        (_masterTsc, _masterNs) = (tsc, boot + _offsetNs);
    }

    /// <summary>KVM_GET_CLOCK.</summary>
    public kvm_clock_data Get()
    {
        using (_lock.Enter())
        {
            if (!IsStable)
                return new()
                {
                    clock = (ulong)(HostClock.BootNs() + _offsetNs),
                    flags = KVM_CLOCK_REALTIME,
                    realtime = (ulong)HostClock.RealtimeNs(),
                    host_tsc = HostClock.Tsc(),
                };
            (ulong tsc, long realtime) = HostClock.RealtimeWithTsc();
            long now = _masterNs + HostTicksToNs(tsc - _masterTsc);
            const uint Stable = KVM_CLOCK_REALTIME | KVM_CLOCK_TSC_STABLE | KVM_CLOCK_HOST_TSC;
            return new() { clock = (ulong)now, flags = Stable, realtime = (ulong)realtime, host_tsc = tsc };
        }
    }

    /// <summary>KVM_SET_CLOCK: 0 or -EINVAL. With KVM_CLOCK_REALTIME the clock continues as if it had run since data.realtime.</summary>
    public int Set(in kvm_clock_data data)
    {
        if ((data.flags & ~(KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC | KVM_CLOCK_TSC_STABLE)) != 0)
            return -Errno.EINVAL;
        using (_lock.Enter())
        {
            // One moment for all: the client's clock begins to run again at the TSC of the pair, however long this thread waits for a processor meanwhile.
            (ulong tsc, long boot) = HostClock.BootWithTsc();
            long clock = (long)data.clock;
            if ((data.flags & KVM_CLOCK_REALTIME) != 0)
            {
                (ulong realTsc, long realtime) = HostClock.RealtimeWithTsc();
                clock += Math.Max(0, realtime - HostTicksToNs(realTsc - tsc) - (long)data.realtime);
            }
            _offsetNs = clock - boot;
            (_masterTsc, _masterNs) = (tsc, clock);
        }
        _vcpus.Make(VcpuRequest.ClockUpdate);
        return 0;
    }

    /// <summary>Answers a MasterClockUpdate request: a new pair for all vCPUs.</summary>
    internal void UpdateMaster()
    {
        using (_lock.Enter())
            Resample();
        _vcpus.Make(VcpuRequest.ClockUpdate);
    }

    /// <summary>
    /// Offset for a vCPU that is created (<paramref name="value"/> is null: its TSC starts at 0) or whose TSC the client sets. Clients set the TSCs of all
    /// vCPUs one after the other, which would leave them apart by the time in between: a value within a second of what the last one set would be by now joins
    /// it, and so does 0. The first value that a client sets joins nothing: it is not compared with what the creation of a vCPU left.
    /// </summary>
    internal ulong SynchronizeTsc(ulong? value, uint khz, ulong multiplier)
    {
        using (_lock.Enter())
        {
            long now = HostClock.BootNs();
            ulong tsc = value ?? 0;
            bool joins = tsc == 0 || _tscSetByClient && IsWithinASecond(tsc, now, khz);
            _tscSetByClient |= value is not null;
            if (joins && khz == _lastTscKhz)
                return Record(_currentTscOffset, tsc, now, khz);
            return _currentTscOffset = Record(tsc - PvClockScale.Scale(HostClock.Tsc(), multiplier), tsc, now, khz);
        }
    }

    /// <summary>KVM_VCPU_TSC_OFFSET: vCPUs whose TSC is set later join this one.</summary>
    internal void TscOffsetSet(ulong offset, uint khz, ulong multiplier)
    {
        using (_lock.Enter())
        {
            bool matches = khz == _lastTscKhz && offset == _lastTscOffset;
            Record(offset, PvClockScale.Scale(HostClock.Tsc(), multiplier) + offset, HostClock.BootNs(), khz);
            if (!matches)
                _currentTscOffset = offset;
        }
    }

    private bool IsWithinASecond(ulong tsc, long now, uint khz)
    {
        ulong expected = _lastTscWrite + (ulong)((UInt128)(ulong)(now - _lastTscWriteNs) * khz / 1_000_000), second = khz * 1000UL;
        return tsc < expected + second && tsc + second > expected;
    }

    private ulong Record(ulong offset, ulong tsc, long now, uint khz)
    {
        (_lastTscOffset, _lastTscWrite, _lastTscWriteNs, _lastTscKhz) = (offset, tsc, now, khz);
        return offset;
    }
}
