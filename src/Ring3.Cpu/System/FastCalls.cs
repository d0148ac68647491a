using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>SYSCALL, SYSRET, SYSENTER, SYSEXIT. SPEC: SDM volume 2; SYSCALL outside 64-bit mode: AMD APM volume 3.</summary>
/// <remarks>SAFETY: these instructions have no memory operand; segments, MSRs and RIP are fields of the state.</remarks>
internal static unsafe class FastCalls
{
    internal const uint KernelCode64 = 0xa09b, UserCode64 = 0xa0fb, KernelData = 0xc093, UserData = 0xc0f3;
    private const uint KernelCode32 = 0xc09b, UserCode32 = 0xc0fb;
    internal const ulong SysretFlags = 0x3c_7fd7;

    /// <summary>Outside 64-bit mode SYSCALL and SYSRET are AMD's alone; KVM emulates them for a guest that sees AMD.</summary>
    private static bool HasNarrowSyscall(LogicalProcessor p) => p.Model.IsAmd || p.CpuidFeatures.Vendor == ProcessorVendor.Amd;

    /// <summary>SYSENTER and SYSEXIT in long mode are Intel's alone; KVM emulates them for a guest that sees Intel.</summary>
    private static bool HasSysenter(LogicalProcessor p, CpuState* c) => p.Control.HasWideSysenter || !CpuMode.LongMode(c);

    private static Segment Flat(uint selector, uint access) => new() { Selector = (ushort)selector, Access = access, Limit = uint.MaxValue };

    public static OpResult Syscall(LogicalProcessor p, CpuState* c, Op* op)
    {
        bool wide = CpuMode.Is64(c);
        if ((c->Efer & Efer.SCE) == 0 || (!wide && !(HasNarrowSyscall(p) && CpuMode.ProtectedMode(c))))
            return Outcome.Raise(c, Vector.UD);
        bool longMode = CpuMode.LongMode(c);
        ulong flags = Flags.Get(c) & ~Rflags.RF;
        c->Gpr[1] = Addressing.NextRip(c, op);
        uint selector = (uint)(c->Star >> 32) & 0xfffc;
        c->Cs = Flat(selector, longMode ? KernelCode64 : KernelCode32);
        c->Ss = Flat(selector + 8, KernelData);
        c->Cpl = 0;
        c->Rip = wide ? c->Lstar : longMode ? c->Cstar : (uint)c->Star;
        c->BlockMode = longMode ? BlockMode.Code64 : BlockMode.Code32;
        if (longMode)
            c->Gpr[11] = flags;
        ulong masked = flags & ~(longMode ? c->Sfmask & 0xffff_ffff : Rflags.IF | Rflags.VM);
        Flags.Set(c, masked);
        if (((flags ^ masked) & Rflags.TF) != 0)
            DebugTraps.DecideStep(c);
        p.Paging.UpdatePrivilege(c);
        return OpResult.EndBlock;
    }

    /// <summary>SYSRET; <paramref name="size"/> 8 returns to 64-bit code, 4 to compatibility mode.</summary>
    public static OpResult Sysret(LogicalProcessor p, CpuState* c, Op* op, int size)
    {
        bool wide = CpuMode.Is64(c);
        if ((c->Efer & Efer.SCE) == 0 || (!wide && !(HasNarrowSyscall(p) && CpuMode.ProtectedMode(c))))
            return Outcome.Raise(c, Vector.UD);
        if (c->Cpl != 0 || (size == 8 && p.Model.SysretChecksTarget && !CpuMode.IsCanonical(c, c->Gpr[1])))
            return Outcome.Raise(c, Vector.GP, 0);
        uint selector = (uint)(c->Star >> 48);
        c->Rip = size == 8 ? c->Gpr[1] : (uint)c->Gpr[1];
        c->Cs = size == 8 ? Flat(selector + 16 | 3, UserCode64) : Flat(selector | 3, UserCode32);
        c->Ss = Flat(selector + 8 | 3, UserData);
        c->Cpl = 3;
        ulong image = CpuMode.LongMode(c) ? c->Gpr[11] : Flags.Get(c) | Rflags.IF;
        bool stepped = (c->Rflags & Rflags.TF) != 0;
        p.Events.SetRflags(c, (image & SysretFlags & (c->CodeBreakpoints != 0 ? ulong.MaxValue : ~Rflags.RF)) | Rflags.Fixed1);
        if ((c->Rflags & Rflags.TF) != 0 != stepped)
            DebugTraps.DecideStep(c);
        p.Events.ModeChanged(c);
        return OpResult.EndBlock;
    }

    public static OpResult Sysret64(LogicalProcessor p, CpuState* c, Op* op) => Sysret(p, c, op, 8);
    public static OpResult Sysret32(LogicalProcessor p, CpuState* c, Op* op) => Sysret(p, c, op, 4);

    public static OpResult Sysenter(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!HasSysenter(p, c))
            return Outcome.Raise(c, Vector.UD);
        if ((c->Cr0 & Cr0.PE) == 0 || (c->SysenterCs & 0xfffc) == 0)
            return Outcome.Raise(c, Vector.GP, 0);
        bool wide = CpuMode.LongMode(c);
        uint selector = (uint)c->SysenterCs & 0xfffc;
        c->Rflags &= ~(Rflags.VM | Rflags.IF | Rflags.RF);
        c->Cs = Flat(selector, wide ? KernelCode64 : KernelCode32);
        c->Ss = Flat(selector + 8, KernelData);
        c->Cpl = 0;
        c->Gpr[4] = wide ? c->SysenterEsp : (uint)c->SysenterEsp;
        c->Rip = wide ? c->SysenterEip : (uint)c->SysenterEip;
        p.Events.ModeChanged(c);
        return OpResult.EndBlock;
    }

    private static OpResult Sysexit(LogicalProcessor p, CpuState* c, int size)
    {
        // Where it is undefined the privilege still comes first (measured on Zen 4).
        if (!HasSysenter(p, c))
            return c->Cpl != 0 ? Outcome.Raise(c, Vector.GP, 0) : Outcome.Raise(c, Vector.UD);
        if ((c->Cr0 & Cr0.PE) == 0 || (c->SysenterCs & 0xfffc) == 0 || c->Cpl != 0)
            return Outcome.Raise(c, Vector.GP, 0);
        if (size == 8 && !(CpuMode.IsCanonical(c, c->Gpr[1]) && CpuMode.IsCanonical(c, c->Gpr[2])))
            return Outcome.Raise(c, Vector.GP, 0);
        uint selector = (uint)c->SysenterCs & 0xfffc;
        c->Cs = size == 8 ? Flat(selector + 32 | 3, UserCode64) : Flat(selector + 16 | 3, UserCode32);
        c->Ss = Flat((size == 8 ? selector + 40 : selector + 24) | 3, UserData);
        c->Gpr[4] = size == 8 ? c->Gpr[1] : (uint)c->Gpr[1];
        c->Rip = size == 8 ? c->Gpr[2] : (uint)c->Gpr[2];
        c->Cpl = 3;
        p.Events.ModeChanged(c);
        return OpResult.EndBlock;
    }

    public static OpResult Sysexit64(LogicalProcessor p, CpuState* c, Op* op) => Sysexit(p, c, 8);
    public static OpResult Sysexit32(LogicalProcessor p, CpuState* c, Op* op) => Sysexit(p, c, 4);

    public static OpResult Swapgs(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!CpuMode.Is64(c))
            return Outcome.Raise(c, Vector.UD);
        if (c->Cpl != 0)
            return Outcome.Raise(c, Vector.GP, 0);
        (c->Gs.Base, c->KernelGsBase) = (c->KernelGsBase, c->Gs.Base);
        return OpResult.Next;
    }

    // RDFSBASE and friends. Reg0 is the general register.
    private static bool BaseAllowed(LogicalProcessor p, CpuState* c)
    {
        if (CpuMode.Is64(c) && (c->Cr4 & Cr4.FSGSBASE) != 0)
            return true;
        Outcome.Raise(c, Vector.UD);
        return false;
    }

    private static OpResult ReadBase(LogicalProcessor p, CpuState* c, Op* op, ulong value)
    {
        if (!BaseAllowed(p, c))
            return OpResult.Fault;
        *(ulong*)((byte*)c + op->Reg0) = op->Size == 8 ? value : (uint)value;
        return OpResult.Next;
    }

    private static OpResult WriteBase(LogicalProcessor p, CpuState* c, Op* op, ulong* target)
    {
        if (!BaseAllowed(p, c))
            return OpResult.Fault;
        ulong value = *(ulong*)((byte*)c + op->Reg0);
        if (op->Size != 8)
            value = (uint)value;
        else if (!CpuMode.IsCanonical(c, value))
            return Outcome.Raise(c, Vector.GP, 0);
        *target = value;
        return OpResult.Next;
    }

    public static OpResult Rdfsbase(LogicalProcessor p, CpuState* c, Op* op) => ReadBase(p, c, op, c->Fs.Base);
    public static OpResult Rdgsbase(LogicalProcessor p, CpuState* c, Op* op) => ReadBase(p, c, op, c->Gs.Base);
    public static OpResult Wrfsbase(LogicalProcessor p, CpuState* c, Op* op) => WriteBase(p, c, op, &c->Fs.Base);
    public static OpResult Wrgsbase(LogicalProcessor p, CpuState* c, Op* op) => WriteBase(p, c, op, &c->Gs.Base);
}
