using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Loads of data, stack and system segment registers with their checks. SPEC: SDM volume 2, MOV, LLDT, LTR.</summary>
/// <remarks>SAFETY: <c>SegmentAt</c> is asked for one of the six registers by a number that the decoder or this file wrote.</remarks>
internal sealed unsafe partial class EventUnit
{
    /// <summary>MOV/POP/Lxx to DS, ES, FS, GS or SS. Commits the register last, so a fault changes nothing.</summary>
    internal bool LoadSegment(CpuState* c, int index, ushort selector)
    {
        if (!CpuMode.ProtectedMode(c))
        {
            LoadRealSegment(c, index, selector);
            return true;
        }
        if (!CheckSegment(c, index, selector, (int)c->Cpl, Vector.GP, out Segment value))
            return false;
        *CpuState.SegmentAt(c, index) = value;
        return true;
    }

    /// <summary>
    /// Reads and checks the descriptor that a data or stack segment load would use, and marks it accessed. <paramref name="vector"/>: #GP, or #TS inside a task
    /// or stack switch.
    /// </summary>
    private bool CheckSegment(CpuState* c, int index, ushort selector, int cpl, byte vector, out Segment value)
    {
        if (index == SegmentIndex.SS)
            return CheckStackSegment(c, selector, cpl, vector, vector == Vector.GP, out value);
        value = NullSegment(selector);
        if (Descriptor.IsNull(selector))
            return true;
        if (!ReadDescriptor(c, selector, vector, out ulong raw, out ulong address))
            return false;
        bool conforming = Descriptor.IsCode(raw) && Descriptor.IsConforming(raw);
        int dpl = Descriptor.Dpl(raw);
        if (!Descriptor.IsReadable(raw) || (!conforming && ((selector & 3) > dpl || cpl > dpl)))
        {
            RaiseSelector(c, vector, selector);
            return false;
        }
        return FinishLoad(c, selector, Vector.NP, raw, address, out value);
    }

    /// <summary>Checks a stack selector for privilege level <paramref name="cpl"/>.</summary>
    private bool CheckStackSegment(CpuState* c, ushort selector, int cpl, byte vector, bool allowNull, out Segment value)
    {
        value = NullSegment(selector, cpl);
        if (Descriptor.IsNull(selector))
        {
            if (allowNull && CpuMode.Is64(c) && cpl < 3 && (selector & 3) == cpl)
                return true;
            RaiseSelector(c, vector, 0);
            return false;
        }
        if (!ReadDescriptor(c, selector, vector, out ulong raw, out ulong address))
            return false;
        if ((selector & 3) != cpl || !Descriptor.IsWritableData(raw) || Descriptor.Dpl(raw) != cpl)
        {
            RaiseSelector(c, vector, selector);
            return false;
        }
        return FinishLoad(c, selector, Vector.SS, raw, address, out value);
    }

    private bool FinishLoad(CpuState* c, ushort selector, byte absent, ulong raw, ulong address, out Segment value)
    {
        value = Descriptor.ToSegment(selector, raw);
        if (Descriptor.Present(raw))
            return MarkDescriptor(c, address, raw, Descriptor.Accessed);
        RaiseSelector(c, absent, selector);
        return false;
    }

    /// <summary>LLDT.</summary>
    internal bool LoadLdt(CpuState* c, ushort selector, byte vector)
    {
        if (Descriptor.IsNull(selector))
        {
            c->Ldtr = NullSegment(selector);
            return true;
        }
        if (!CheckLdt(c, selector, vector, out Segment value))
            return false;
        c->Ldtr = value;
        return true;
    }

    private bool CheckLdt(CpuState* c, ushort selector, byte vector, out Segment value)
    {
        value = default;
        if ((selector & 4) != 0)
        {
            RaiseSelector(c, vector, selector);
            return false;
        }
        if (!ReadSystemDescriptor(c, selector, vector, out ulong raw, out ulong high, out _))
            return false;
        if (Descriptor.Type(raw) != Descriptor.Ldt)
        {
            RaiseSelector(c, vector, selector);
            return false;
        }
        if (!Descriptor.Present(raw))
        {
            RaiseSelector(c, vector == Vector.GP ? Vector.NP : vector, selector);
            return false;
        }
        return SystemSegment(c, selector, raw, high, out value);
    }

    private bool SystemSegment(CpuState* c, ushort selector, ulong raw, ulong high, out Segment value)
    {
        value = Descriptor.ToSegment(selector, raw);
        value.Access = Descriptor.Access(raw);
        if (!CpuMode.LongMode(c))
            return true;
        value.Base |= high << 32;
        if (_paging.IsCanonicalForMsr(value.Base) && (high >> 40 & 0x1f) == 0)
            return true;
        RaiseSelector(c, Vector.GP, selector);
        return false;
    }

    /// <summary>LTR.</summary>
    internal bool LoadTaskRegister(CpuState* c, ushort selector)
    {
        if (Descriptor.IsNull(selector) || (selector & 4) != 0)
        {
            RaiseSelector(c, Vector.GP, Descriptor.IsNull(selector) ? (ushort)0 : selector);
            return false;
        }
        if (!ReadSystemDescriptor(c, selector, Vector.GP, out ulong raw, out ulong high, out ulong address))
            return false;
        uint type = Descriptor.Type(raw);
        if (type != Descriptor.Tss32Available && (type != Descriptor.Tss16Available || CpuMode.LongMode(c)))
        {
            RaiseSelector(c, Vector.GP, selector);
            return false;
        }
        if (!Descriptor.Present(raw))
        {
            RaiseSelector(c, Vector.NP, selector);
            return false;
        }
        if (!SystemSegment(c, selector, raw, high, out Segment value) || !MarkDescriptor(c, address, raw, Descriptor.Busy))
            return false;
        value.Access |= 2;
        c->Tr = value;
        return true;
    }
}
