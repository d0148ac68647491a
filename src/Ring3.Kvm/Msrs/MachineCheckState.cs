using Ring3.Abi;
using Ring3.Arch;

namespace Ring3.Kvm;

/// <summary>Machine-check banks. SPEC: SDM volume 3, "Machine-Check Architecture".</summary>
internal sealed class MachineCheckState
{
    public const int MaxBanks = 32, DefaultBanks = 10;
    /// <summary>KVM_X86_GET_MCE_CAP_SUPPORTED: MCG_CTL and software error recovery.</summary>
    public const ulong SupportedCapability = 1 << 8 | 1 << 24;
    private const ulong CtlPresent = 1 << 8;

    private readonly ulong[] _banks = new ulong[MaxBanks * 4];
    private ulong _capability = DefaultBanks, _status, _control = ulong.MaxValue;

    public MachineCheckState()
    {
        for (int i = 0; i < MaxBanks; i++)
            _banks[i * 4] = ulong.MaxValue;
    }

    public int BankCount => (int)(_capability & 0xff);
    public ulong Capability => _capability;

    /// <summary>KVM_X86_SETUP_MCE: 0 or -EINVAL.</summary>
    public int Setup(ulong capability)
    {
        if ((capability & 0xff) is 0 or >= MaxBanks || (capability & ~(SupportedCapability | 0xff | 0xff0000)) != 0)
            return -Errno.EINVAL;
        _capability = capability;
        return 0;
    }

    public bool TryRead(uint msr, out ulong value)
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
                return (_capability & CtlPresent) != 0;
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
                if ((_capability & CtlPresent) == 0 || value + 1 > 1)
                    return false;
                _control = value;
                return true;
        }
        uint offset = msr - Msr.MC0_CTL;
        if (offset >= (uint)BankCount * 4)
            return false;
        // MCi_CTL: all ones or all zeros (Linux clears bit 10 of bank 4, and bit 0 of bank 0, on some processors). MCi_STATUS: only clearing, unless HWCR says otherwise.
        if (!host && (offset & 3) == 0 && value != 0 && (value | 1 << 10 | 1) != ulong.MaxValue)
            return false;
        if (!host && (offset & 3) == 1 && value != 0 && !statusWritable)
            return false;
        _banks[offset] = value;
        return true;
    }

    /// <summary>KVM_X86_SET_MCE: records an error; true when a machine-check exception has to be delivered.</summary>
    public int Inject(in kvm_x86_mce mce, out bool raise)
    {
        const ulong Valid = 1UL << 63, Overflow = 1UL << 62, Uncorrected = 1UL << 61, InProgress = 4;
        raise = false;
        if (mce.bank >= BankCount || (mce.status & Valid) == 0)
            return -Errno.EINVAL;
        ulong status = mce.status;
        Span<ulong> bank = _banks.AsSpan(mce.bank * 4, 4);
        if ((bank[1] & Valid) != 0)
            status |= Overflow;
        raise = (status & Uncorrected) != 0;
        if (!raise && (bank[1] & Uncorrected) != 0)
            return 0;
        (bank[1], bank[2], bank[3]) = (status, mce.addr, mce.misc);
        if (raise)
            _status = mce.mcg_status | InProgress;
        return 0;
    }
}
