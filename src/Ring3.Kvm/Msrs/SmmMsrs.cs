using Ring3.Arch;

namespace Ring3.Kvm;

/// <summary>System management mode.</summary>
internal sealed class SmmMsrs(SystemManagement smm)
{
    private const uint SMI_COUNT = 0x34;

    private readonly SystemManagement _smm = smm;

    public static MsrRegister[] Registers { get; } =
    [
        new(Msr.SMBASE) { Listed = MsrListing.Always, Read = (m, a) => a.Host ? m.Smm._smm.Smbase : null, Write = (m, a, v) => a.Host && m.Smm.SetSmbase(v) },
        new(SMI_COUNT) { Listed = MsrListing.Always, Read = (m, _) => m.Smm._smm.SmiCount, Write = (m, a, v) => a.Host && m.Smm.SetSmiCount(v) },
    ];

    private bool SetSmbase(ulong value)
    {
        _smm.Smbase = value;
        return true;
    }

    private bool SetSmiCount(ulong value)
    {
        _smm.SmiCount = value;
        return true;
    }
}
