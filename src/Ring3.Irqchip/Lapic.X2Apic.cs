namespace Ring3.Irqchip;

// MSRs 0x800-0x8ff. SPEC: SDM volume 3, "Extended XAPIC (x2APIC)".
public sealed partial class Lapic
{
    private const ulong X2ApicIcrReserved = 0xfff0_0000 | 3 << 16 | 1 << 13;

    /// <summary>RDMSR of 0x800-0x8ff. False: #GP(0).</summary>
    public bool ReadMsr(uint msr, out ulong value)
    {
        value = 0;
        int offset = (int)(msr - 0x800) << 4;
        if (_mode != ApicMode.X2Apic || msr is < 0x800 or > 0x83f || !IsReadable(offset)
            || offset is ApicRegister.DFR or ApicRegister.ICR2 or ApicRegister.APR or ApicRegister.RRD)
            return false;
        value = offset == ApicRegister.ICR ? Reg(ApicRegister.ICR) | (ulong)Reg(ApicRegister.ICR2) << 32 : ReadRegister(offset);
        return true;
    }

    /// <summary>WRMSR of 0x800-0x8ff. False: #GP(0), nothing changed.</summary>
    public bool WriteMsr(uint msr, ulong value)
    {
        int offset = (int)(msr - 0x800) << 4;
        if (_mode != ApicMode.X2Apic || msr is < 0x800 or > 0x83f)
            return false;
        if (offset == ApicRegister.ICR)
            return WriteIcr(value);
        if (value >> 32 != 0)
            return false;
        uint low = (uint)value;
        switch (offset)
        {
            case ApicRegister.TPR:
                return low <= 0xff && WriteCommon(offset, low);
            case ApicRegister.EOI:
                if (low != 0)
                    return false;
                SetEoi();
                return true;
            case ApicRegister.ESR:
                return low == 0 && WriteCommon(offset, low);
            case ApicRegister.SELF_IPI:
                if (low > 0xff)
                    return false;
                SendIpi(low | (uint)DestinationShorthand.Self << 18 | ApicBits.IcrAssert, 0);
                return true;
            default:
                return WriteCommon(offset, low);
        }
    }

    private bool WriteIcr(ulong value)
    {
        if ((value & X2ApicIcrReserved & 0xffff_ffff) != 0)
            return false;
        value &= ~(ulong)ApicBits.IcrBusy;
        Reg(ApicRegister.ICR) = (uint)value;
        Reg(ApicRegister.ICR2) = (uint)(value >> 32);
        SendIpi((uint)value, (uint)(value >> 32));
        return true;
    }
}
