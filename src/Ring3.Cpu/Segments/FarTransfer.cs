using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Far CALL, JMP and RET. SPEC: SDM volume 2, CALL, JMP, RET.</summary>
/// <remarks>SAFETY: the words that a call gate copies are popped and pushed by <see cref="StackCursor"/>s of the two stacks.</remarks>
internal sealed unsafe partial class EventUnit
{
    /// <summary>Far JMP or CALL. <paramref name="size"/>: operand size in bytes; <paramref name="next"/>: return address of a CALL.</summary>
    internal OpResult FarTransfer(CpuState* c, ushort selector, ulong offset, int size, bool call, ulong next)
    {
        if (size == 2)
            offset = (ushort)offset;
        else if (size == 4)
            offset = (uint)offset;
        if (!CpuMode.ProtectedMode(c))
            return FarTransferReal(c, selector, offset, size, call, next);
        if (Descriptor.IsNull(selector))
            return RaiseSelector(c, Vector.GP, 0);
        if (!ReadDescriptor(c, selector, Vector.GP, out ulong raw, out ulong address))
            return OpResult.Fault;
        if (Descriptor.IsCode(raw))
            return FarToCode(c, selector, raw, address, offset, size, call, next);
        uint type = Descriptor.Type(raw);
        bool longMode = CpuMode.LongMode(c);
        bool known = type == Descriptor.CallGate32
            || (!longMode && type is Descriptor.CallGate16 or Descriptor.TaskGate or Descriptor.Tss16Available or Descriptor.Tss32Available);
        if (!known || Descriptor.Dpl(raw) < (int)c->Cpl || Descriptor.Dpl(raw) < (selector & 3))
            return RaiseSelector(c, Vector.GP, selector);
        if (!Descriptor.Present(raw))
            return RaiseSelector(c, Vector.NP, selector);
        if (type is Descriptor.CallGate16 or Descriptor.CallGate32)
            return FarThroughGate(c, selector, raw, address, call, next);
        ushort tss = type == Descriptor.TaskGate ? Descriptor.GateSelector(raw) : selector;
        return FinishSwitch(c, SwitchTask(c, tss, call ? TaskSwitchKind.Call : TaskSwitchKind.Jump, next, Flags.Get(c), false, 0));
    }

    /// <summary>Result of a handler that called <see cref="SwitchTask"/>: when the switch has happened, RIP is the new task's.</summary>
    private OpResult FinishSwitch(CpuState* c, bool switched)
    {
        if (!switched && !_switched)
            return OpResult.Fault;
        ModeChanged(c);
        Breakpoints.UpdateStep(c);
        return switched ? OpResult.EndBlock : OpResult.RetiredExit;
    }

    private OpResult FarTransferReal(CpuState* c, ushort selector, ulong offset, int size, bool call, ulong next)
    {
        if (call)
        {
            StackCursor stack = StackCursor.Current(c);
            if (!stack.Push(_access, c, size, c->Cs.Selector) || !stack.Push(_access, c, size, next))
                return OpResult.Fault;
            if (offset > 0xffff)
                return Outcome.Raise(c, Vector.GP, 0);
            CommitStack(c, stack);
        }
        else if (offset > c->Cs.Limit)
            return Outcome.Raise(c, Vector.GP, 0);
        LoadRealSegment(c, SegmentIndex.CS, selector);
        c->Rip = offset;
        return OpResult.EndBlock;
    }

    private OpResult FarToCode(CpuState* c, ushort selector, ulong raw, ulong address, ulong offset, int size, bool call, ulong next)
    {
        int cpl = (int)c->Cpl, dpl = Descriptor.Dpl(raw);
        bool allowed = Descriptor.IsConforming(raw) ? dpl <= cpl : (selector & 3) <= cpl && dpl == cpl;
        if (!allowed || (CpuMode.LongMode(c) && Descriptor.IsLong(raw) && Descriptor.IsBig(raw)))
            return RaiseSelector(c, Vector.GP, selector);
        if (!FinishLoad(c, selector, Vector.NP, raw, address, out Segment cs))
            return OpResult.Fault;
        StackCursor stack = StackCursor.Current(c);
        if (call && (!stack.Push(_access, c, size, c->Cs.Selector) || !stack.Push(_access, c, size, next)))
            return OpResult.Fault;
        if (!ValidTarget(c, cs, offset))
            return Outcome.Raise(c, Vector.GP, 0);
        if (call)
            CommitStack(c, stack);
        cs.Selector = (ushort)((selector & ~3) | cpl);
        return JumpTo(c, cs, offset);
    }

    /// <summary>Whether an offset lies in a code segment: canonical for a 64-bit one, within the limit otherwise.</summary>
    private static bool ValidTarget(CpuState* c, in Segment cs, ulong offset) =>
        CpuMode.LongMode(c) && (cs.Access & Segment.L) != 0 ? CpuMode.IsCanonical(c, offset) : offset <= cs.Limit;

    private OpResult JumpTo(CpuState* c, in Segment cs, ulong offset)
    {
        c->Cs = cs;
        c->Rip = offset;
        ModeChanged(c);
        return OpResult.EndBlock;
    }

    private OpResult FarThroughGate(CpuState* c, ushort gateSelector, ulong gate, ulong gateAddress, bool call, ulong next)
    {
        bool longMode = CpuMode.LongMode(c);
        ulong offset = Descriptor.GateOffset(gate);
        if (longMode)
        {
            if (!FindDescriptor(c, gateSelector, 16, out _))
                return RaiseSelector(c, Vector.GP, gateSelector);
            if (!_access.LoadSystem64(c, gateAddress + 8, out ulong high))
                return OpResult.Fault;
            if ((high >> 40 & 0x1f) != 0)
                return RaiseSelector(c, Vector.GP, gateSelector);
            offset |= high << 32;
        }
        int size = longMode ? 8 : Descriptor.Type(gate) == Descriptor.CallGate16 ? 2 : 4;
        if (size == 2)
            offset &= 0xffff;
        ushort selector = Descriptor.GateSelector(gate);
        if (Descriptor.IsNull(selector))
            return RaiseSelector(c, Vector.GP, 0);
        if (!ReadDescriptor(c, selector, Vector.GP, out ulong raw, out ulong address))
            return OpResult.Fault;
        int cpl = (int)c->Cpl, dpl = Descriptor.Dpl(raw);
        bool bad = !Descriptor.IsCode(raw) || dpl > cpl || (longMode && (!Descriptor.IsLong(raw) || Descriptor.IsBig(raw)));
        if (!call && !bad && !Descriptor.IsConforming(raw) && dpl != cpl)
            bad = true;
        if (bad)
            return RaiseSelector(c, Vector.GP, selector);
        if (!FinishLoad(c, selector, Vector.NP, raw, address, out Segment cs))
            return OpResult.Fault;
        int target = Descriptor.IsConforming(raw) ? cpl : dpl;
        cs.Selector = (ushort)((selector & ~3) | target);
        if (call && target < cpl)
            return CallInner(c, cs, offset, size, (int)(gate >> 32) & 0x1f, target, next);
        StackCursor stack = StackCursor.Current(c);
        if (call && (!stack.Push(_access, c, size, c->Cs.Selector) || !stack.Push(_access, c, size, next)))
            return OpResult.Fault;
        if (!ValidTarget(c, cs, offset))
            return Outcome.Raise(c, Vector.GP, 0);
        if (call)
            CommitStack(c, stack);
        return JumpTo(c, cs, offset);
    }

    /// <summary>CALL through a gate to a more privileged level: new stack from the TSS, parameters copied.</summary>
    private OpResult CallInner(CpuState* c, in Segment cs, ulong offset, int size, int parameters, int cpl, ulong next)
    {
        Segment ss;
        StackCursor stack;
        if (size == 8)
        {
            if (!LoadTssStack64(c, 4 + 8 * (uint)cpl, out ulong rsp))
                return OpResult.Fault;
            ss = NullSegment((ushort)cpl, cpl);
            stack = new StackCursor(c, ss, rsp, cpl, true, 0);
            parameters = 0;
        }
        else if (!FindInnerStack(c, cpl, out ss, out stack))
            return OpResult.Fault;
        StackCursor old = StackCursor.Current(c);
        if (!stack.Push(_access, c, size, c->Ss.Selector) || !stack.Push(_access, c, size, c->Gpr[4]))
            return OpResult.Fault;
        for (int i = parameters - 1; i >= 0; i--)
            if (!old.Peek(_access, c, size, (ulong)(i * size), out ulong value) || !stack.Push(_access, c, size, value))
                return OpResult.Fault;
        if (!stack.Push(_access, c, size, c->Cs.Selector) || !stack.Push(_access, c, size, next))
            return OpResult.Fault;
        if (!ValidTarget(c, cs, offset))
            return Outcome.Raise(c, Vector.GP, 0);
        c->Ss = ss;
        CommitStack(c, stack);
        c->Cpl = (uint)cpl;
        return JumpTo(c, cs, offset);
    }

    /// <summary>Far RET that releases <paramref name="release"/> bytes of parameters.</summary>
    internal OpResult FarReturn(CpuState* c, int size, uint release)
    {
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Pop(_access, c, size, out ulong offset) || !stack.Pop(_access, c, size, out ulong word))
            return OpResult.Fault;
        ushort selector = (ushort)word;
        if (!CpuMode.ProtectedMode(c))
        {
            if (offset > c->Cs.Limit)
                return Outcome.Raise(c, Vector.GP, 0);
            stack.Skip(release);
            CommitStack(c, stack);
            LoadRealSegment(c, SegmentIndex.CS, selector);
            c->Rip = offset;
            return OpResult.EndBlock;
        }
        if (!CheckReturnCode(c, selector, out Segment cs))
            return OpResult.Fault;
        if (!ValidTarget(c, cs, offset))
            return Outcome.Raise(c, Vector.GP, 0);
        int target = selector & 3;
        stack.Skip(release);
        if (target == (int)c->Cpl)
        {
            CommitStack(c, stack);
            return JumpTo(c, cs, offset);
        }
        if (!stack.Pop(_access, c, size, out ulong sp) || !stack.Pop(_access, c, size, out ulong ssWord)
            || !CheckReturnStack(c, (ushort)ssWord, target, cs, out Segment ss))
            return OpResult.Fault;
        CommitOuter(c, cs, ss, sp, target);
        Addressing.SetStackPointer(c, c->Gpr[4] + release, Addressing.StackMask(c));
        c->Rip = offset;
        return OpResult.EndBlock;
    }

    /// <summary>Checks CS of a far return or IRET.</summary>
    private bool CheckReturnCode(CpuState* c, ushort selector, out Segment cs)
    {
        cs = default;
        if (Descriptor.IsNull(selector))
        {
            RaiseSelector(c, Vector.GP, 0);
            return false;
        }
        if (!ReadDescriptor(c, selector, Vector.GP, out ulong raw, out ulong address))
            return false;
        int rpl = selector & 3, dpl = Descriptor.Dpl(raw);
        bool bad = !Descriptor.IsCode(raw) || rpl < (int)c->Cpl || (Descriptor.IsConforming(raw) ? dpl > rpl : dpl != rpl);
        if (bad || (CpuMode.LongMode(c) && Descriptor.IsLong(raw) && Descriptor.IsBig(raw)))
        {
            RaiseSelector(c, Vector.GP, selector);
            return false;
        }
        return FinishLoad(c, selector, Vector.NP, raw, address, out cs);
    }

    /// <summary>Checks SS of a return to an outer level. A null selector is allowed for 64-bit code outside ring 3.</summary>
    private bool CheckReturnStack(CpuState* c, ushort selector, int target, in Segment cs, out Segment ss)
    {
        if (Descriptor.IsNull(selector) && CpuMode.LongMode(c) && (cs.Access & Segment.L) != 0 && target != 3 && (selector & 3) == target)
        {
            ss = NullSegment(selector, target);
            return true;
        }
        return CheckStackSegment(c, selector, target, Vector.GP, false, out ss);
    }

    /// <summary>Commits CS, SS, RSP and CPL of a return to an outer level and drops data segments that the new level may not use.</summary>
    private void CommitOuter(CpuState* c, in Segment cs, in Segment ss, ulong sp, int target)
    {
        c->Cs = cs;
        c->Ss = ss;
        c->Cpl = (uint)target;
        ModeChanged(c);
        Addressing.SetStackPointer(c, sp, Addressing.StackMask(c));
        DropSegment(&c->Es, target);
        DropSegment(&c->Ds, target);
        DropSegment(&c->Fs, target);
        DropSegment(&c->Gs, target);
    }

    private static void DropSegment(Segment* s, int cpl)
    {
        if ((s->Access & Segment.Unusable) != 0)
            return;
        bool conformingCode = (s->Access & 0x1c) == 0x1c;
        if (s->Dpl < cpl && !conformingCode)
            NullSelector(s);
    }
}
