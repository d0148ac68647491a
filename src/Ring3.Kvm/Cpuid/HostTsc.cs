using System.Runtime.Intrinsics.X86;
using Ring3.Host;

namespace Ring3.Kvm;

/// <summary>
/// Frequency of the host's time-stamp counter. Leaf 0x15 and the hypervisor leaf 0x40000010 say it;
/// where neither does, it is measured against CLOCK_MONOTONIC_RAW.
/// </summary>
internal static class HostTsc
{
    private static readonly Lazy<uint> s_khz = new(() =>
        FromCpuid() is uint khz and not 0 ? khz : HostTimeScale.TscKhz() is uint scale and not 0 ? scale : Measure());

    /// <summary>In kHz.</summary>
    public static uint Khz => s_khz.Value;

    /// <summary>Whether the counter ticks at one rate whatever the host does: then guests may use it as a stable clock.</summary>
    public static bool IsInvariant { get; } = (uint)X86Base.CpuId(unchecked((int)0x8000_0000), 0).Eax >= 0x8000_0007
        && ((uint)X86Base.CpuId(unchecked((int)0x8000_0007), 0).Edx & 1 << 8) != 0;

    private static uint FromCpuid()
    {
        if ((uint)X86Base.CpuId(0, 0).Eax >= 0x15)
        {
            var (den, num, crystal, _) = X86Base.CpuId(0x15, 0);
            if (den != 0 && num != 0 && crystal != 0)
                return (uint)((ulong)(uint)crystal * (uint)num / (uint)den / 1000);
        }
        bool hypervisor = ((uint)X86Base.CpuId(1, 0).Ecx & CpuidBits.Leaf1Ecx.HYPERVISOR) != 0;
        if (hypervisor && (uint)X86Base.CpuId(0x4000_0000, 0).Eax is >= 0x4000_0010 and < 0x4000_ffff)
            return (uint)X86Base.CpuId(0x4000_0010, 0).Eax;
        return 0;
    }

    /// <summary>
    /// Ratio of the two clocks over 2 ms. Each end is known within some 10 ns: 10 parts in a million.
    /// </summary>
    private static uint Measure()
    {
        (ulong tsc0, long ns0) = HostClock.MonotonicRawWithTsc();
        while (HostClock.MonotonicRawNs() - ns0 < 2_000_000)
            Thread.SpinWait(100);
        (ulong tsc1, long ns1) = HostClock.MonotonicRawWithTsc();
        return (uint)((UInt128)(tsc1 - tsc0) * 1_000_000 / (ulong)(ns1 - ns0));
    }
}
