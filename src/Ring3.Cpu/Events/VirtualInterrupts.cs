using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>What PUSHF, POPF and IRET do with the interrupt flag.</summary>
internal enum FlagsAccess
{
    /// <summary>They see RFLAGS itself: outside of virtual-8086 mode, and in it with IOPL 3.</summary>
    Real,
    /// <summary>VIF stands in for IF: virtual-8086 mode with CR4.VME, IOPL below 3 and a 16-bit operand.</summary>
    Virtual,
    /// <summary>#GP(0), for the monitor: virtual-8086 mode with IOPL below 3 in every other case.</summary>
    Denied,
}

/// <summary>
/// The virtual interrupt flag: CR4.VME in virtual-8086 mode and CR4.PVI at CPL 3, with IOPL below what the program would need for IF itself.
/// <list type="bullet">
/// <item>CLI and STI change VIF; with VME, PUSHF, POPF and IRET of 16 bits take VIF for IF and show IOPL 3. PVI leaves those alone.</item>
/// <item>A program that would set VIF while VIP is set (STI, POPF, IRET) gets #GP(0); so does POPF or IRET that would set TF.</item>
/// <item>INT n of a virtual-8086 program goes to the program's own table where the TSS's redirection bitmap has a clear bit, also with IOPL 3.</item>
/// <item>VIF and VIP both set, by an IRET or a task switch of the monitor: #GP(0) in place of the program's next instruction.</item>
/// </list>
/// VIP is written by software only. SPEC: SDM volume 3, "8086 Emulation"; volume 2, CLI, STI, PUSHF, POPF, IRET, INT n; APM volume 2, "Virtual Interrupts".
/// </summary>
/// <remarks>SAFETY: works on the processor's own state; the TSS, the interrupt table and stacks go through the checked accessors.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    private const ulong VirtualPending = Rflags.VIF | Rflags.VIP;

    private static bool BelowIopl3(CpuState* c) => (c->Rflags & Rflags.IOPL) != Rflags.IOPL;

    /// <summary>What an instruction that reads or writes FLAGS with an operand of <paramref name="size"/> bytes may do.</summary>
    internal static FlagsAccess FlagsAccessOf(CpuState* c, int size)
    {
        if (!Virtual8086(c) || !BelowIopl3(c))
            return FlagsAccess.Real;
        return size == 2 && (c->Cr4 & Cr4.VME) != 0 ? FlagsAccess.Virtual : FlagsAccess.Denied;
    }

    /// <summary>Whether CLI and STI mean IF (<paramref name="flag"/>) or VIF. False: #GP(0) is pending.</summary>
    internal bool InterruptFlagOf(CpuState* c, out ulong flag)
    {
        flag = Rflags.IF;
        if (c->Cpl <= (c->Rflags & Rflags.IOPL) >> Rflags.IoplShift)
            return true;
        flag = Rflags.VIF;
        if (c->Cpl == 3 && (c->Cr4 & (Virtual8086(c) ? Cr4.VME : Cr4.PVI)) != 0)
            return true;
        Raise(c, Vector.GP, 0);
        return false;
    }

    /// <summary>FLAGS as a virtual-8086 program with a virtual interrupt flag sees it.</summary>
    internal static ulong VirtualFlags(CpuState* c)
    {
        ulong flags = Flags.Get(c);
        return (flags & ~Rflags.IF) | Rflags.IOPL | ((flags & Rflags.VIF) != 0 ? Rflags.IF : 0);
    }

    /// <summary>Whether a virtual-8086 program may load <paramref name="image"/>; it changes nothing yet. False: #GP(0) is pending.</summary>
    internal bool MayLoadVirtualFlags(CpuState* c, ulong image)
    {
        if ((image & Rflags.TF) == 0 && ((image & Rflags.IF) == 0 || (c->Rflags & Rflags.VIP) == 0))
            return true;
        Raise(c, Vector.GP, 0);
        return false;
    }

    /// <summary>POPF and IRET of 16 bits: VIF from the image's IF; IF and IOPL stay.</summary>
    internal void LoadVirtualFlags(CpuState* c, ulong image)
    {
        const ulong loaded = Rflags.Status | Rflags.TF | Rflags.DF | Rflags.NT;
        ulong kept = Flags.Get(c) & ~(loaded | Rflags.VIF | Rflags.RF);
        SetRflags(c, kept | (image & loaded) | ((image & Rflags.IF) != 0 ? Rflags.VIF : 0));
    }

    /// <summary>Whether the next instruction can find VIF and VIP set, so that every one has to be looked at. SPEC: the processor examines them at CPL 3 only; <see cref="IsVirtualInterruptDue"/>.</summary>
    private static bool WatchesVirtualInterrupt(CpuState* c) => (c->Rflags & VirtualPending) == VirtualPending && (c->Cr4 & (Cr4.VME | Cr4.PVI)) != 0;

    /// <summary>Whether the instruction at RIP is not to start because a virtual interrupt is pending and enabled.</summary>
    private static bool IsVirtualInterruptDue(CpuState* c) =>
        (c->Rflags & VirtualPending) == VirtualPending && c->Cpl == 3 && BelowIopl3(c) && (c->Cr4 & (Virtual8086(c) ? Cr4.VME : Cr4.PVI)) != 0;

    /// <summary>INT n in virtual-8086 mode. SPEC: SDM volume 3, "Software Interrupt Handling Methods While in Virtual-8086 Mode".</summary>
    internal OpResult SoftwareInterrupt8086(CpuState* c, byte vector, int length, ulong next)
    {
        if ((c->Cr4 & Cr4.VME) != 0)
        {
            if (!IsRedirected(c, vector, out bool toProgram))
                return OpResult.Fault;
            if (toProgram)
                return InterruptProgram8086(c, vector, next);
        }
        return BelowIopl3(c) ? Raise(c, Vector.GP, 0) : RaiseSoftware(c, vector, EventType.SoftwareInterrupt, length);
    }

    /// <summary>Reads the redirection bitmap, the 32 bytes below the TSS's I/O permission bitmap: a clear bit sends the interrupt to the 8086 program's own table. False: a fault is pending.</summary>
    private bool IsRedirected(CpuState* c, byte vector, out bool toProgram)
    {
        toProgram = false;
        if ((c->Tr.Access & 8) == 0 || c->Tr.Limit < 0x67)
        {
            Raise(c, Vector.GP, 0);
            return false;
        }
        if (!LoadSystem16(c, (uint)(c->Tr.Base + 0x66), out ushort map))
            return false;
        uint at = map - 32u + (uint)(vector >> 3);
        if (at > c->Tr.Limit)
        {
            Raise(c, Vector.GP, 0);
            return false;
        }
        if (!LoadSystem(c, (uint)(c->Tr.Base + at), 1, out ulong bits))
            return false;
        toProgram = (bits >> (vector & 7) & 1) == 0;
        return true;
    }

    /// <summary>Interrupts the program as in real-address mode, through the table at linear address 0.</summary>
    private OpResult InterruptProgram8086(CpuState* c, byte vector, ulong next)
    {
        bool isVirtual = BelowIopl3(c);
        if (!LoadSystem32(c, (uint)vector * 4, out uint target))
            return OpResult.Fault;
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Push(this, c, 2, isVirtual ? VirtualFlags(c) : Flags.Get(c)) || !stack.Push(this, c, 2, c->Cs.Selector) || !stack.Push(this, c, 2, next))
            return OpResult.Fault;
        CommitStack(c, stack);
        LoadRealSegment(c, SegmentIndex.CS, (ushort)(target >> 16));
        c->Rip = (ushort)target;
        c->Rflags &= ~(Rflags.TF | Rflags.RF | (isVirtual ? Rflags.VIF : Rflags.IF));
        DecideSingleStep(c);
        return OpResult.EndBlock;
    }
}
