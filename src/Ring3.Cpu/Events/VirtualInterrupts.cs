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
internal static unsafe class VirtualInterrupts
{
    internal const ulong Pending = Rflags.VIF | Rflags.VIP;

    internal static bool BelowIopl3(CpuState* c) => (c->Rflags & Rflags.IOPL) != Rflags.IOPL;

    /// <summary>What an instruction that reads or writes FLAGS with an operand of <paramref name="size"/> bytes may do.</summary>
    internal static FlagsAccess FlagsAccessOf(CpuState* c, int size)
    {
        if (!CpuMode.Virtual8086(c) || !BelowIopl3(c))
            return FlagsAccess.Real;
        return size == 2 && (c->Cr4 & Cr4.VME) != 0 ? FlagsAccess.Virtual : FlagsAccess.Denied;
    }

    /// <summary>Whether CLI and STI mean IF (<paramref name="flag"/>) or VIF. False: #GP(0) is pending.</summary>
    internal static bool InterruptFlagOf(CpuState* c, out ulong flag)
    {
        flag = Rflags.IF;
        if (c->Cpl <= (c->Rflags & Rflags.IOPL) >> Rflags.IoplShift)
            return true;
        flag = Rflags.VIF;
        if (c->Cpl == 3 && (c->Cr4 & (CpuMode.Virtual8086(c) ? Cr4.VME : Cr4.PVI)) != 0)
            return true;
        Outcome.Raise(c, Vector.GP, 0);
        return false;
    }

    /// <summary>FLAGS as a virtual-8086 program with a virtual interrupt flag sees it.</summary>
    internal static ulong FlagsOf(CpuState* c)
    {
        ulong flags = Flags.Get(c);
        return (flags & ~Rflags.IF) | Rflags.IOPL | ((flags & Rflags.VIF) != 0 ? Rflags.IF : 0);
    }

    /// <summary>Whether a virtual-8086 program may load <paramref name="image"/>; it changes nothing yet. False: #GP(0) is pending.</summary>
    internal static bool MayLoad(CpuState* c, ulong image)
    {
        if ((image & Rflags.TF) == 0 && ((image & Rflags.IF) == 0 || (c->Rflags & Rflags.VIP) == 0))
            return true;
        Outcome.Raise(c, Vector.GP, 0);
        return false;
    }

    /// <summary>
    /// Whether the next instruction can find VIF and VIP set, so that every one has to be looked at. SPEC: the processor examines them at CPL 3 only; <see
    /// cref="IsDue"/>.
    /// </summary>
    internal static bool AreWatched(CpuState* c) => (c->Rflags & Pending) == Pending && (c->Cr4 & (Cr4.VME | Cr4.PVI)) != 0;

    /// <summary>Whether the instruction at RIP is not to start because a virtual interrupt is pending and enabled.</summary>
    internal static bool IsDue(CpuState* c) =>
        (c->Rflags & Pending) == Pending && c->Cpl == 3 && BelowIopl3(c) && (c->Cr4 & (CpuMode.Virtual8086(c) ? Cr4.VME : Cr4.PVI)) != 0;
}
