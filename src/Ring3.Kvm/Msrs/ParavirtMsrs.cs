using Ring3.Abi;
using Ring3.Arch;
using static Ring3.Abi.KvmPara;

namespace Ring3.Kvm;

/// <summary>
/// KVM's own registers. Each belongs to a paravirtual feature, without which the guest has it not, and the client may write back the 0 that it reads. KVM:
/// Documentation/virt/kvm/x86/msr.rst.
/// </summary>
internal sealed class ParavirtMsrs(
    VcpuCore core, VcpuCpuid cpuid, PvClock clock, StealTime steal, AsyncFaults asyncFaults, ApicPages apicPages, Halting halting) : VcpuPart(core)
{
    private readonly VcpuCpuid _cpuid = cpuid;
    private readonly PvClock _clock = clock;
    private readonly StealTime _steal = steal;
    private readonly ApicPages _apicPages = apicPages;
    private readonly Halting _halting = halting;
    private readonly AsyncFaults _asyncFaults = asyncFaults;

    public static MsrRegister[] Registers { get; } =
    [
        Register(Msr.KVM_WALL_CLOCK, KVM_FEATURE_CLOCKSOURCE, p => p._clock.WallClockMsr, (p, v) => p.SetWallClock(v)),
        Register(Msr.KVM_SYSTEM_TIME, KVM_FEATURE_CLOCKSOURCE, p => p._clock.SystemTimeMsr, (p, v) => p.SetSystemTime(v)),
        Register(Msr.KVM_WALL_CLOCK_NEW, KVM_FEATURE_CLOCKSOURCE2, p => p._clock.WallClockMsr, (p, v) => p.SetWallClock(v)),
        Register(Msr.KVM_SYSTEM_TIME_NEW, KVM_FEATURE_CLOCKSOURCE2, p => p._clock.SystemTimeMsr, (p, v) => p.SetSystemTime(v)),
        Register(Msr.KVM_ASYNC_PF_EN, KVM_FEATURE_ASYNC_PF, p => p._asyncFaults.EnableMsr, (p, v) => p._asyncFaults.TryWriteMsr(v)),
        Register(Msr.KVM_STEAL_TIME, KVM_FEATURE_STEAL_TIME, p => p._steal.StealTimeMsr, (p, v) => p._steal.TryWriteMsr(v)),
        Register(Msr.KVM_PV_EOI_EN, KVM_FEATURE_PV_EOI, p => p._apicPages.PvEoiMsr, (p, v) => p._apicPages.TryWritePvEoiMsr(v)),
        Register(Msr.KVM_POLL_CONTROL, KVM_FEATURE_POLL_CONTROL, p => p._halting.PollControl, (p, v) => p.SetPollControl(v)),
    ];

    private static MsrRegister Register(uint number, int feature, Func<ParavirtMsrs, ulong> read, Func<ParavirtMsrs, ulong, bool> write) => new(number)
    {
        Listed = MsrListing.Always,
        Read = (m, a) => m.Paravirt._cpuid.HasPvFeature(feature) ? read(m.Paravirt) : a.Host ? 0 : null,
        Write = (m, a, v) => m.Paravirt._cpuid.HasPvFeature(feature) ? write(m.Paravirt, v) : a.Host && v == 0,
    };

    private bool SetWallClock(ulong value)
    {
        _clock.WriteWallClock(value);
        return true;
    }

    private bool SetSystemTime(ulong value)
    {
        _clock.WriteSystemTimeMsr(value);
        return true;
    }

    private bool SetPollControl(ulong value)
    {
        if ((value & ~1UL) != 0)
            return false;
        _halting.PollControl = value;
        return true;
    }
}
