using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>IRET in every mode. SPEC: SDM volume 2, IRET.</summary>
/// <remarks>SAFETY: the words of the frame are popped into an array of as many.</remarks>
internal sealed unsafe partial class EventUnit
{
    /// <summary>Flags that any IRET or POPF may load.</summary>
    private const ulong ReturnFlags = Rflags.Status | Rflags.TF | Rflags.DF | Rflags.NT | Rflags.RF | Rflags.AC | Rflags.ID;

    /// <summary>IRET with an operand size of 2, 4 or 8 bytes; <paramref name="next"/> is what a task return saves as the old task's RIP.</summary>
    internal OpResult InterruptReturn(CpuState* c, int size, ulong next)
    {
        if ((c->Cr0 & Cr0.PE) == 0)
            return ReturnReal(c, size);
        if (CpuMode.Virtual8086(c))
            return VirtualInterrupts.FlagsAccessOf(c, size) switch
            {
                FlagsAccess.Real => ReturnReal(c, size),
                FlagsAccess.Virtual => ReturnVirtual(c),
                _ => Outcome.Raise(c, Vector.GP, 0),
            };
        if ((c->Rflags & Rflags.NT) != 0)
            return CpuMode.LongMode(c) ? Outcome.Raise(c, Vector.GP, 0) : ReturnTask(c, next);
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Pop(_access, c, size, out ulong rip) || !stack.Pop(_access, c, size, out ulong csWord) || !stack.Pop(_access, c, size, out ulong flags))
            return OpResult.Fault;
        if (!CpuMode.LongMode(c) && size == 4 && (flags & Rflags.VM) != 0 && c->Cpl == 0)
            return ReturnToVirtual8086(c, ref stack, rip, (ushort)csWord, flags);
        return ReturnProtected(c, ref stack, size, rip, (ushort)csWord, flags);
    }

    private OpResult ReturnProtected(CpuState* c, ref StackCursor stack, int size, ulong rip, ushort selector, ulong flags)
    {
        if (!CheckReturnCode(c, selector, out Segment cs))
            return OpResult.Fault;
        int target = selector & 3;
        bool outer = target != (int)c->Cpl, popStack = outer || CpuMode.Is64(c);
        Segment ss = c->Ss;
        ulong sp = 0;
        if (popStack)
        {
            if (!stack.Pop(_access, c, size, out sp) || !stack.Pop(_access, c, size, out ulong ssWord)
                || !CheckReturnStack(c, (ushort)ssWord, target, cs, out ss))
                return OpResult.Fault;
        }
        if (!ValidTarget(c, cs, rip))
            return Outcome.Raise(c, Vector.GP, 0);
        if (size == 8 && c->Cpl == 0 && CpuMode.Is64(c))
            ReturnSegments.Note(c, target, cs, ss);
        ulong loaded = LoadableFlags(c, size);
        FinishReturn(c, cs, rip);
        if (!popStack)
        {
            CommitStack(c, stack);
            ModeChanged(c);
        }
        else if (outer)
            CommitOuter(c, cs, ss, sp, target);
        else
        {
            c->Ss = ss;
            ModeChanged(c);
            Addressing.SetStackPointer(c, sp, Addressing.StackMask(c));
        }
        SetRflags(c, (Flags.Get(c) & ~loaded) | (flags & loaded));
        return OpResult.EndBlock;
    }

    /// <summary>
    /// Flags that an IRET at the current privilege may replace. RF matters only while instruction breakpoints exist: the next instruction clears it.
    /// </summary>
    private ulong LoadableFlags(CpuState* c, int size)
    {
        ulong mask = ReturnFlags;
        if ((ulong)c->Cpl <= (c->Rflags & Rflags.IOPL) >> Rflags.IoplShift)
            mask |= Rflags.IF;
        if (c->Cpl == 0)
            mask |= Rflags.IOPL | Rflags.VIF | Rflags.VIP;
        if (size == 2)
            mask &= 0xffff;
        return c->CodeBreakpoints != 0 ? mask : mask & ~Rflags.RF;
    }

    private void FinishReturn(CpuState* c, in Segment cs, ulong rip)
    {
        c->Cs = cs;
        c->Rip = rip;
        c->NmiBlocked = 0;
    }

    private OpResult ReturnReal(CpuState* c, int size)
    {
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Pop(_access, c, size, out ulong rip) || !stack.Pop(_access, c, size, out ulong selector) || !stack.Pop(_access, c, size, out ulong flags))
            return OpResult.Fault;
        if (rip > (CpuMode.Virtual8086(c) ? 0xffffu : c->Cs.Limit))
            return Outcome.Raise(c, Vector.GP, 0);
        ulong mask = ReturnFlags | Rflags.IF | (CpuMode.Virtual8086(c) ? 0 : Rflags.IOPL);
        if (size == 2)
            mask &= 0xffff;
        if (c->CodeBreakpoints == 0)
            mask &= ~Rflags.RF;
        CommitStack(c, stack);
        LoadRealSegment(c, SegmentIndex.CS, (ushort)selector);
        FinishReturn(c, c->Cs, rip);
        SetRflags(c, (Flags.Get(c) & ~mask) | (flags & mask));
        return OpResult.EndBlock;
    }

    /// <summary>IRET of 16 bits inside virtual-8086 mode with a virtual interrupt flag.</summary>
    private OpResult ReturnVirtual(CpuState* c)
    {
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Pop(_access, c, 2, out ulong rip) || !stack.Pop(_access, c, 2, out ulong selector) || !stack.Pop(_access, c, 2, out ulong flags)
            || !VirtualInterrupts.MayLoad(c, flags))
            return OpResult.Fault;
        CommitStack(c, stack);
        LoadRealSegment(c, SegmentIndex.CS, (ushort)selector);
        FinishReturn(c, c->Cs, rip);
        LoadVirtualFlags(c, flags);
        return OpResult.EndBlock;
    }

    private OpResult ReturnToVirtual8086(CpuState* c, ref StackCursor stack, ulong eip, ushort cs, ulong flags)
    {
        ulong* words = stackalloc ulong[6]; // ESP, SS, ES, DS, FS, GS
        for (int i = 0; i < 6; i++)
            if (!stack.Pop(_access, c, 4, out words[i]))
                return OpResult.Fault;
        if (eip > 0xffff)
            return Outcome.Raise(c, Vector.GP, 0);
        const ulong mask = ReturnFlags | Rflags.IF | Rflags.IOPL | Rflags.VM | Rflags.VIF | Rflags.VIP;
        Flags.Set(c, (Flags.Get(c) & ~mask) | (flags & (c->CodeBreakpoints == 0 ? mask & ~Rflags.RF : mask)));
        c->Cpl = 3;
        c->Gpr[4] = (uint)words[0];
        LoadRealSegment(c, SegmentIndex.CS, cs);
        LoadRealSegment(c, SegmentIndex.SS, (ushort)words[1]);
        LoadRealSegment(c, SegmentIndex.ES, (ushort)words[2]);
        LoadRealSegment(c, SegmentIndex.DS, (ushort)words[3]);
        LoadRealSegment(c, SegmentIndex.FS, (ushort)words[4]);
        LoadRealSegment(c, SegmentIndex.GS, (ushort)words[5]);
        FinishReturn(c, c->Cs, eip);
        Breakpoints.UpdateStep(c);
        ModeChanged(c);
        return OpResult.EndBlock;
    }

    /// <summary>IRET with NT set: back to the task in the link field.</summary>
    private OpResult ReturnTask(CpuState* c, ulong next)
    {
        if (!_access.LoadSystem16(c, (uint)c->Tr.Base, out ushort link))
            return OpResult.Fault;
        bool switched = SwitchTask(c, link, TaskSwitchKind.Return, next, Flags.Get(c), false, 0);
        if (switched)
            c->NmiBlocked = 0;
        return FinishSwitch(c, switched);
    }
}
