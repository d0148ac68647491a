using Ring3.Abi;
using Ring3.Arch;

namespace Ring3.Kvm;

/// <summary>Machine-check banks. SPEC: SDM volume 3, "Machine-Check Architecture".</summary>
internal sealed class MachineCheckState
{
    public const int MaxBanks = 32;
    /// <summary>KVM_X86_GET_MCE_CAP_SUPPORTED: MCG_CTL, corrected-error interrupts and software error recovery. A guest has of them what the client sets up.</summary>
    public const ulong SupportedCapability = CtlPresent | CmciPresent | 1 << 24;
    private const ulong CtlPresent = 1 << 8, CmciPresent = 1 << 10;
    private const ulong Valid = 1UL << 63, Overflow = 1UL << 62, Uncorrected = 1UL << 61, ContextCorrupt = 1UL << 57, Signalled = 1UL << 56, ActionRequired = 1UL << 55;
    private const ulong CmciEnable = 1 << 30, CmciThreshold = 0x7fff, InProgress = 4;
    /// <summary>IA32_MC0_CTL2; one for each bank follows.</summary>
    private const uint Ctl2 = 0x280;

    /// <summary>What an injected error does besides being recorded.</summary>
    public enum Signal { None, Cmci, MachineCheck, TripleFault }

    private readonly ulong[] _banks = new ulong[MaxBanks * 4], _ctl2 = new ulong[MaxBanks];
    private ulong _capability = MaxBanks, _status, _control;

    public int BankCount => (int)(_capability & 0xff);
    public ulong Capability => _capability;

    /// <summary>KVM_X86_SETUP_MCE: 0 or -EINVAL. KVM: before it the banks report no uncorrected error.</summary>
    public int Setup(ulong capability)
    {
        if ((capability & 0xff) is 0 or > MaxBanks || (capability & ~(SupportedCapability | 0xff | 0xff0000)) != 0)
            return -Errno.EINVAL;
        _capability = capability;
        if ((capability & CtlPresent) != 0)
            _control = ulong.MaxValue;
        for (int i = 0; i < BankCount; i++)
            (_banks[i * 4], _ctl2[i]) = (ulong.MaxValue, 0);
        return 0;
    }

    public bool HasCmci => (_capability & CmciPresent) != 0;

    /// <summary>False: unknown, or nothing that the guest can read.</summary>
    public bool TryRead(uint msr, bool host, out ulong value)
    {
        value = 0;
        switch (msr)
        {
            case Msr.MCG_CAP:
                value = _capability;
                return true;
            case Msr.MCG_STATUS:
                value = _status;
                return true;
            case Msr.MCG_CTL:
                value = _control;
                return (_capability & CtlPresent) != 0 || host;
        }
        if (msr - Ctl2 < (uint)BankCount)
        {
            value = _ctl2[msr - Ctl2];
            return HasCmci || host;
        }
        if (msr - Msr.MC0_CTL >= (uint)BankCount * 4)
            return false;
        value = _banks[msr - Msr.MC0_CTL];
        return true;
    }

    public bool TryWrite(uint msr, ulong value, bool host, bool statusWritable)
    {
        switch (msr)
        {
            case Msr.MCG_STATUS:
                _status = value;
                return true;
            case Msr.MCG_CTL:
                if ((_capability & CtlPresent) == 0 && (value != 0 || !host) || value + 1 > 1)
                    return false;
                _control = value;
                return true;
        }
        if (msr - Ctl2 < (uint)BankCount)
        {
            if (!HasCmci && (value != 0 || !host) || (value & ~(CmciEnable | CmciThreshold)) != 0)
                return false;
            _ctl2[msr - Ctl2] = value;
            return true;
        }
        uint offset = msr - Msr.MC0_CTL;
        if (offset >= (uint)BankCount * 4)
            return false;
        // MCi_CTL: all ones or all zeros (Linux clears bit 10 of bank 4, and bit 0 of bank 0, on some processors). MCi_STATUS: only clearing, unless HWCR says otherwise.
        if ((offset & 3) == 0 && value != 0 && (value | 1 << 10 | 1) != ulong.MaxValue)
            return false;
        if (!host && (offset & 3) == 1 && value != 0 && !statusWritable)
            return false;
        _banks[offset] = value;
        return true;
    }

    /// <summary>KVM_X86_SET_MCE: records an error and says what the processor does about it. 0 or -EINVAL.</summary>
    /// <param name="enabled">CR4.MCE.</param>
    public int Inject(in kvm_x86_mce mce, bool enabled, out Signal signal)
    {
        signal = Signal.None;
        if (mce.bank >= BankCount || (mce.status & Valid) == 0)
            return -Errno.EINVAL;
        Span<ulong> bank = _banks.AsSpan(mce.bank * 4, 4);
        bool uncorrected = (mce.status & Uncorrected) != 0;
        // Uncorrected, no action required: reported as corrected errors are.
        if (uncorrected && mce.mcg_status == 0 && (mce.status & (ContextCorrupt | Signalled | ActionRequired)) == 0)
        {
            Record(bank, mce, mce.status);
            _status = 0;
            signal = HasCmci && (_ctl2[mce.bank] & CmciEnable) != 0 ? Signal.Cmci : Signal.None;
            return 0;
        }
        if (uncorrected && ((_capability & CtlPresent) != 0 && _control != ulong.MaxValue || bank[0] != ulong.MaxValue))
            return 0;
        if (uncorrected && ((_status & InProgress) != 0 || !enabled))
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
        Record(bank, mce, occupied ? mce.status | Overflow : mce.status);
        if (!uncorrected)
            return 0;
        _status = mce.mcg_status;
        signal = Signal.MachineCheck;
        return 0;
    }

    private static void Record(Span<ulong> bank, in kvm_x86_mce mce, ulong status) => (bank[1], bank[2], bank[3]) = (status, mce.addr, mce.misc);
}
