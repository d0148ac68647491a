using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Delivery through 16-byte gates in long mode. SPEC: SDM volume 3, "64-Bit Mode Interrupt Handling".</summary>
/// <remarks>SAFETY: the 16 bytes of a gate and the IST slots are read by checked loads; the frame is pushed before anything is committed.</remarks>
internal sealed unsafe partial class EventUnit
{
    private bool DeliverLong(CpuState* c, in PendingEvent e)
    {
        uint entry = (uint)e.Vector * 16;
        if (entry + 15 > c->Idtr.Limit)
            return IdtFault(c, Vector.GP, e.Vector);
        if (!_access.LoadSystem64(c, c->Idtr.Base + entry, out ulong gate) || !_access.LoadSystem64(c, c->Idtr.Base + entry + 8, out ulong high))
            return false;
        uint type = Descriptor.Type(gate);
        if (type is not (Descriptor.InterruptGate32 or Descriptor.TrapGate32) || (high >> 40 & 0x1f) != 0)
            return IdtFault(c, Vector.GP, e.Vector);
        if (e.IsSoftware && e.Type != EventType.PrivilegedSoftwareException && Descriptor.Dpl(gate) < (int)c->Cpl)
            return IdtFault(c, Vector.GP, e.Vector);
        if (!Descriptor.Present(gate))
            return IdtFault(c, Vector.NP, e.Vector);
        if (!CheckHandlerCode(c, Descriptor.GateSelector(gate), true, out Segment cs, out int cpl))
            return false;
        ulong rip = Descriptor.GateOffset(gate) | high << 32;
        if (!FindLongStack(c, (int)(gate >> 32) & 7, cpl, out ulong rsp) || !PushLongFrame(c, e, rsp & ~0xfUL, cpl, out StackCursor stack))
            return false;
        if (!CpuMode.IsCanonical(c, rip))
        {
            Outcome.Raise(c, Vector.GP, _externalEvent);
            return false;
        }
        if (cpl != (int)c->Cpl)
            c->Ss = NullSegment((ushort)cpl, cpl);
        c->Gpr[4] = stack.Pointer;
        c->Cs = cs;
        c->Cpl = (uint)cpl;
        c->Rip = rip;
        LeaveFlags(c, type == Descriptor.InterruptGate32);
        return true;
    }

    private void LeaveFlags(CpuState* c, bool interruptGate)
    {
        ulong clear = Rflags.VM | Rflags.TF | Rflags.RF | Rflags.NT;
        c->Rflags &= ~(interruptGate ? clear | Rflags.IF : clear);
    }

    /// <summary>Checks the code segment of a gate and tells the privilege level of the handler.</summary>
    private bool CheckHandlerCode(CpuState* c, ushort selector, bool needLong, out Segment cs, out int cpl)
    {
        cs = default;
        cpl = (int)c->Cpl;
        if (Descriptor.IsNull(selector))
        {
            RaiseSelector(c, Vector.GP, 0);
            return false;
        }
        if (!ReadDescriptor(c, selector, Vector.GP, out ulong raw, out ulong address))
            return false;
        int dpl = Descriptor.Dpl(raw);
        bool bad = !Descriptor.IsCode(raw) || dpl > cpl || (needLong && (!Descriptor.IsLong(raw) || Descriptor.IsBig(raw)));
        if (!bad && !Descriptor.IsConforming(raw))
            cpl = dpl;
        if (CpuMode.Virtual8086(c) && cpl != 0)
            bad = true;
        if (bad)
        {
            RaiseSelector(c, Vector.GP, selector);
            return false;
        }
        if (!FinishLoad(c, selector, Vector.NP, raw, address, out cs))
            return false;
        cs.Selector = (ushort)((selector & ~3) | cpl);
        return true;
    }

    private bool FindLongStack(CpuState* c, int ist, int cpl, out ulong rsp)
    {
        rsp = c->Gpr[4];
        if (ist == 0 && cpl == (int)c->Cpl)
            return true;
        uint offset = ist != 0 ? 0x24 + 8 * (uint)(ist - 1) : 4 + 8 * (uint)cpl;
        return LoadTssStack64(c, offset, out rsp);
    }

    private bool LoadTssStack64(CpuState* c, uint offset, out ulong rsp)
    {
        rsp = 0;
        if (offset + 7 > c->Tr.Limit)
        {
            RaiseSelector(c, Vector.TS, c->Tr.Selector);
            return false;
        }
        if (!_access.LoadSystem64(c, c->Tr.Base + offset, out rsp))
            return false;
        if (CpuMode.IsCanonical(c, rsp))
            return true;
        Outcome.Raise(c, Vector.SS, _externalEvent);
        return false;
    }

    private bool PushLongFrame(CpuState* c, in PendingEvent e, ulong rsp, int cpl, out StackCursor stack)
    {
        stack = new StackCursor(c, default, rsp, cpl, true, _externalEvent);
        return stack.Push(_access, c, 8, c->Ss.Selector)
            && stack.Push(_access, c, 8, c->Gpr[4])
            && stack.Push(_access, c, 8, FlagsImage(c, e))
            && stack.Push(_access, c, 8, c->Cs.Selector)
            && stack.Push(_access, c, 8, ReturnRip(c, e))
            && (!e.HasErrorCode || stack.Push(_access, c, 8, e.ErrorCode));
    }
}
