namespace Ring3.Cpu;

/// <summary>Displacements from <see cref="HostRegisters.Base"/>.</summary>
/// <remarks>SAFETY: addresses of fields of a local, for their differences only.</remarks>
internal static unsafe class StateLayout
{
    public static readonly int Retired, TimerLook, Context, Rip, ExitRequest, EntryStamp, CcKind, CcA, CcB, FlagsZero, FlagsSign, FlagsCarry;
    public static readonly int CodeBase, SlowRoutine, MissRoutine, TakeBackRoutine, SlowCallback, FsBase, GsBase, JumpContext, JumpSalt, Units, Mxcsr;
    public static readonly int HostMxcsr, Ymm;
    public static readonly int Fip, Fdp, Fop, FipSelector, FdpSelector, X87Operand;
    public static readonly int FlagRoutine, Between, Rflags, Cpl, LentPages, LentTags, Cr4, InterruptShadow, RequestInterruptWindow, KernelGsBase;
    public static readonly int TscMultiplier, TscOffset, TscAux, Selectors, BetweenIterations, TimerDeadline, FlatSegments;
    public static readonly int Efer, Star, Lstar, Sfmask, GdtBase, GdtLimit, CodeContext, JumpKey, NmiBlocked, RequestNmiWindow, CodeBreakpoints;
    public static readonly int SplitEntry, SplitLinear, SplitResume, Cr2;
    public static readonly int SegmentEnds, CodeLimit, JumpSegment;
    public static readonly int FirstReturn, LastReturn, Pkru, KernelCode, KernelStack, UserCode, UserStack;

    public static readonly int Jumps = ProcessorMemory.TlbBytes;

    static StateLayout()
    {
        CpuState c;
        byte* s = (byte*)&c + ProcessorMemory.StateBytes;
        Retired = (int)((byte*)&c.InstructionsRetired - s);
        TimerLook = (int)((byte*)&c.TimerLook - s);
        Context = (int)((byte*)&c.TlbContext - s);
        Rip = (int)((byte*)&c.Rip - s);
        ExitRequest = (int)((byte*)&c.ExitRequest - s);
        EntryStamp = (int)((byte*)&c.EntryStamp - s);
        CcKind = (int)((byte*)&c.CcKind - s);
        CcA = (int)((byte*)&c.CcA - s);
        CcB = (int)((byte*)&c.CcB - s);
        CodeBase = (int)((byte*)&c.CodeBase - s);
        FlagsZero = (int)((byte*)&c.FlagsZero - s);
        FlagsSign = (int)((byte*)&c.FlagsSign - s);
        FlagsCarry = (int)((byte*)&c.FlagsCarry - s);
        BetweenIterations = (int)((byte*)&c.BetweenIterations - s);
        TimerDeadline = (int)((byte*)&c.TimerDeadline - s);
        FlagRoutine = (int)((byte*)&c.FlagRoutine - s);
        FirstReturn = (int)((byte*)&c.FirstReturn - s);
        Pkru = (int)((byte*)&c.Pkru - s);
        LastReturn = (int)((byte*)&c.LastReturn - s);
        Between = (int)((byte*)&c.Between - s);
        Rflags = (int)((byte*)&c.Rflags - s);
        Cpl = (int)((byte*)&c.Cpl - s);
        LentPages = (int)((byte*)&c.LentPages - s);
        LentTags = (int)((byte*)c.LentTags - s);
        SplitEntry = (int)((byte*)&c.SplitEntry - s);
        SplitLinear = (int)((byte*)&c.SplitLinear - s);
        SplitResume = (int)((byte*)&c.SplitResume - s);
        Cr2 = (int)((byte*)&c.Cr2 - s);
        Cr4 = (int)((byte*)&c.Cr4 - s);
        InterruptShadow = (int)((byte*)&c.InterruptShadow - s);
        RequestInterruptWindow = (int)((byte*)&c.RequestInterruptWindow - s);
        KernelGsBase = (int)((byte*)&c.KernelGsBase - s);
        TscMultiplier = (int)((byte*)&c.TscMultiplier - s);
        TscOffset = (int)((byte*)&c.TscOffset - s);
        TscAux = (int)((byte*)&c.TscAux - s);
        Selectors = (int)((byte*)&c.Es.Selector - s);
        s_segments = (int)((byte*)&c.Es - s);
        SegmentEnds = (int)((byte*)c.SegmentEnds - s);
        CodeLimit = (int)((byte*)&c.Cs.Limit - s);
        JumpSegment = (int)((byte*)&c.JumpSegment - s);
        FlatSegments = (int)((byte*)&c.FlatSegments - s);
        SlowRoutine = (int)((byte*)&c.SlowRoutine - s);
        MissRoutine = (int)((byte*)&c.MissRoutine - s);
        TakeBackRoutine = (int)((byte*)&c.TakeBackRoutine - s);
        SlowCallback = (int)((byte*)&c.SlowCallback - s);
        FsBase = (int)((byte*)&c.Fs.Base - s);
        GsBase = (int)((byte*)&c.Gs.Base - s);
        JumpContext = (int)((byte*)&c.JumpContext - s);
        JumpSalt = (int)((byte*)&c.JumpSalt - s);
        Efer = (int)((byte*)&c.Efer - s);
        Star = (int)((byte*)&c.Star - s);
        Lstar = (int)((byte*)&c.Lstar - s);
        Sfmask = (int)((byte*)&c.Sfmask - s);
        GdtBase = (int)((byte*)&c.Gdtr.Base - s);
        GdtLimit = (int)((byte*)&c.Gdtr.Limit - s);
        CodeContext = (int)((byte*)&c.CodeContext - s);
        JumpKey = (int)((byte*)&c.JumpKey - s);
        NmiBlocked = (int)((byte*)&c.NmiBlocked - s);
        RequestNmiWindow = (int)((byte*)&c.RequestNmiWindow - s);
        CodeBreakpoints = (int)((byte*)&c.CodeBreakpoints - s);
        KernelCode = (int)((byte*)&c.Returned.KernelCode - s);
        KernelStack = (int)((byte*)&c.Returned.KernelStack - s);
        UserCode = (int)((byte*)&c.Returned.UserCode - s);
        UserStack = (int)((byte*)&c.Returned.UserStack - s);
        Units = (int)((byte*)&c.Units - s);
        Mxcsr = (int)((byte*)&c.Mxcsr - s);
        HostMxcsr = (int)((byte*)&c.HostMxcsr - s);
        Ymm = (int)(c.Ymm - s);
        X87Operand = (int)((byte*)&c.X87Operand - s);
        Fip = (int)((byte*)&c.Fip - s);
        Fdp = (int)((byte*)&c.Fdp - s);
        Fop = (int)((byte*)&c.Fop - s);
        FipSelector = (int)((byte*)&c.FipSelector - s);
        FdpSelector = (int)((byte*)&c.FdpSelector - s);
    }

    private static readonly int s_segments;

    /// <summary>The base of a segment register by its index.</summary>
    public static int SegmentBase(int index) => s_segments + index * sizeof(Segment);

    public static int Gpr(int guest) => 8 * guest - ProcessorMemory.StateBytes;
}
