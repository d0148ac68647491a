using System.Buffers.Binary;

namespace Ring3.Irqchip;

// The register file as the guest sees it through the xAPIC page. SPEC: SDM volume 3, "Local APIC".
public sealed partial class Lapic
{
    /// <summary>Whether an access at <paramref name="gpa"/> is this APIC's: globally enabled and inside its page. In x2APIC mode the page is claimed but
    /// dead.</summary>
    public bool ClaimsMmio(ulong gpa) => HardwareEnabled && (gpa & ~0xfffUL) == BaseRegister.Address;

    /// <summary>Guest read from the xAPIC page at byte <paramref name="offset"/>. Unmapped registers read 0; in x2APIC mode all-ones.</summary>
    public void MmioRead(int offset, Span<byte> data)
    {
        if (_mode != ApicMode.XApic)
        {
            data.Fill(0xff);
            return;
        }
        data.Clear();
        int within = offset & 15;
        if (within + data.Length > 4)
            return;
        if (!IsReadable(offset & 0xff0))
        {
            RaiseError(ApicBits.EsrIllegalRegister);
            return;
        }
        Span<byte> word = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(word, ReadRegister(offset & 0xff0));
        word.Slice(within, data.Length).CopyTo(data);
    }

    /// <summary>Guest write to the xAPIC page. Only aligned 32-bit writes have an effect.</summary>
    public void MmioWrite(int offset, ReadOnlySpan<byte> data)
    {
        if (_mode != ApicMode.XApic || data.Length != 4 || (offset & 15) != 0)
            return;
        WriteXApic(offset & 0xff0, BinaryPrimitives.ReadUInt32LittleEndian(data));
    }

    private bool IsReadable(int offset) => offset switch
    {
        ApicRegister.ID or ApicRegister.VERSION => true,
        >= ApicRegister.TPR and <= ApicRegister.PPR => true,
        ApicRegister.RRD or ApicRegister.LDR or ApicRegister.DFR or ApicRegister.SVR => true,
        >= ApicRegister.ISR and <= ApicRegister.ESR => true,
        ApicRegister.LVT_CMCI => CmciSupported,
        >= ApicRegister.ICR and <= ApicRegister.TMCCT => true,
        ApicRegister.TDCR => true,
        _ => false,
    };

    /// <summary>The value of a readable register.</summary>
    internal uint ReadRegister(int offset) => offset switch
    {
        ApicRegister.VERSION => 0x14u | (uint)(LvtCount - 1) << 16 | (DirectedEoiSupported ? ApicBits.VersionDirectedEoi : 0),
        ApicRegister.APR => 0,
        ApicRegister.PPR => _ppr,
        >= ApicRegister.ISR and < ApicRegister.TMR => _isr.Word(offset >> 4 & 7),
        >= ApicRegister.TMR and < ApicRegister.IRR => _tmr.Word(offset >> 4 & 7),
        >= ApicRegister.IRR and < ApicRegister.ESR => _irr.Word(offset >> 4 & 7),
        ApicRegister.TMCCT => CurrentCount(),
        _ => Reg(offset),
    };

    private void WriteXApic(int offset, uint value)
    {
        switch (offset)
        {
            case ApicRegister.ID:
                Reg(ApicRegister.ID) = value & 0xff00_0000;
                _bus.Recalculate();
                break;
            case ApicRegister.LDR:
                Reg(ApicRegister.LDR) = value & 0xff00_0000;
                _bus.Recalculate();
                break;
            case ApicRegister.DFR:
                Reg(ApicRegister.DFR) = value | 0x0fff_ffff;
                _bus.Recalculate();
                break;
            case ApicRegister.EOI:
                SetEoi();
                break;
            case ApicRegister.ICR:
                Reg(ApicRegister.ICR) = value & ~ApicBits.IcrBusy;
                SendIpi(value, Reg(ApicRegister.ICR2) >> 24);
                break;
            case ApicRegister.ICR2:
                Reg(ApicRegister.ICR2) = value & 0xff00_0000;
                break;
            default:
                if (!WriteCommon(offset, value))
                    RaiseError(ApicBits.EsrIllegalRegister);
                break;
        }
    }

    /// <summary>Registers that behave alike in both modes. False: the register does not exist or is read-only.</summary>
    private bool WriteCommon(int offset, uint value)
    {
        switch (offset)
        {
            case ApicRegister.TPR:
                Tpr = value;
                return true;
            case ApicRegister.SVR:
                WriteSvr(value);
                return true;
            case ApicRegister.ESR:
                // A write latches the errors since the last write and arms the entry again.
                Reg(ApicRegister.ESR) = Interlocked.Exchange(ref _pendingErrors, 0);
                return true;
            case ApicRegister.LVT_CMCI when CmciSupported:
            case ApicRegister.LVT_THERMAL or ApicRegister.LVT_PMC or ApicRegister.LVT_LINT0 or ApicRegister.LVT_LINT1 or ApicRegister.LVT_ERROR:
                WriteLvt(offset, value);
                return true;
            case ApicRegister.LVT_TIMER:
                WriteTimerLvt(value);
                return true;
            case ApicRegister.TMICT:
                WriteInitialCount(value);
                return true;
            case ApicRegister.TDCR:
                WriteDivider(value);
                return true;
            default:
                return false;
        }
    }

    private void WriteSvr(uint value)
    {
        uint valid = 0xff | ApicBits.SvrEnable | ApicBits.SvrFocus | (DirectedEoiSupported ? ApicBits.SvrSuppressEoiBroadcast : 0);
        Reg(ApicRegister.SVR) = value & valid;
        bool enable = (value & ApicBits.SvrEnable) != 0;
        if (enable == _softwareEnabled)
            return;
        PollTimer();
        _softwareEnabled = enable;
        if (!enable)
            for (int i = 0; i < LvtCount; i++)
                Reg(LvtOffset(i)) |= ApicBits.LvtMasked;
        _bus.Recalculate();
    }

    private void WriteLvt(int offset, uint value)
    {
        const uint common = ApicBits.LvtVector | ApicBits.LvtMasked;
        uint valid = offset switch
        {
            ApicRegister.LVT_TIMER => common | (TscDeadlineSupported ? ApicBits.LvtTimerMode : ApicBits.LvtTimerPeriodic),
            ApicRegister.LVT_LINT0 or ApicRegister.LVT_LINT1 => common | ApicBits.LvtMode | ApicBits.LvtPolarity | ApicBits.LvtLevel,
            ApicRegister.LVT_ERROR => common,
            _ => common | ApicBits.LvtMode,
        };
        value &= valid;
        if (!_softwareEnabled)
            value |= ApicBits.LvtMasked;
        Volatile.Write(ref Reg(offset), value);
        // The PIC may have waited behind the mask.
        if (offset == ApicRegister.LVT_LINT0 && AcceptsPicInterrupt)
            _sink.InterruptPending();
    }

    private void CompleteRemoteRead(Lapic target, byte register)
    {
        int offset = register << 4 & 0x3f0;
        Reg(ApicRegister.RRD) = target.IsReadable(offset) ? target.ReadRegister(offset) : 0;
        Reg(ApicRegister.ICR) = Reg(ApicRegister.ICR) & ~(3u << 16) | 2u << 16;
    }

    /// <summary>Sends the IPI that the halves of ICR describe. <paramref name="dest"/> is 8 bits in xAPIC mode, 32 in x2APIC mode.</summary>
    private void SendIpi(uint icr, uint dest)
    {
        var irq = new LapicInterrupt
        {
            Vector = (byte)icr,
            Mode = (DeliveryMode)(icr >> 8 & 7),
            Logical = (icr & ApicBits.IcrLogical) != 0,
            Assert = (icr & ApicBits.IcrAssert) != 0,
            Level = (icr & ApicBits.IcrLevel) != 0,
            Shorthand = (DestinationShorthand)(icr >> 18 & 3),
            Dest = dest,
        };
        if (irq.Mode is DeliveryMode.Fixed or DeliveryMode.LowestPriority && irq.Vector < 16)
        {
            RaiseError(ApicBits.EsrSendIllegal);
            return;
        }
        _ = _bus.Deliver(this, irq);
    }
}
