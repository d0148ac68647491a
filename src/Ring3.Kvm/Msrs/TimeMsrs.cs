using Ring3.Arch;

namespace Ring3.Kvm;

/// <summary>The time-stamp counter and the deadline that the local APIC compares with it.</summary>
internal sealed class TimeMsrs(VcpuCore core, VcpuTsc tsc) : VcpuPart(core)
{
    private readonly VcpuTsc _tsc = tsc;

    public static MsrRegister[] Registers { get; } =
    [
        new(Msr.TSC) { Listed = MsrListing.Always, Read = (m, _) => m.Time._tsc.Now(), Write = (m, a, v) => m.Time.SetTsc(v, a.Host) },
        new(Msr.TSC_ADJUST) { Listed = MsrListing.Always, Read = (m, _) => m.Time._tsc.Adjust, Write = (m, a, v) => m.Time.SetAdjust(v, a.Host) },
        new(Msr.TSC_DEADLINE)
        {
            Listed = MsrListing.Always,
            Read = (m, a) => m.Time.Lapic is { } lapic ? lapic.TscDeadline : a.Host ? 0 : null,
            Write = (m, a, v) => m.Time.TrySetDeadline(v) || a.Host,
        },
    ];

    private bool SetTsc(ulong value, bool host)
    {
        _tsc.Write(value, host);
        return true;
    }

    private bool SetAdjust(ulong value, bool host)
    {
        _tsc.WriteAdjust(value, host);
        return true;
    }

    private bool TrySetDeadline(ulong value)
    {
        if (Lapic is null)
            return false;
        Lapic.TscDeadline = value;
        return true;
    }
}
