using System.Buffers.Binary;

namespace Ring3.Irqchip;

// KVM_GET_LAPIC and KVM_SET_LAPIC: struct kvm_lapic_state, the register page of 0x400 bytes.
public sealed partial class Lapic
{
    /// <summary>Size of struct kvm_lapic_state.</summary>
    public const int StateSize = 0x400;

    /// <summary>Writes the register page. The vCPU is not running.</summary>
    /// <param name="page">Destination, <see cref="StateSize"/> bytes.</param>
    /// <param name="x2ApicFormat">KVM_X2APIC_API_USE_32BIT_IDS: the id register holds 32 bits in x2APIC mode; else bits 31:24 hold the low byte.</param>
    public void GetState(Span<byte> page, bool x2ApicFormat = false)
    {
        PollTimer();
        page[..StateSize].Clear();
        for (int offset = 0; offset < StateSize; offset += 16)
            BinaryPrimitives.WriteUInt32LittleEndian(page[offset..], ReadRegister(offset));
        BinaryPrimitives.WriteUInt32LittleEndian(page[ApicRegister.VERSION..], ReadRegister(ApicRegister.VERSION));
        if (_mode == ApicMode.X2Apic && !x2ApicFormat)
            BinaryPrimitives.WriteUInt32LittleEndian(page[ApicRegister.ID..], Reg(ApicRegister.ID) << 24);
    }

    /// <summary>Loads the register page; IA32_APIC_BASE must have been set before. The vCPU is not running. False: EINVAL (wrong x2APIC id).</summary>
    public bool SetState(ReadOnlySpan<byte> page, bool x2ApicFormat = false)
    {
        uint id = BinaryPrimitives.ReadUInt32LittleEndian(page[ApicRegister.ID..]);
        if (_mode == ApicMode.X2Apic)
        {
            if (x2ApicFormat && id != Id)
                return false;
            id = Id;
        }
        StopTimer();
        for (int offset = 0; offset < StateSize; offset += 16)
            Reg(offset) = BinaryPrimitives.ReadUInt32LittleEndian(page[offset..]);
        for (int i = 0; i < 8; i++)
        {
            _isr.SetWord(i, Reg(ApicRegister.ISR + i * 16));
            _tmr.SetWord(i, Reg(ApicRegister.TMR + i * 16));
            _irr.SetWord(i, Reg(ApicRegister.IRR + i * 16));
        }
        Reg(ApicRegister.ID) = id;
        if (_mode == ApicMode.X2Apic)
            Reg(ApicRegister.LDR) = X2ApicLogicalId(Id);
        Reg(ApicRegister.TPR) &= 0xff;
        Reg(ApicRegister.ICR) &= ~ApicBits.IcrBusy;
        _softwareEnabled = (Reg(ApicRegister.SVR) & ApicBits.SvrEnable) != 0;
        _highestIsr = _isr.Highest();
        RestoreTimer(BinaryPrimitives.ReadUInt32LittleEndian(page[ApicRegister.TMCCT..]));
        _ppr = 0;
        UpdatePpr();
        Volatile.Write(ref _irrPending, true);
        _bus.Recalculate();
        _bus.RestoreInService(this);
        _sink.InterruptPending();
        return true;
    }

    private void RestoreTimer(uint currentCount)
    {
        using (_timerLock.Enter())
        {
            _timerMode = Reg(ApicRegister.LVT_TIMER) & ApicBits.LvtTimerMode;
            UpdateDivider();
            if (_timerMode == ApicBits.LvtTimerDeadline)
                return;
            long period = PeriodOf(Reg(ApicRegister.TMICT)), remaining = PeriodOf(currentCount);
            if (remaining == 0 && _timerMode != ApicBits.LvtTimerPeriodic)
            {
                // A one-shot timer that had already expired.
                _periodNs = period;
                return;
            }
            StartCounting(remaining == 0 || remaining > period ? period : remaining);
        }
    }

    /// <summary>Whether the vector is requested or in service; for KVM's RTC coalescing after a restore.</summary>
    internal bool IsPendingOrInService(byte vector) => _irr.Test(vector) || _isr.Test(vector);
}
