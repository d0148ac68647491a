namespace Ring3.Kvm;

/// <summary>Hyper-V's MSRs, for a guest to which the client shows Hyper-V.</summary>
internal sealed class HypervMsrs(VcpuCore core, HypervPort port) : VcpuPart(core)
{
    private const uint GUEST_OS_ID = 0x4000_0000, HYPERCALL = 0x4000_0001;

    private readonly HypervPort _port = port;

    public static MsrRegister[] Registers { get; } =
    [
        new(GUEST_OS_ID)
        {
            Read = (m, _) => m.Hyperv._port.IsShown ? m.Hyperv.Vm.Hyperv.GuestOsId : null,
            Write = (m, _, v) => m.Hyperv._port.IsShown && m.Hyperv.SetGuestOsId(v),
        },
        new(HYPERCALL)
        {
            Read = (m, _) => m.Hyperv._port.IsShown ? m.Hyperv._port.HypercallMsr : null,
            Write = (m, _, v) => m.Hyperv._port.IsShown && m.Hyperv._port.TryWriteHypercallMsr(v),
        },
    ];

    /// <summary>The register is there: its number is not Xen's to use.</summary>
    public bool Has(uint msr) => msr is GUEST_OS_ID or HYPERCALL && _port.IsShown;

    private bool SetGuestOsId(ulong value)
    {
        _port.WriteGuestOsId(value);
        return true;
    }
}
