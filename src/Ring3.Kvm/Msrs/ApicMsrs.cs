using Ring3.Arch;

namespace Ring3.Kvm;

/// <summary>IA32_APIC_BASE and the registers of x2APIC.</summary>
internal sealed class ApicMsrs(VcpuCore core, VcpuApic apic) : VcpuPart(core)
{
    private const uint X2ApicTpr = 0x808;

    private readonly VcpuApic _apic = apic;

    public static MsrRegister[] Registers { get; } =
    [
        new(Msr.APIC_BASE) { Read = (m, _) => m.Apic._apic.Base, Write = (m, a, v) => m.Apic._apic.TrySetBase(v, a.Host) },
        new(Msr.X2APIC_FIRST, Msr.X2APIC_LAST - Msr.X2APIC_FIRST + 1)
        {
            IsKnownUnread = true,
            Read = (m, a) => m.Apic.ReadX2Apic(a),
            Write = (m, a, v) => m.Apic.WriteX2Apic(a, v),
        },
    ];

    private ulong? ReadX2Apic(MsrAccess a)
    {
        if (a.Index == X2ApicTpr && !a.Host)
            _apic.NoteTprAccess(write: false);
        return Lapic is { } lapic && lapic.ReadMsr(a.Index, out ulong value) ? value : null;
    }

    private bool WriteX2Apic(MsrAccess a, ulong value)
    {
        if (a.Index == X2ApicTpr && !a.Host)
            _apic.NoteTprAccess(write: true);
        bool done = Lapic is { } lapic && lapic.WriteMsr(a.Index, value);
        _apic.SyncCr8();
        return done;
    }
}
