using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>INT n, INT3, INTO, INT1; INT n in virtual-8086 mode with and without the interrupt redirection bitmap.</summary>
/// <remarks>SAFETY: works on the processor's own state; tables, gates and stacks go through the checked accessors.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    internal bool HasCodeBreakpoints => _codeBreakpoints != 0;

    /// <summary>Makes a software event pending. RIP is moved over the instruction when it is delivered.</summary>
    internal OpResult RaiseSoftware(CpuState* c, byte vector, EventType type, int length)
    {
        Raise(c, vector);
        c->PendingType = (byte)type;
        c->PendingLength = (byte)length;
        return OpResult.Fault;
    }

    /// <summary>INT n in virtual-8086 mode. SPEC: SDM volume 3, "Software Interrupt Handling Methods While in Virtual-8086 Mode".</summary>
    internal OpResult SoftwareInterrupt8086(CpuState* c, byte vector, int length, ulong next)
    {
        bool trusted = (c->Rflags & Rflags.IOPL) == Rflags.IOPL;
        if ((c->Cr4 & Cr4.VME) != 0)
        {
            if (!IsRedirected(c, vector, out bool toProgram))
                return OpResult.Fault;
            if (toProgram)
                return InterruptProgram8086(c, vector, trusted, next);
        }
        return trusted ? RaiseSoftware(c, vector, EventType.SoftwareInterrupt, length) : Raise(c, Vector.GP, 0);
    }

    /// <summary>Reads the redirection bitmap, the 32 bytes below the TSS's I/O permission bitmap: a clear bit sends the interrupt to the 8086 program's own table.</summary>
    private bool IsRedirected(CpuState* c, byte vector, out bool toProgram)
    {
        toProgram = false;
        if ((c->Tr.Access & 8) == 0 || c->Tr.Limit < 0x67)
            return true;
        if (!LoadSystem16(c, (uint)(c->Tr.Base + 0x66), out ushort map))
            return false;
        uint at = map - 32u + (uint)(vector >> 3);
        if (map < 32 + 0x68 - 0x20 || at > c->Tr.Limit)
            return true;
        if (!LoadSystem(c, (uint)(c->Tr.Base + at), 1, out ulong bits))
            return false;
        toProgram = (bits >> (vector & 7) & 1) == 0;
        return true;
    }

    private OpResult InterruptProgram8086(CpuState* c, byte vector, bool trusted, ulong next)
    {
        ulong flags = Flags.Get(c);
        if (!trusted)
            flags = (flags & ~Rflags.IF) | Rflags.IOPL | ((flags & Rflags.VIF) != 0 ? Rflags.IF : 0);
        if (!Load32(c, (uint)vector * 4, out uint target))
            return OpResult.Fault;
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Push(this, c, 2, flags) || !stack.Push(this, c, 2, c->Cs.Selector) || !stack.Push(this, c, 2, next))
            return OpResult.Fault;
        CommitStack(c, stack);
        LoadRealSegment(c, SegmentIndex.CS, (ushort)(target >> 16));
        c->Rip = (ushort)target;
        c->Rflags &= ~(Rflags.TF | Rflags.NT | (trusted ? Rflags.IF : Rflags.VIF));
        DecideSingleStep(c);
        return OpResult.EndBlock;
    }
}
