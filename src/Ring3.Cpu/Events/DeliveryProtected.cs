using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// Delivery through 8-byte gates: 16- and 32-bit protected mode, virtual-8086 mode, task gates. SPEC: SDM volume 3, "Exception- or Interrupt-Handler
/// Procedures".
/// </summary>
/// <remarks>SAFETY: gates and the TSS are read by checked loads; a <see cref="StackCursor"/> pushes the frame before anything is committed.</remarks>
internal sealed unsafe partial class EventUnit
{
    private bool DeliverProtected(CpuState* c, in PendingEvent e)
    {
        uint entry = (uint)e.Vector * 8;
        if (entry + 7 > c->Idtr.Limit)
            return IdtFault(c, Vector.GP, e.Vector);
        if (!_access.LoadSystem64(c, (uint)(c->Idtr.Base + entry), out ulong gate))
            return false;
        uint type = Descriptor.Type(gate);
        if (type is not (Descriptor.TaskGate or Descriptor.InterruptGate16 or Descriptor.TrapGate16 or Descriptor.InterruptGate32 or Descriptor.TrapGate32))
            return IdtFault(c, Vector.GP, e.Vector);
        if (e.IsSoftware && e.Type != EventType.PrivilegedSoftwareException && Descriptor.Dpl(gate) < (int)c->Cpl)
            return IdtFault(c, Vector.GP, e.Vector);
        if (!Descriptor.Present(gate))
            return IdtFault(c, Vector.NP, e.Vector);
        if (type == Descriptor.TaskGate)
            return DeliverToTask(c, e, Descriptor.GateSelector(gate));
        if (!CheckHandlerCode(c, Descriptor.GateSelector(gate), false, out Segment cs, out int cpl))
            return false;
        int size = type is Descriptor.InterruptGate16 or Descriptor.TrapGate16 ? 2 : 4;
        ulong eip = size == 2 ? Descriptor.GateOffset(gate) & 0xffff : Descriptor.GateOffset(gate);
        bool inner = cpl != (int)c->Cpl || CpuMode.Virtual8086(c);
        Segment ss = c->Ss;
        StackCursor stack = StackCursor.Current(c);
        if (inner && !FindInnerStack(c, cpl, out ss, out stack))
            return false;
        if (!PushProtectedFrame(c, e, size, inner, ref stack))
            return false;
        if (eip > cs.Limit)
        {
            Outcome.Raise(c, Vector.GP, _externalEvent);
            return false;
        }
        if (CpuMode.Virtual8086(c))
        {
            NullSelector(&c->Ds);
            NullSelector(&c->Es);
            NullSelector(&c->Fs);
            NullSelector(&c->Gs);
        }
        c->Ss = ss;
        CommitStack(c, stack);
        c->Cs = cs;
        c->Cpl = (uint)cpl;
        c->Rip = eip;
        LeaveFlags(c, type is Descriptor.InterruptGate16 or Descriptor.InterruptGate32);
        return true;
    }

    /// <summary>Stack of a more privileged level, from the TSS.</summary>
    private bool FindInnerStack(CpuState* c, int cpl, out Segment ss, out StackCursor stack)
    {
        ss = default;
        stack = default;
        bool wide = (c->Tr.Access & 8) != 0;
        uint offset = wide ? 4 + 8 * (uint)cpl : 2 + 4 * (uint)cpl;
        if (offset + (wide ? 5u : 3u) > c->Tr.Limit)
        {
            RaiseSelector(c, Vector.TS, c->Tr.Selector);
            return false;
        }
        int size = wide ? 4 : 2;
        ulong at = (uint)(c->Tr.Base + offset);
        if (!_access.LoadSystem(c, at, size, out ulong esp) || !_access.LoadSystem16(c, at + (ulong)size, out ushort selector))
            return false;
        if (!CheckStackSegment(c, selector, cpl, Vector.TS, false, out ss))
            return false;
        stack = new StackCursor(c, ss, esp, cpl, false, (uint)(selector & 0xfffc) | _externalEvent);
        return true;
    }

    private bool PushProtectedFrame(CpuState* c, in PendingEvent e, int size, bool inner, ref StackCursor stack)
    {
        if (CpuMode.Virtual8086(c) && !(stack.Push(_access, c, size, c->Gs.Selector) && stack.Push(_access, c, size, c->Fs.Selector)
            && stack.Push(_access, c, size, c->Ds.Selector) && stack.Push(_access, c, size, c->Es.Selector)))
            return false;
        if (inner && !(stack.Push(_access, c, size, c->Ss.Selector) && stack.Push(_access, c, size, c->Gpr[4])))
            return false;
        return stack.Push(_access, c, size, FlagsImage(c, e))
            && stack.Push(_access, c, size, c->Cs.Selector)
            && stack.Push(_access, c, size, ReturnRip(c, e))
            && (!e.HasErrorCode || stack.Push(_access, c, size, e.ErrorCode));
    }

    /// <summary>The event has a task gate: switch to the handler's task and push the error code on its stack.</summary>
    private bool DeliverToTask(CpuState* c, in PendingEvent e, ushort selector)
    {
        ulong resume = ReturnRip(c, e);
        return SwitchTask(c, selector, TaskSwitchKind.Gate, resume, FlagsImage(c, e), e.HasErrorCode, e.ErrorCode);
    }
}
