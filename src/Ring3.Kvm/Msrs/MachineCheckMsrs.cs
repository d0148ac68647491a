using Ring3.Abi;
using Ring3.Arch;

// SAFETY: banks are managed arrays, bounded by the runtime; the core's pointers are not used here.
namespace Ring3.Kvm;

/// <summary>Machine-check banks, and the errors that the client puts into them. SPEC: SDM volume 3, "Machine-Check Architecture".</summary>
internal sealed class MachineCheckMsrs(VcpuCore core, PlatformMsrs platform, VcpuEvents events) : VcpuPart(core)
{
    public const int MaxBanks = 32;
    /// <summary>
    /// KVM_X86_GET_MCE_CAP_SUPPORTED: MCG_CTL, corrected-error interrupts and software error recovery. A guest has of them what the client sets up.
    /// </summary>
    public const ulong SupportedCapability = CtlPresent | CmciPresent | 1 << 24;
    private const ulong CtlPresent = 1 << 8, CmciPresent = 1 << 10;
    private const ulong Valid = 1UL << 63, Overflow = 1UL << 62, Uncorrected = 1UL << 61, ContextCorrupt = 1UL << 57, Signalled = 1UL << 56,
        ActionRequired = 1UL << 55;
    private const ulong CmciEnable = 1 << 30, CmciThreshold = 0x7fff, InProgress = 4;
    /// <summary>IA32_MC0_CTL2; one for each bank follows.</summary>
    private const uint Ctl2 = 0x280;

    /// <summary>What an injected error does besides being recorded.</summary>
    private enum Signal { None, Cmci, MachineCheck, TripleFault }

    private readonly PlatformMsrs _platform = platform;
    private readonly VcpuEvents _events = events;
    /// <summary>Of each bank CTL, STATUS, ADDR and MISC; and its CTL2.</summary>
    private readonly ulong[] _banks = new ulong[MaxBanks * 4], _ctl2 = new ulong[MaxBanks];
    private ulong _capability = MaxBanks, _status, _control;

    public static MsrRegister[] Registers { get; } =
    [
        new(Msr.MCG_CAP) { Read = (m, _) => m.MachineCheck._capability },
        new(Msr.MCG_STATUS) { Listed = MsrListing.Always, Read = (m, _) => m.MachineCheck._status, Write = (m, _, v) => m.MachineCheck.WriteStatus(v) },
        new(Msr.MCG_CTL)
        {
            Read = (m, a) => m.MachineCheck.HasControl || a.Host ? m.MachineCheck._control : null,
            Write = (m, a, v) => m.MachineCheck.WriteControl(v, a.Host),
        },
        new(Ctl2, MaxBanks) { Read = (m, a) => m.MachineCheck.ReadCtl2(a), Write = (m, a, v) => m.MachineCheck.WriteCtl2(a, v) },
        new(Msr.MC0_CTL, MaxBanks * 4) { Read = (m, a) => m.MachineCheck.ReadBank(a.Index), Write = (m, a, v) => m.MachineCheck.WriteBank(a, v) },
    ];

    private int BankCount => (int)(_capability & 0xff);
    private bool HasControl => (_capability & CtlPresent) != 0;
    private bool HasCmci => (_capability & CmciPresent) != 0;

    private ulong? ReadCtl2(MsrAccess a) => a.Index - Ctl2 < (uint)BankCount && (HasCmci || a.Host) ? _ctl2[a.Index - Ctl2] : null;

    private bool WriteCtl2(MsrAccess a, ulong value)
    {
        if (a.Index - Ctl2 >= (uint)BankCount || !HasCmci && (value != 0 || !a.Host) || (value & ~(CmciEnable | CmciThreshold)) != 0)
            return false;
        _ctl2[a.Index - Ctl2] = value;
        return true;
    }

    private bool WriteControl(ulong value, bool host)
    {
        // All ones or all zeros.
        if (!HasControl && (value != 0 || !host) || value + 1 > 1)
            return false;
        _control = value;
        return true;
    }

    private bool WriteStatus(ulong value)
    {
        _status = value;
        return true;
    }

    private ulong? ReadBank(uint msr) => msr - Msr.MC0_CTL < (uint)BankCount * 4 ? _banks[msr - Msr.MC0_CTL] : null;

    private bool WriteBank(MsrAccess a, ulong value)
    {
        uint offset = a.Index - Msr.MC0_CTL;
        if (offset >= (uint)BankCount * 4)
            return false;
        // MCi_CTL: all ones or all zeros (Linux clears bit 10 of bank 4, and bit 0 of bank 0, on some processors). MCi_STATUS: only clearing, unless HWCR says
        // otherwise.
        if ((offset & 3) == 0 && value != 0 && (value | 1 << 10 | 1) != ulong.MaxValue)
            return false;
        if (!a.Host && (offset & 3) == 1 && value != 0 && !_platform.IsMcStatusWritable)
            return false;
        _banks[offset] = value;
        return true;
    }

    // ---- The client's errors ----

    /// <summary>KVM_X86_SETUP_MCE: 0 or -EINVAL. KVM: before it the banks report no uncorrected error.</summary>
    public int Setup(ulong capability)
    {
        if ((capability & 0xff) is 0 or > MaxBanks || (capability & ~(SupportedCapability | 0xff | 0xff0000)) != 0)
            return -Errno.EINVAL;
        _capability = capability;
        if (HasControl)
            _control = ulong.MaxValue;
        for (int i = 0; i < BankCount; i++)
            (_banks[i * 4], _ctl2[i]) = (ulong.MaxValue, 0);
        if (Lapic is not null)
            Lapic.CmciSupported = HasCmci;
        return 0;
    }

    /// <summary>KVM_X86_SET_MCE: records an error and has the processor do what it does about it. 0 or -EINVAL.</summary>
    public int Inject(in kvm_x86_mce mce)
    {
        int r = Record(mce, out Signal signal);
        switch (signal)
        {
            case Signal.Cmci:
                _ = Lapic?.LocalDeliver(Irqchip.ApicRegister.LVT_CMCI);
                break;
            case Signal.MachineCheck:
                _events.Queue(Vector.MC);
                break;
            case Signal.TripleFault:
                Requests.MakeSelf(VcpuRequest.TripleFault);
                break;
        }
        Requests.MakeSelf(VcpuRequest.Event);
        return r;
    }

    private unsafe int Record(in kvm_x86_mce mce, out Signal signal)
    {
        signal = Signal.None;
        if (mce.bank >= BankCount || (mce.status & Valid) == 0)
            return -Errno.EINVAL;
        Span<ulong> bank = _banks.AsSpan(mce.bank * 4, 4);
        bool uncorrected = (mce.status & Uncorrected) != 0;
        // Uncorrected, no action required: reported as corrected errors are.
        if (uncorrected && mce.mcg_status == 0 && (mce.status & (ContextCorrupt | Signalled | ActionRequired)) == 0)
        {
            Store(bank, mce, mce.status);
            _status = 0;
            signal = HasCmci && (_ctl2[mce.bank] & CmciEnable) != 0 ? Signal.Cmci : Signal.None;
            return 0;
        }
        if (uncorrected && (HasControl && _control != ulong.MaxValue || bank[0] != ulong.MaxValue))
            return 0;
        if (uncorrected && ((_status & InProgress) != 0 || (_s->Cr4 & Cr4.MCE) == 0))
        {
            signal = Signal.TripleFault;
            return 0;
        }
        bool occupied = (bank[1] & Valid) != 0;
        if (!uncorrected && occupied && (bank[1] & Uncorrected) != 0)
        {
            bank[1] |= Overflow;
            return 0;
        }
        Store(bank, mce, occupied ? mce.status | Overflow : mce.status);
        if (!uncorrected)
            return 0;
        _status = mce.mcg_status;
        signal = Signal.MachineCheck;
        return 0;
    }

    private static void Store(Span<ulong> bank, in kvm_x86_mce mce, ulong status) => (bank[1], bank[2], bank[3]) = (status, mce.addr, mce.misc);
}
