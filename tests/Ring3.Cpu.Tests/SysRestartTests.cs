using System.Runtime.CompilerServices;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu.Tests;

/// <summary>
/// Restart-exactness: an instruction that is interrupted by a nested fault at each page it touches, and restarted each time, must end in the state of
/// an undisturbed run.
/// Random descriptor tables, gates, TSSs, stacks, registers and system instructions in every mode.
/// </summary>
public sealed unsafe class SysRestartTests
{
    private const ulong Gdt = 0x3000, Ldt = 0x3800, Idt = 0x4ff8, Tss = 0x6fd0, Tss2 = 0x7fb0, Tss16 = 0x8ff0, Root = 0x1_0000, Low = 0x2_0000,
        Window = 0x4_0000;
    private const int Used = 0x8_0000;

    private readonly byte* _snapshot = HostMemory.Map(Used), _result = HostMemory.Map(Used);

    [Theory]
    [InlineData("long", 11)]
    [InlineData("compat", 12)]
    [InlineData("32", 13)]
    [InlineData("16", 14)]
    [InlineData("v86", 15)]
    [InlineData("real", 16)]
    public void InterruptedInstructionsEndAlike(string mode, int seed)
    {
        int finished = 0;
        EndAlike(mode, seed, 3000, (m, what) =>
        {
            ExitReason reason = Run(m, demand: true, what);
            finished += reason is ExitReason.SingleStep or ExitReason.Hlt ? 1 : 0;
            return reason;
        });
        Assert.True(finished > 1000, $"only {finished} cases got anywhere");
    }

    /// <summary>As above, but the nested tables map everything and the host pages are gone: each access faults in the host, and its page comes back.</summary>
    [Theory]
    [InlineData("long", 21)]
    [InlineData("compat", 22)]
    [InlineData("32", 23)]
    [InlineData("16", 24)]
    [InlineData("v86", 25)]
    [InlineData("real", 26)]
    public void InstructionsWhoseHostMemoryIsGoneEndAlike(string mode, int seed)
    {
        int failures = 0;
        EndAlike(mode, seed, 1500, (m, what) => RunWithoutMemory(m, what, ref failures));
        Assert.True(failures > 3000, $"only {failures} accesses failed");
    }

    /// <summary>Runs each case undisturbed and then as <paramref name="disturbed"/> does: exit, state and memory must be the same.</summary>
    private void EndAlike(string mode, int seed, int cases, Func<SysMachine, string, ExitReason> disturbed)
    {
        using SysMachine m = new();
        Random r = new(seed);
        for (int i = 0; i < cases; i++)
        {
            Randomize(m, r, mode);
            byte[] code = Instruction(r, mode == "long");
            ulong at = Low + (r.Next(4) == 0 ? 0x1000 - (ulong)r.Next(1, 8) : (ulong)r.Next(0x800));
            Place(m, mode, at, code);
            Unsafe.CopyBlock(_snapshot, m.Ram, Used);
            CpuState start = *m.C;
            string what = $"{mode} #{i}: {Convert.ToHexString(code)} cpl {m.C->Cpl}";

            ExitReason first = Run(m, demand: false, what);
            CpuState expected = *m.C;
            ExitInfoCopy exit = new(m.P.Exit);
            Unsafe.CopyBlock(_result, m.Ram, Used);

            Restore(m, start);
            ExitReason second = disturbed(m, what);
            Assert.True(first == second, $"{what}: {first} undisturbed, {second} disturbed");
            Compare(expected, *m.C, what + " " + first);
            Assert.True(exit.Equals(new ExitInfoCopy(m.P.Exit)), what + ": exit information differs");
            int difference = new ReadOnlySpan<byte>(_result, Used).CommonPrefixLength(new ReadOnlySpan<byte>(m.Ram, Used));
            Assert.True(difference == Used, $"{what} {first}: memory differs at {difference:x}");
        }
    }

    private static ExitReason RunWithoutMemory(SysMachine m, string what, ref int failures)
    {
        const int AllOfIt = SysMachine.Pages * 4096;
        HostMemory.Protect(m.Ram, AllOfIt, false, false);
        m.P.FlushAll();
        m.P.Access.Replay.Retire();
        m.C->HostSingleStep = 1;
        ExitReason reason;
        for (int exits = 0; ; exits++)
        {
            Assert.True(exits < 200, what + ": no progress");
            m.C->ExitRequest = 0;
            ulong retired = m.C->InstructionsRetired, rip = m.C->Rip;
            reason = m.P.Enter();
            if (reason == ExitReason.Request)
                continue;
            if (reason != ExitReason.MemoryFailure)
                break;
            failures++;
            // A task switch that has reached the new task has retired.
            Assert.True(m.C->InstructionsRetired == retired || m.C->Rip != rip, what + ": retired");
            ulong page = m.P.Exit->Host & ~0xfffUL;
            HostMemory.Protect((void*)page, 4096, true, true);
            if (m.P.Exit->IdtVectoring.Valid != 0)
                m.C->Inject = m.P.Exit->IdtVectoring;
        }
        HostMemory.Protect(m.Ram, AllOfIt, true, true);
        return reason;
    }

    private readonly record struct ExitInfoCopy(ExitReason Reason, byte Vector, uint ErrorCode, byte Length, ulong Payload)
    {
        public ExitInfoCopy(ExitInfo* e)
            : this(e->Reason, e->Reason == ExitReason.Exception ? e->Vector : (byte)0, e->Reason == ExitReason.Exception ? e->ErrorCode : 0,
                e->Reason is ExitReason.MsrRead or ExitReason.MsrWrite or ExitReason.Cpuid or ExitReason.Hypercall ? e->InstructionLength : (byte)0,
                    e->Reason == ExitReason.Exception ? e->Payload : 0) { }
    }

    private ExitReason Run(SysMachine m, bool demand, string what)
    {
        for (ulong page = 0; page < SysMachine.Pages; page++)
            *m.NestedEntry(page << 12) = demand ? 0 : m.NestedLeaf(page << 12);
        m.P.FlushAll();
        m.P.Access.Replay.Retire();
        m.C->HostSingleStep = 1;
        for (int exits = 0; ; exits++)
        {
            Assert.True(exits < 200, what + ": no progress");
            m.C->ExitRequest = 0;
            ExitReason reason = m.P.Enter();
            if (reason == ExitReason.Request)
                continue;
            if (reason != ExitReason.NestedFault || m.P.Exit->Gpa >> 12 >= SysMachine.Pages)
                return reason;
            Assert.True(demand, $"{what}: nested fault at {m.P.Exit->Gpa:x} with everything mapped");
            Assert.True(*m.NestedEntry(m.P.Exit->Gpa) == 0, $"{what}: nested fault at {m.P.Exit->Gpa:x}, which is mapped");
            *m.NestedEntry(m.P.Exit->Gpa) = m.NestedLeaf(m.P.Exit->Gpa);
            if (m.P.Exit->IdtVectoring.Valid != 0)
                m.C->Inject = m.P.Exit->IdtVectoring;
        }
    }

    private void Restore(SysMachine m, in CpuState start)
    {
        Unsafe.CopyBlock(m.Ram, _snapshot, Used);
        m.Machine.CodeWritten(m.Ram, Used);
        *m.C = start;
        m.P.RecomputeMode();
    }

    private static void Compare(in CpuState a, in CpuState b, string what)
    {
        fixed (CpuState* x = &a, y = &b)
        {
            for (int i = 0; i < 16; i++)
                Assert.True(x->Gpr[i] == y->Gpr[i], $"{what}: register {i} {x->Gpr[i]:x} {y->Gpr[i]:x}");
            Assert.True(x->Rip == y->Rip, $"{what}: rip {x->Rip:x} {y->Rip:x}");
            Assert.True(Flags.Get(x) == Flags.Get(y), $"{what}: flags {Flags.Get(x):x} {Flags.Get(y):x}");
            for (int i = 0; i < 8; i++)
            {
                Segment s = *CpuState.SegmentAt(x, i), t = *CpuState.SegmentAt(y, i);
                Assert.True(s.Selector == t.Selector && s.Base == t.Base && s.Limit == t.Limit && s.Access == t.Access,
                    $"{what}: segment {i} {s.Selector:x} {s.Access:x} {t.Selector:x} {t.Access:x}");
            }
            Assert.True((x->Cr0, x->Cr2, x->Cr3, x->Cr4, x->Efer) == (y->Cr0, y->Cr2, y->Cr3, y->Cr4, y->Efer),
                $"{what}: control registers, cr2 {x->Cr2:x} {y->Cr2:x} cr3 {x->Cr3:x} {y->Cr3:x}");
            Assert.True((x->Gdtr.Base, x->Gdtr.Limit, x->Idtr.Base, x->Idtr.Limit) == (y->Gdtr.Base, y->Gdtr.Limit, y->Idtr.Base, y->Idtr.Limit), what
                + ": table registers");
            Assert.True((x->Cpl, x->BlockMode, x->InterruptShadow, x->NmiBlocked, x->Dr6, x->Dr7) == (y->Cpl, y->BlockMode, y->InterruptShadow, y->NmiBlocked,
                y->Dr6, y->Dr7), what + ": mode or debug state");
        }
    }

    private static void Place(SysMachine m, string mode, ulong at, byte[] code)
    {
        m.Write(at, code);
        m.Write(at + (ulong)code.Length, [0xf4, 0xf4]);
        m.Machine.CodeWritten(m.Ram, Used);
        m.C->Rip = mode is "v86" or "real" ? at - m.C->Cs.Base : at;
    }

    /// <summary>Random tables and registers, mostly plausible.</summary>
    private static void Randomize(SysMachine m, Random r, string mode)
    {
        bool longMode = mode is "long" or "compat";
        new Span<byte>(m.Ram, Used).Clear();
        for (int i = 0; i < 32; i++)
        {
            m.At64(Gdt + 8 * (ulong)i) = i == 0 ? 0 : RandomDescriptor(r, longMode);
            m.At64(Ldt + 8 * (ulong)i) = RandomDescriptor(r, longMode);
        }
        for (ulong i = 0; i < 64; i++)
            RandomGate(m, r, longMode, i);
        for (ulong i = 0; i < 0x70; i += 2)
        {
            m.At16(Tss + i) = RandomWord(r);
            m.At16(Tss2 + i) = RandomWord(r);
            m.At16(Tss16 + i) = RandomWord(r);
        }
        for (int i = 0; i < 5; i++)
        {
            m.At64(Tss + 4 + 8 * (ulong)i) = Window + (ulong)r.Next(0x1_0000);
            m.At64(Tss + 0x24 + 8 * (ulong)i) = Window + (ulong)r.Next(0x1_0000);
        }
        uint[] window = RandomWindow(r);
        window.CopyTo(new Span<uint>(m.Ram + Window, window.Length));
        Processor(m, r, mode);
    }

    private static uint[] s_window = [];
    private static int s_windowUses;

    /// <summary>What stacks and operands hold: selectors, code addresses, noise.</summary>
    private static uint[] RandomWindow(Random r)
    {
        if (s_windowUses++ % 16 != 0)
            return s_window;
        uint[] window = new uint[0x4000];
        for (int i = 0; i < window.Length; i++)
            window[i] = r.Next(3) == 0 ? (uint)r.Next() : r.Next(2) == 0 ? (uint)RandomSelector(r) : (uint)(Low + (ulong)r.Next(0x2000));
        return s_window = window;
    }

    private static void Processor(SysMachine m, Random r, string mode)
    {
        CpuState* c = m.C;
        bool longMode = mode is "long" or "compat", real = mode == "real", v86 = mode == "v86";
        uint cpl = v86 ? 3u : real ? 0u : (uint)(r.Next(2) * 3);
        m.P.Reset(false);
        c->ExceptionIntercepts = 0;
        for (int i = 0; i < 16; i++)
            c->Gpr[i] = r.Next(2) == 0 ? Window + (uint)r.Next(0x1_0000) : RandomSelector(r);
        c->Gpr[4] = real || v86 ? (ulong)r.Next(0x40, 0xff00) : Window + (r.Next(2) == 0 ? (ulong)r.Next(0x100, 0xf000) : 0x1000 * (ulong)r.Next(1, 15)
            + (ulong)r.Next(4, 40));
        uint codeBits = mode == "long" ? Segment.L : mode is "compat" or "32" ? Segment.DB : 0;
        for (int i = 0; i < 6; i++)
            *CpuState.SegmentAt(c, i) = real || v86
                ? new Segment { Selector = (ushort)(i == 1 ? Low >> 4 : Window >> 4), Base = i == 1 ? Low : Window, Limit = 0xffff, Access = v86 ? 0xf3u
                    : 0x93u }
                : new Segment { Selector = (ushort)((uint)(8 * r.Next(1, 8)) | cpl), Limit = uint.MaxValue, Access = (i == 1 ? 0x9b | codeBits : 0x93
                    | Segment.DB) | Segment.G | cpl << 5 };
        c->Cr0 = Cr0.ET | (real ? 0 : Cr0.PE) | (real ? 0 : Cr0.PG | Cr0.WP);
        c->Cr4 = longMode ? Cr4.PAE : Cr4.PSE;
        c->Efer = longMode ? Efer.LME | Efer.LMA | Efer.SCE | Efer.NXE : 0;
        c->Cr3 = Root;
        PageTables(m, longMode);
        c->Gdtr = new TableRegister { Base = Gdt, Limit = r.Next(4) == 0 ? (uint)r.Next(256) : 255 };
        c->Ldtr = new Segment { Selector = 8, Base = Ldt, Limit = 255, Access = 0x82 };
        c->Idtr = real ? new TableRegister { Base = Window, Limit = 0x3ff } : new TableRegister { Base = Idt, Limit = 0x3ff };
        c->Tr = new Segment { Selector = 0x28, Base = Tss, Limit = 0x67, Access = longMode || r.Next(4) != 0 ? 0x8bu : 0x83u };
        c->Lstar = c->Cstar = Low + 0x1800;
        c->Star = (ulong)RandomSelector(r) << 32 | (ulong)RandomSelector(r) << 48;
        c->Sfmask = (ulong)(uint)r.Next() & 0x3_4700;
        c->SysenterCs = RandomSelector(r);
        c->SysenterEsp = Window + 0x800;
        c->SysenterEip = Low + 0x1900;
        Flags.Set(c, Rflags.Fixed1 | ((ulong)(uint)r.Next() & (Rflags.Status | Rflags.IF | Rflags.DF)) | (r.Next(3) == 0 ? Rflags.IOPL : 0)
            | (r.Next(6) == 0 ? Rflags.NT : 0) | (v86 ? Rflags.VM : 0));
        m.P.RecomputeMode();
    }

    private static void PageTables(SysMachine m, bool longMode)
    {
        const ulong rwu = Pte.P | Pte.W | Pte.U;
        if (!longMode)
        {
            m.At32(Root) = (uint)(Root + 0x1000 | rwu);
            for (uint i = 0; i < Used >> 12; i++)
                m.At32(Root + 0x1000 + 4 * i) = i << 12 | (uint)rwu;
            return;
        }
        m.At64(Root) = Root + 0x1000 | rwu;
        m.At64(Root + 0x1000) = Root + 0x2000 | rwu;
        m.At64(Root + 0x2000) = Root + 0x3000 | rwu;
        for (ulong i = 0; i < Used >> 12; i++)
            m.At64(Root + 0x3000 + 8 * i) = i << 12 | rwu;
    }

    private static ushort RandomSelector(Random r) => r.Next(20) == 0 ? (ushort)r.Next(0x10000)
        : (ushort)(8 * r.Next(0, 20) | (r.Next(4) == 0 ? r.Next(8) : r.Next(2) * 3));
    private static ushort RandomWord(Random r) => r.Next(3) == 0 ? (ushort)r.Next(0x10000) : RandomSelector(r);

    private static ulong RandomDescriptor(Random r, bool longMode)
    {
        ulong dpl = (ulong)(r.Next(6) == 0 ? r.Next(4) : r.Next(2) * 3) << 45, present = r.Next(12) == 0 ? 0 : 1UL << 47;
        ulong flat = 0x0080_0000_0000_0000 | 0x000f_0000_0000_ffff;
        switch (r.Next(8))
        {
            case 0:
            case 1:
                return flat | present | dpl | 0x1aUL << 40 | (ulong)r.Next(2) << 40 | (r.Next(5) == 0 ? 4UL << 40 : 0)
                    | (longMode && r.Next(3) != 0 ? 1UL << 53 : (ulong)r.Next(2) << 54);
            case 2:
            case 3:
                return flat | present | dpl | 0x12UL << 40 | (ulong)r.Next(2) << 40 | 1UL << 54;
            case 4:
                ulong tss = r.Next(2) == 0 ? Tss2 : Tss16;
                return 0x67 | tss << 16 | present | dpl | (r.Next(2) == 0 ? 9UL : 1UL) << 40 | (r.Next(5) == 0 ? 2UL << 40 : 0);
            case 5:
                return 0xff | Ldt << 16 | present | 2UL << 40;
            case 6:
                return (Low + 0x1a00 & 0xffff) | Low >> 16 << 48 | (ulong)(8 * r.Next(1, 20)) << 16 | (ulong)r.Next(4) << 32 | present | dpl
                    | (r.Next(3) == 0 ? 5UL : r.Next(2) == 0 ? 12UL : 4UL) << 40;
            default:
                return r.Next(3) == 0 ? (ulong)r.NextInt64() : flat | present | dpl | (ulong)r.Next(32) << 40;
        }
    }

    private static void RandomGate(SysMachine m, Random r, bool longMode, ulong vector)
    {
        ulong type = r.Next(10) switch { 0 => 5UL, 1 => 6UL, 2 => 7UL, 3 => 15UL, 4 => (ulong)r.Next(16), _ => 14UL };
        ulong target = Low + 0x1b00 + 4 * vector;
        ulong gate = (target & 0xffff) | (ulong)(8 * r.Next(1, 20)) << 16 | type << 40 | (ulong)(r.Next(2) * 3) << 45 | (r.Next(15) == 0 ? 0 : 1UL << 47)
            | target >> 16 << 48;
        m.Ram[target] = 0xf4;
        if (!longMode)
        {
            m.At64(Idt + 8 * vector) = gate;
            return;
        }
        m.At64(Idt + 16 * vector) = gate | (ulong)(r.Next(4) == 0 ? r.Next(8) : 0) << 32;
        m.At64(Idt + 16 * vector + 8) = 0;
    }

    /// <summary>One system instruction. Memory operands are [bx/ebx/rbx], [si..] or the stack.</summary>
    private static byte[] Instruction(Random r, bool is64)
    {
        byte[][] forms =
        [
            [0xcf], [0x66, 0xcf], [0xcb], [0xca, 4, 0], [0x66, 0xcb], [0xcd, (byte)r.Next(64)], [0xcc], [0xce], [0xf1], [0x0f, 0x0b],
            [0x8e, (byte)(0xc0 | r.Next(6) << 3 | r.Next(8))], [0x8e, (byte)(r.Next(6) << 3 | 3)], [0x8c, (byte)(0xc0 | r.Next(6) << 3 | r.Next(8))],
                [0x8c, (byte)(r.Next(6) << 3 | 3)],
            [0x06], [0x07], [0x16], [0x17], [0x1e], [0x1f], [0x0f, 0xa0], [0x0f, 0xa1], [0x0f, 0xa8], [0x0f, 0xa9],
            [0xff, 0x1b], [0xff, 0x2b], [0x66, 0xff, 0x1b], [0xff, 0x1e], [0x0f, 0xb2, 0x03], [0x0f, 0xb4, 0x03], [0x0f, 0xb5, 0x06], [0xc4, 0x03],
                [0xc5, 0x06],
            [0x9a, 0, 0x1c, 2, 0, RandomLow(r), 0], [0xea, 0, 0x1c, 2, 0, RandomLow(r), 0],
            [0x0f, 0x00, (byte)(r.Next(6) << 3 | 3)], [0x0f, 0x00, (byte)(0xc0 | r.Next(6) << 3 | r.Next(8))], [0x0f, 0x01, (byte)(r.Next(5) << 3 | 3)],
                [0x0f, 0x01, (byte)(0xe0 | r.Next(8))],
            [0x0f, 0x02, (byte)r.Next(0xc0, 0x100)], [0x0f, 0x03, (byte)r.Next(0xc0, 0x100)], [0x0f, 0x02, 0x03], [0x63, 0x03],
            [0x0f, 0x20, (byte)(0xc0 | r.Next(8) << 3 | r.Next(8))], [0x0f, 0x22, 0xd8], [0x0f, 0x06], [0x0f, 0x21, (byte)(0xc0 | r.Next(8) << 3 | r.Next(8))],
            [0x0f, 0x05], [0x0f, 0x07], [0x48, 0x0f, 0x07], [0x0f, 0x34], [0x0f, 0x35], [0x0f, 0x32], [0x0f, 0x30], [0x0f, 0xa2], [0x0f, 0x01, 0xc1],
                [0x0f, 0x01, 0xf8],
            [0x0f, 0x01, 0x3b], [0xf4], [0x9c], [0x9d], [0x60], [0x61], [0xc8, 0x20, 0, 3], [0xc9], [0xe8, 0, 0, 0, 0], [0xc3], [0xff, 0x33], [0x8f, 0x03],
                [0xa5], [0x6d], [0xee],
            [0x48, 0xcf], [0x48, 0xcb], [0xf3, 0x48, 0x0f, 0xae, 0xd0], [0xfa], [0xfb], [0x0f, 0xc7, 0x0b], [0xf0, 0x0f, 0xc1, 0x03],
        ];
        _ = is64;
        return forms[r.Next(forms.Length)];
    }

    private static byte RandomLow(Random r) => (byte)(8 * r.Next(20) | r.Next(2) * 3);
}
