using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>
/// CR4.VME and CR4.PVI: each instruction that knows the interrupt flag, from every combination of mode, CR4, IOPL, IF, VIF and VIP, against the
/// manual's tables; and ways in and out of virtual-8086 mode.
/// </summary>
public sealed unsafe class SysVirtualInterruptTests
{
    public enum Mode { Virtual8086, User, Supervisor }
    public enum Step { Nop, Cli, Sti, Pushf16, Pushf32, Popf16, Popf32, Iret16, Iret32, IntProgram, IntMonitor }

    private const ulong CodeAt = CpuHarness.CodeAddress, StackAt = 0x7_0000, TargetAt = 0x40;
    private const byte ToProgram = 0x21, ToMonitor = 0x80;
    private const ushort ProgramHandler = 0x1234, ProgramSegment = 0x3000;
    private const ulong Loadable = Rflags.Status | Rflags.TF | Rflags.DF | Rflags.NT;

    private readonly record struct Case(Mode Mode, Step Step, ulong Cr4, ulong Flags, ulong Image)
    {
        public bool Vme => Mode == Mode.Virtual8086 && (Cr4 & Arch.Cr4.VME) != 0;
        public ulong Iopl => Flags >> Rflags.IoplShift & 3;
        public bool Has(ulong flag) => (Flags & flag) != 0;
    }

    /// <summary>What one step leaves: a vector (or -1), RFLAGS, and what has been pushed.</summary>
    private readonly record struct Outcome(int Vector, ulong Flags, ulong Pushed, ulong Rip)
    {
        public static Outcome Fault => new(Arch.Vector.GP, 0, 0, 0);
    }

    private static ulong With(ulong value, ulong flag, bool set) => set ? value | flag : value & ~flag;

    /// <summary>The manual's rules, as functions of values.</summary>
    private static Outcome Specify(Case t)
    {
        int cpl = t.Mode == Mode.Supervisor ? 0 : 3;
        bool virtualFlag = t.Mode == Mode.Virtual8086 ? t.Vme && t.Iopl < 3 : cpl == 3 && t.Iopl < 3 && (t.Cr4 & Cr4.PVI) != 0;
        bool owns = t.Mode == Mode.Virtual8086 ? t.Iopl == 3 : cpl <= (int)t.Iopl;
        ulong f = t.Flags, next = 1;
        if (virtualFlag && t.Has(Rflags.VIF) && t.Has(Rflags.VIP))
            return Outcome.Fault;
        bool trapped = t.Mode == Mode.Virtual8086 && t.Iopl < 3;
        ulong seen = trapped ? With(f, Rflags.IF, t.Has(Rflags.VIF)) | Rflags.IOPL : f;
        switch (t.Step)
        {
            case Step.Cli:
                return owns ? new(-1, f & ~Rflags.IF, 0, next) : virtualFlag ? new(-1, f & ~Rflags.VIF, 0, next) : Outcome.Fault;
            case Step.Sti:
                return owns ? new(-1, f | Rflags.IF, 0, next) : virtualFlag && !t.Has(Rflags.VIP) ? new(-1, f | Rflags.VIF, 0, next) : Outcome.Fault;
            case Step.Pushf16:
                return trapped && !t.Vme ? Outcome.Fault : new(-1, f, (ushort)seen, next);
            case Step.Pushf32:
                return trapped ? Outcome.Fault : new(-1, f, f & ~(Rflags.VM | Rflags.RF), next);
            case Step.Popf16 or Step.Iret16 when trapped:
                if (!t.Vme || (t.Image & Rflags.TF) != 0 || ((t.Image & Rflags.IF) != 0 && t.Has(Rflags.VIP)))
                    return Outcome.Fault;
                return new(-1, With(f & ~Loadable | t.Image & Loadable, Rflags.VIF, (t.Image & Rflags.IF) != 0), 0, t.Step == Step.Iret16 ? TargetAt : next);
            case Step.Popf32 or Step.Iret32 when trapped:
                return Outcome.Fault;
            case Step.Popf16 or Step.Iret16 or Step.Popf32 or Step.Iret32:
                ulong mask = Loadable | (owns ? Rflags.IF : 0) | (cpl == 0 ? Rflags.IOPL : 0) | (t.Step is Step.Popf32 or Step.Iret32 ? Rflags.AC | Rflags.ID
                    : 0);
                return new(-1, f & ~mask | t.Image & mask, 0, t.Step is Step.Iret16 or Step.Iret32 ? TargetAt : next);
            case Step.IntProgram when t.Vme:
                return new(-1, f & ~(Rflags.TF | (trapped ? Rflags.VIF : Rflags.IF)), (ushort)seen, ProgramHandler);
            case Step.IntProgram or Step.IntMonitor:
                return trapped ? Outcome.Fault : new(t.Step == Step.IntProgram ? ToProgram : ToMonitor, 0, 0, 0);
            default:
                return new(-1, f, 0, next);
        }
    }

    private static byte[] CodeOf(Case t)
    {
        bool wide = t.Mode != Mode.Virtual8086;
        byte[] Sized(byte opcode, bool is32) => is32 == wide ? [opcode] : [0x66, opcode];
        return t.Step switch
        {
            Step.Nop => [0x90],
            Step.Cli => [0xfa],
            Step.Sti => [0xfb],
            Step.Pushf16 or Step.Pushf32 => Sized(0x9c, t.Step == Step.Pushf32),
            Step.Popf16 or Step.Popf32 => Sized(0x9d, t.Step == Step.Popf32),
            Step.Iret16 or Step.Iret32 => Sized(0xcf, t.Step == Step.Iret32),
            Step.IntProgram => [0xcd, ToProgram],
            _ => [0xcd, ToMonitor],
        };
    }

    /// <summary>A machine that can be put into any of the modes; the TSS sends <see cref="ToProgram"/> alone to the 8086 program.</summary>
    private static SysProtectedHarness Machine()
    {
        SysProtectedHarness m = new(0, a => a.nop());
        m.SetGate(ToProgram, 0xee);
        m.SetGate(ToMonitor, 0xee);
        m.C->Tr.Limit = 0x67 + 32 + 1;
        m.Word32(SysProtectedHarness.Tss + 0x64) = (0x68 + 32) << 16;
        m.H.Data(SysProtectedHarness.Tss + 0x68, 33).Fill(0xff);
        m.H.Memory[SysProtectedHarness.Tss + 0x68 + ToProgram / 8] = unchecked((byte)~(1 << (ToProgram & 7)));
        m.Word32(ToProgram * 4) = (uint)ProgramSegment << 16 | ProgramHandler;
        return m;
    }

    private static void Prepare(SysProtectedHarness m, Case t)
    {
        CpuState* c = m.C;
        ulong flags = t.Flags | Rflags.Fixed1 | (t.Mode == Mode.Virtual8086 ? Rflags.VM : 0);
        Flags.Set(c, flags);
        c->Cr4 = t.Cr4;
        if (t.Mode == Mode.Virtual8086)
        {
            for (int i = 0; i < 6; i++)
                *CpuState.SegmentAt(c, i) = new Segment { Limit = 0xffff, Access = 0xf3, Selector = (ushort)(0x4000 + i), Base = (ulong)(0x4_0000 + 16 * i) };
            (c->Cs.Selector, c->Cs.Base) = ((ushort)(CodeAt >> 4), CodeAt);
            (c->Ss.Selector, c->Ss.Base) = ((ushort)(StackAt >> 4), StackAt);
            (c->Rip, c->Gpr[4]) = (0, 0x8000);
        }
        else
        {
            bool user = t.Mode == Mode.User;
            for (int i = 0; i < 6; i++)
                *CpuState.SegmentAt(c, i) = new Segment { Limit = uint.MaxValue, Access = user ? 0xc0f3u : 0xc093u, Selector = user
                    ? SysProtectedHarness.UserData : SysProtectedHarness.Data };
            c->Cs = new Segment { Limit = uint.MaxValue, Access = user ? 0xc0fbu : 0xc09bu, Selector = user ? SysProtectedHarness.UserCode
                : SysProtectedHarness.Code };
            (c->Rip, c->Gpr[4]) = (CodeAt, StackAt + 0x8000);
        }
        ulong at = StackAt + 0x8000;
        if (t.Step is Step.Iret16)
            m.H.Word(at) = TargetAt | CodeAt >> 4 << 16 | t.Image << 32;
        else if (t.Step is Step.Iret32)
            (m.Word32(at), m.Word32(at + 4), m.Word32(at + 8)) = ((uint)TargetAt, (uint)CodeAt >> 4, (uint)t.Image);
        else
            m.Word32(at) = (uint)t.Image;
        (c->InterruptShadow, c->HostSingleStep) = (0, 1);
        m.P.RecomputeMode();
    }

    private static void Check(SysProtectedHarness m, Case t)
    {
        Outcome e = Specify(t);
        Prepare(m, t);
        CpuState* c = m.C;
        ExitReason reason = m.H.Run();
        Assert.True(reason == ExitReason.SingleStep, $"{t}: {reason}");
        ulong stub = c->Rip - SysProtectedHarness.Stubs;
        int vector = c->Cpl == 0 && t.Mode != Mode.Supervisor && stub < 16 * 256 ? (int)(stub / 16) : -1;
        Assert.True(e.Vector == vector, $"{t}: vector {vector}, expected {e.Vector}");
        if (vector >= 0)
        {
            bool fault = vector == Vector.GP;
            int frame = fault ? 1 : 0;
            ulong start = t.Mode == Mode.Virtual8086 ? 0 : CodeAt;
            Assert.True(!fault || m.Frame(0) == 0, $"{t}: error code {m.Frame(0):x}");
            Assert.True(m.Frame(frame) == start + (fault ? 0UL : 2UL), $"{t}: saved EIP {m.Frame(frame):x}");
            ulong saved = t.Flags | Rflags.Fixed1 | (t.Mode == Mode.Virtual8086 ? Rflags.VM : 0) | (fault ? Rflags.RF : 0);
            Assert.True(m.Frame(frame + 2) == saved, $"{t}: saved EFLAGS {m.Frame(frame + 2):x}, expected {saved:x}");
            return;
        }
        ulong flags = Flags.Get(c) & ~(Rflags.VM | Rflags.Fixed1);
        Assert.True(flags == (e.Flags & ~Rflags.Fixed1), $"{t}: EFLAGS {flags:x}, expected {e.Flags:x}");
        Assert.True((c->Rflags & Rflags.VM) != 0 == (t.Mode == Mode.Virtual8086), $"{t}: VM");
        ulong rip = e.Rip == 1 ? (t.Mode == Mode.Virtual8086 ? 0 : CodeAt) + (ulong)CodeOf(t).Length : e.Rip;
        Assert.True(c->Rip == rip, $"{t}: RIP {c->Rip:x}, expected {rip:x}");
        int pushed = t.Step switch { Step.Pushf16 => 2, Step.Pushf32 => 4, Step.IntProgram => 6, _ => 0 };
        int popped = t.Step switch { Step.Popf16 => 2, Step.Popf32 => 4, Step.Iret16 => 6, Step.Iret32 => 12, _ => 0 };
        ulong sp = c->Gpr[4] - (t.Mode == Mode.Virtual8086 ? 0 : StackAt);
        Assert.True(sp == (ulong)(0x8000 - pushed + popped), $"{t}: SP {sp:x}");
        if (pushed == 0)
            return;
        ulong image = pushed == 4 ? m.Word32(StackAt + sp) : *(ushort*)(m.H.Memory + StackAt + sp + (ulong)pushed - 2);
        ulong mask = pushed == 4 ? uint.MaxValue : ushort.MaxValue;
        Assert.True(image == ((e.Pushed | Rflags.Fixed1) & mask), $"{t}: pushed {image:x}, expected {e.Pushed:x}");
    }

    [Theory]
    [InlineData(Mode.Virtual8086)]
    [InlineData(Mode.User)]
    [InlineData(Mode.Supervisor)]
    public void EveryTransition_FollowsTheManual(Mode mode)
    {
        ulong[] images =
        [
            0, Rflags.IF, Rflags.TF, Rflags.IF | Rflags.TF, Rflags.IOPL, Rflags.Status | Rflags.DF | Rflags.NT | Rflags.IF, 0x7fd5 & ~Rflags.TF,
            Rflags.VIF, Rflags.VIP, Rflags.VIF | Rflags.VIP, Rflags.AC | Rflags.ID, Rflags.VM, 0x3f_7fd5 & ~Rflags.RF,
        ];
        using SysProtectedHarness m = Machine();
        foreach (Step step in Enum.GetValues<Step>())
        {
            if (mode != Mode.Virtual8086 && step is Step.Iret16 or Step.Iret32 or Step.IntProgram or Step.IntMonitor)
                continue;
            bool pops = step is Step.Popf16 or Step.Popf32 or Step.Iret16 or Step.Iret32;
            m.H.Write(CodeAt, CodeOf(new Case(mode, step, 0, 0, 0)));
            for (ulong bits = 0; bits < 1 << 7; bits++)
            {
                ulong flags = Rflags.CF | (bits & 3) << Rflags.IoplShift | ((bits & 4) != 0 ? Rflags.IF : 0) | ((bits & 8) != 0 ? Rflags.VIF : 0)
                    | ((bits & 16) != 0 ? Rflags.VIP : 0);
                foreach (ulong image in pops ? images : [0])
                    Check(m, new Case(mode, step, bits >> 5, flags, image | Rflags.Fixed1));
            }
        }
    }

    private static Case Program(ulong flags, Step step = Step.Nop, ulong cr4 = Cr4.VME) => new(Mode.Virtual8086, step, cr4, flags, 2);

    /// <summary>The bitmap ends where the I/O permission bitmap begins; what lies beyond the TSS's limit is #GP(0), with IOPL 3 as well.</summary>
    [Theory]
    [InlineData(0x67u, 0x68 + 32, true)]
    [InlineData(0x67u + 32, 0x68 + 32, false)]
    [InlineData(0x68u + ToProgram / 8, 0x68 + 32, false)]
    [InlineData(0x67u + ToProgram / 8, 0x68 + 32, true)]
    [InlineData(0x66u, 32, true)]
    [InlineData(0xffffu, 16, true)]
    [InlineData(0x67u, 32, false)]
    public void RedirectionBitmap_IsInsideTheTss(uint limit, int map, bool faults)
    {
        foreach (ulong iopl in (ulong[])[0, Rflags.IOPL])
        {
            using SysProtectedHarness m = Machine();
            m.H.Write(CodeAt, [0xcd, ToProgram]);
            Prepare(m, Program(iopl));
            m.Word32(SysProtectedHarness.Tss + 0x64) = (uint)map << 16;
            m.C->Tr.Limit = limit;
            Assert.Equal(ExitReason.SingleStep, m.H.Run());
            Assert.Equal(faults ? SysProtectedHarness.Stubs + 16 * Vector.GP : ProgramHandler, m.C->Rip);
            if (faults)
                Assert.Equal(0u, m.Frame(0));
        }
    }

    [Fact]
    public void RedirectionBitmap_NeedsA32BitTss()
    {
        using SysProtectedHarness m = Machine();
        m.H.Write(CodeAt, [0xcd, ToProgram]);
        Prepare(m, Program(Rflags.IOPL));
        m.C->Tr.Access = 0x83;
        m.H.Data(SysProtectedHarness.Tss, 0x2c)[2..6].Fill(0);
        m.C->HostSingleStep = 0;
        m.C->ExceptionIntercepts = 1u << Vector.GP;
        Assert.Equal(ExitReason.Exception, m.H.Run());
        Assert.Equal((Vector.GP, 0u), (m.H.Exit->Vector, m.H.Exit->ErrorCode));
    }

    /// <summary>A redirected INT n with TF set: the program's handler starts without a trap, and the pushed image still has TF.</summary>
    [Fact]
    public void RedirectedInterrupt_ClearsTheTrapFlag()
    {
        using SysProtectedHarness m = Machine();
        m.H.Write(CodeAt, [0xcd, ToProgram]);
        m.H.Write(((ulong)ProgramSegment << 4) + ProgramHandler, [0x90, 0xf4]);
        Prepare(m, Program(Rflags.TF | Rflags.VIF));
        m.C->HostSingleStep = 0;
        m.P.RecomputeMode();
        Assert.Equal(Vector.GP, m.RunToHandler()); // HLT
        Assert.Equal((uint)ProgramHandler + 1, m.Frame(1));
        Assert.Equal((uint)(Rflags.TF | Rflags.IF | Rflags.IOPL), *(ushort*)(m.H.Memory + StackAt + 0x8000 - 2) & (uint)(Rflags.TF | Rflags.IF | Rflags.IOPL));
    }

    /// <summary>A page fault on the program's stack leaves nothing done, also when the table has been read.</summary>
    [Fact]
    public void RedirectedInterrupt_FaultsWithoutATrace()
    {
        using SysProtectedHarness m = Machine();
        m.H.Write(CodeAt, [0xcd, ToProgram]);
        Prepare(m, Program(Rflags.VIF));
        (m.C->Ss.Limit, m.C->Gpr[4], m.C->HostSingleStep) = (0x7fff, 0x8003, 0);
        m.P.RecomputeMode();
        Assert.Equal(Vector.SS, m.RunToHandler());
        Assert.Equal((0u, 0u, 0x8003u), (m.Frame(0), m.Frame(1), m.Frame(4)));
        Assert.Equal((uint)Rflags.VIF, m.Frame(3) & (uint)Rflags.VIF);
    }

    private static void ReturnFrame(SysProtectedHarness m, ulong flags, ushort es = 0x2000, ushort ds = 0x3000, ushort fs = 0x4000, ushort gs = 0x5000)
    {
        ulong at = SysProtectedHarness.Esp0 - 0x100;
        uint[] words = [0x20, 0x1100, (uint)(flags | Rflags.VM | Rflags.Fixed1), 0x1000, 0x7000, es, ds, fs, gs];
        for (int i = 0; i < words.Length; i++)
            m.Word32(at + 4 * (ulong)i) = words[i];
        m.C->Gpr[4] = at;
        m.P.RecomputeMode();
    }

    /// <summary>VIF and VIP set together by the monitor's IRET: #GP(0) at the program's instruction, which has not run.</summary>
    [Theory]
    [InlineData(Cr4.VME, 0, true)]
    [InlineData(Cr4.VME, Rflags.IOPL, false)]
    [InlineData(Cr4.PVI, 0, false)]
    [InlineData(0, 0, false)]
    public void PendingVirtualInterrupt_StopsTheProgramItIsReturnedTo(ulong cr4, ulong iopl, bool faults)
    {
        using SysProtectedHarness m = new(0, a => a.iretd());
        m.C->Cr4 = cr4;
        m.H.Write(0x1_1020, [0x40, 0xf4]); // inc ax; hlt
        ReturnFrame(m, Rflags.VIF | Rflags.VIP | iopl);
        Assert.Equal(Vector.GP, m.RunToHandler());
        Assert.Equal((0u, faults ? 0x20u : 0x21u, 0x1100u), (m.Frame(0), m.Frame(1), m.Frame(2)));
        Assert.Equal(faults ? 0UL : 1UL, m.C->Gpr[0]);
        Assert.Equal(Rflags.VIF | Rflags.VIP, m.Frame(3) & (Rflags.VIF | Rflags.VIP));
    }

    /// <summary>The same by a task switch, and by an IRET to a protected-mode program with PVI.</summary>
    [Fact]
    public void PendingVirtualInterrupt_StopsANewTaskAndAUserProgram()
    {
        using SysProtectedHarness task = new(0, a => a.db(0xea, 0, 0, 0, 0, (byte)SysProtectedHarness.Tss2Selector, 0));
        ulong tss = SysProtectedHarness.Tss2;
        (task.Word32(tss + 4), task.Word32(tss + 8)) = ((uint)SysProtectedHarness.Esp0, SysProtectedHarness.Data);
        (task.Word32(tss + 0x20), task.Word32(tss + 0x24), task.Word32(tss + 0x38), task.Word32(tss + 0x4c), task.Word32(tss + 0x50)) = (0x20,
            (uint)(Rflags.VM | Rflags.VIF | Rflags.VIP | 2), 0x1000, 0x1100, 0x7000);
        task.C->Cr4 = Cr4.VME;
        task.H.Write(0x1_1020, [0x40, 0xf4]);
        task.P.RecomputeMode();
        Assert.Equal(Vector.GP, task.RunToHandler());
        Assert.Equal((0u, 0x20u, 0UL), (task.Frame(0), task.Frame(1), task.C->Gpr[0]));

        foreach (bool pvi in (bool[])[true, false])
        {
            using SysProtectedHarness m = new(0, a =>
                { a.push(SysProtectedHarness.UserData); a.push(0x9_0000); a.push((int)(Rflags.VIF | Rflags.VIP
                | 2)); a.push(SysProtectedHarness.UserCode); a.push(0x1_1020); a.iretd(); });
            m.C->Cr4 = pvi ? Cr4.PVI : Cr4.VME;
            m.H.Write(0x1_1020, [0x40, 0xf4]);
            m.P.RecomputeMode();
            Assert.Equal(Vector.GP, m.RunToHandler());
            Assert.Equal(pvi ? 0UL : 1UL, m.C->Gpr[0]);
        }
    }

    /// <summary>Setting CR4.PVI with VIF and VIP in EFLAGS changes nothing at CPL 0, and stops the program that a far return enters.</summary>
    [Fact]
    public void PendingVirtualInterrupt_IsExaminedAtCpl3Only()
    {
        using SysProtectedHarness m = new(0, a =>
        {
            a.mov(eax, (int)Cr4.PVI);
            a.mov(cr4, eax);
            a.xor(eax, eax);
            a.push(SysProtectedHarness.UserData);
            a.push(0x9_0000);
            a.push(SysProtectedHarness.UserCode);
            a.push(0x1_1020);
            a.retf();
        });
        Flags.Set(m.C, Rflags.VIF | Rflags.VIP);
        m.H.Write(0x1_1020, [0x40, 0xf4]);
        m.P.RecomputeMode();
        Assert.Equal(Vector.GP, m.RunToHandler());
        Assert.Equal((0u, 0x1_1020u, 0UL), (m.Frame(0), m.Frame(1), m.C->Gpr[0]));
    }

    /// <summary>Leaving virtual-8086 mode saves the data segments and takes them away; IRET gives them back.</summary>
    [Fact]
    public void InterruptOutOfVirtual8086Mode_TakesTheDataSegmentsAway()
    {
        using SysProtectedHarness m = new(0, a => a.iretd());
        m.H.Write(0x1_1020, [0xcd, ToMonitor, 0x8c, 0xd8, 0xf4]); // int; mov ax, ds; hlt
        m.SetGate(ToMonitor, 0xef, offset: 0x2_0000);
        m.H.Write(0x2_0000, [0xf4, 0xcf]);
        ReturnFrame(m, Rflags.IOPL | Rflags.IF | Rflags.VIF);
        Assert.Equal(ExitReason.Hlt, m.H.Run());
        Assert.Equal(0x2_0001UL, m.C->Rip);
        Assert.Equal(SysProtectedHarness.Esp0 - 36, m.C->Gpr[4]);
        uint[] frame = [.. Enumerable.Range(0, 9).Select(m.Frame)];
        Assert.Equal([0x22, 0x1100, (uint)(Rflags.VM | Rflags.IOPL | Rflags.IF | Rflags.VIF | Rflags.Fixed1), 0x1000, 0x7000, 0x2000, 0x3000, 0x4000, 0x5000],
            frame);
        foreach (int i in (int[])[SegmentIndex.ES, SegmentIndex.DS, SegmentIndex.FS, SegmentIndex.GS])
            Assert.Equal((0, Segment.Unusable), (CpuState.SegmentAt(m.C, i)->Selector, CpuState.SegmentAt(m.C, i)->Access & Segment.Unusable));
        // A trap gate: IF stays, VM and NT go, VIF stays for the monitor to see.
        Assert.Equal(Rflags.IF | Rflags.VIF, m.C->Rflags & (Rflags.IF | Rflags.VIF | Rflags.VM));
        Assert.Equal((SysProtectedHarness.Code, SysProtectedHarness.Data), (m.C->Cs.Selector, m.C->Ss.Selector));
        Assert.Equal(Vector.GP, m.RunToHandler()); // IRETD, then HLT of the program
        Assert.Equal((0x3000UL, 0x24u, 0x3000u), (m.C->Gpr[0] & 0xffff, m.Frame(1), m.Frame(7)));
    }

    /// <summary>The handler cannot use what it was not given, in each of the four segments.</summary>
    [Theory]
    [InlineData(0x26)]
    [InlineData(0x3e)]
    [InlineData(0x64)]
    [InlineData(0x65)]
    public void DataSegmentsOfTheProgram_AreNotTheMonitors(byte prefix)
    {
        using SysProtectedHarness m = new(0, a => a.iretd());
        m.H.Write(0x1_1020, [0xcd, ToMonitor]);
        m.SetGate(ToMonitor, 0xee, offset: 0x2_0000);
        m.H.Write(0x2_0000, [prefix, 0xa1, 0, 0, 1, 0]);
        ReturnFrame(m, Rflags.IOPL);
        Assert.Equal(Vector.GP, m.RunToHandler());
        Assert.Equal((0u, 0x2_0000u), (m.Frame(0), m.Frame(1)));
    }

    /// <summary>A handler of virtual-8086 mode has CPL 0: a conforming segment or one of another ring is #GP(selector).</summary>
    [Theory]
    [InlineData(SysProtectedHarness.Conforming)]
    [InlineData(SysProtectedHarness.UserCode & ~3)]
    public void HandlerOfVirtual8086Mode_IsInRing0(int selector)
    {
        using SysProtectedHarness m = new(0, a => a.iretd());
        m.H.Write(0x1_1020, [0xcd, ToMonitor]);
        m.SetGate(ToMonitor, 0xee, (ushort)selector);
        ReturnFrame(m, Rflags.IOPL);
        Assert.Equal(Vector.GP, m.RunToHandler());
        Assert.Equal((uint)selector, m.Frame(0));
    }
}
