using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>SYSCALL, SYSRET and IRET in translated code: what is written out, and what is left to the handlers, against the interpreter.</summary>
public sealed unsafe class TransitionTests
{
    private const ulong Data = RegionMachine.Data, Kernel = CpuHarness.CodeAddress, User = 0x2_0000, KernelTarget = 0x3_0000, Results = Data + 0x1_0000;
    private const ulong Frames = Data + 0x4000, FramesEnd = Data + 0x1_0000;
    private const int FrameBytes = 40, Rounds = 24;

    private static byte[] Assemble(ulong at, Action<Assembler> program) => SysLongHarness.Assemble(64, at, program);

    private static RegionMachine Make(byte[] kernel, Action<CpuHarness> prepare, int cpl, ProcessorModel? model = null) => new(kernel, h =>
    {
        SysLongHarness.MakeTables(h, cpl);
        h.State->Star = (ulong)SysLongHarness.KernelCode << 32 | 0x1bUL << 48;
        prepare(h);
        h.Cpu.RecomputeMode();
    }, cpl, model) { InBlocks = true };

    private static ExitReason Run(RegionMachine m, string what)
    {
        ExitReason reason = m.Run(what);
        CpuState* f = m.Fast.State, s = m.Slow.State;
        for (int i = SegmentIndex.ES; i <= SegmentIndex.GS; i++)
        {
            Segment a = *CpuState.SegmentAt(f, i), b = *CpuState.SegmentAt(s, i);
            Assert.True((a.Base, a.Limit, a.Access, a.Selector) == (b.Base, b.Limit, b.Access, b.Selector),
                $"{what}: segment {i} is {a.Selector:x} {a.Access:x} {a.Limit:x}, singly {b.Selector:x} {b.Access:x} {b.Limit:x}");
        }
        Assert.Equal((s->Cpl, s->BlockMode, s->NmiBlocked, s->StepMode), (f->Cpl, f->BlockMode, f->NmiBlocked, f->StepMode));
        return reason;
    }

    private static long Calls(RegionMachine m) => (long)m.Fast.Cpu.Translator.Counters.Sites[(int)SiteKind.Call];

    // ---- SYSCALL and SYSRET ----

    /// <summary>A program that loads RFLAGS from a table before each call, and a kernel that returns with others; both note what they find.</summary>
    private static RegionMachine SyscallLoop(int seed, ulong unusual, ProcessorModel? model = null, Action<CpuHarness>? prepare = null)
    {
        byte[] user = Assemble(User, a =>
        {
            Label again = a.CreateLabel();
            a.Label(ref again);
            a.push(__qword_ptr[rsi + rbx * 8]);
            a.popfq();
            a.syscall();
            a.pushfq();
            a.pop(rax);
            a.mov(__[rdi], rax);
            a.mov(__[rdi + 8], r11);
            a.lea(rdi, __[rdi + 48]);
            a.dec(ebx);
            a.jnz(again);
            a.hlt();
        });
        byte[] kernel = Assemble(Kernel, a =>
        {
            a.pushfq();
            a.pop(rax);
            a.mov(__[rdi + 16], rax);
            a.mov(__[rdi + 24], r11);
            a.mov(__[rdi + 32], rcx);
            a.mov(r11, __[rsi + rbx * 8 + 0x1000]);
            a.sysretq();
        });
        return Make(kernel, h =>
        {
            Random r = new(seed);
            h.Write(User, user);
            CpuState* c = h.State;
            c->Rip = User;
            c->Lstar = Kernel;
            c->Sfmask = (ulong)r.Next() & ~Rflags.TF | (r.Next(3) != 0 ? Rflags.AC | Rflags.IF : 0);
            (c->Gpr[3], c->Gpr[6], c->Gpr[7]) = (Rounds, Data, Results);
            for (ulong i = 0; i <= Rounds; i++)
            {
                h.Word(Data + 8 * i) = (ulong)(uint)r.Next() & ~unusual;
                h.Word(Data + 0x1000 + 8 * i) = (ulong)r.NextInt64() & ~unusual;
            }
            prepare?.Invoke(h);
        }, 3, model);
    }

    [Fact]
    public void SyscallAndSysret_WithUsualFlags_StayInTranslatedCode()
    {
        for (int seed = 0; seed < 40; seed++)
        {
            using RegionMachine m = SyscallLoop(seed, Rflags.TF | Rflags.AC | Rflags.VIF | Rflags.VIP);
            Assert.Equal(ExitReason.Exception, Run(m, $"seed {seed}"));
            Assert.Equal((User + 23, Vector.GP), (m.Fast.State->Rip, m.Fast.Exit->Vector));
            // POPF of more than the status flags is its handler's.
            long transitions = Calls(m) - Rounds;
            Assert.True(transitions <= 4, $"seed {seed}: {transitions} calls of handlers");
        }
    }

    [Fact]
    public void SyscallAndSysret_WithAnyFlags_AreTheInterpreters()
    {
        for (int seed = 0; seed < 60; seed++)
        {
            using RegionMachine m = SyscallLoop(seed, seed % 3 == 0 ? Rflags.TF : seed % 3 == 1 ? Rflags.VIP | Rflags.TF | Rflags.AC : 0);
            Run(m, $"seed {seed}");
        }
    }

    [Theory]
    [InlineData(0x0000_8000_0000_0000UL)]
    [InlineData(0xffff_7fff_ffff_f000UL)]
    [InlineData(0x0000_7fff_ffff_f000UL)]
    [InlineData(0UL)]
    public void Sysret_ToAnAddressWithoutCode_FaultsWhereTheModelDoes(ulong target)
    {
        foreach (bool amd in (bool[])[false, true])
        {
            byte[] kernel = Assemble(Kernel, a =>
            {
                Label good = a.CreateLabel();
                a.dec(ebx);
                a.jnz(good);
                a.mov(rcx, target);
                a.Label(ref good);
                a.sysretq();
            });
            byte[] user = Assemble(User, a => { Label l = a.CreateLabel(); a.Label(ref l); a.syscall(); a.jmp(l); });
            using RegionMachine m = Make(kernel, h =>
            {
                h.Write(User, user);
                (h.State->Rip, h.State->Lstar, h.State->Gpr[3]) = (User, Kernel, 5);
            }, 3, amd ? ProcessorModel.Zen4 : ProcessorModel.EmeraldRapids);
            Run(m, $"{target:x}, AMD {amd}");
        }
    }

    [Fact]
    public void Transitions_WithoutPrivilegeOrEnable_RaiseWhatTheirHandlersRaise()
    {
        foreach (Action<Assembler> program in (Action<Assembler>[])[a => a.sysretq(), a => a.iretq(), a => a.syscall()])
            foreach (int cpl in (int[])[0, 3])
                foreach (ulong efer in (ulong[])[0, Efer.SCE])
                {
                    using RegionMachine m = Make(Assemble(Kernel, program), h =>
                    {
                        h.State->Efer = h.State->Efer & ~Efer.SCE | efer;
                        h.State->Lstar = 0x0001_0000_0000_0000;
                        h.State->Gpr[1] = 0x7fff_0000_0000;
                    }, cpl);
                    Run(m, $"CPL {cpl}, EFER {efer:x}");
                }
    }

    [Fact]
    public void Sysret_LetsTheInterruptWindowIn()
    {
        using RegionMachine m = SyscallLoop(7, Rflags.TF | Rflags.AC | Rflags.VIF | Rflags.VIP | Rflags.IOPL, prepare: h =>
        {
            for (ulong i = 0; i <= Rounds; i++)
            {
                ref ulong image = ref h.Word(Data + 0x1000 + 8 * i);
                image = i == 5 ? image | Rflags.IF : image & ~Rflags.IF;
            }
            h.State->Sfmask = Rflags.IF;
            h.State->RequestInterruptWindow = 1;
        });
        Assert.Equal(ExitReason.InterruptWindow, Run(m, "window"));
        Assert.Equal(5UL, m.Fast.State->Gpr[3]);
        Assert.Equal(3u, m.Fast.State->Cpl);
    }

    // ---- IRET ----

    private readonly record struct Frame(ulong Rip, ulong Cs, ulong Flags, ulong Rsp, ulong Ss)
    {
        public static Frame Of(bool user, ulong flags, int stack = 0) => user
            ? new(User, SysLongHarness.UserCode, flags, SysLongHarness.UserStack, SysLongHarness.UserData)
            : new(KernelTarget, SysLongHarness.KernelCode, flags, SysLongHarness.Rsp0, stack == 0 ? 0UL : SysLongHarness.KernelData);
    }

    /// <summary>A kernel that returns through one frame after the other; what it returns to notes its state and comes back.</summary>
    private static RegionMachine ReturnLoop(ReadOnlySpan<Frame> frames, Action<CpuHarness>? prepare = null, Action<Assembler>? before = null,
        ulong at = Frames)
    {
        byte[] kernel = Assemble(Kernel, a =>
        {
            a.mov(rsp, rbx);
            a.add(rbx, FrameBytes);
            before?.Invoke(a);
            a.iretq();
        });
        byte[] user = Assemble(User, a =>
        {
            a.mov(__[rdi + 8], rsp);
            a.pushfq();
            a.pop(rax);
            a.mov(__[rdi], rax);
            a.add(rdi, 16);
            a.syscall();
        });
        byte[] target = Assemble(KernelTarget, a =>
        {
            a.mov(__[rdi + 8], rsp);
            a.mov(rsp, SysLongHarness.Rsp0);
            a.pushfq();
            a.pop(rax);
            a.mov(__[rdi], rax);
            a.mov(eax, ss);
            a.mov(__[rdi + 4], eax);
            a.add(rdi, 16);
            a.jmp(Kernel);
        });
        Frame[] all = frames.ToArray();
        return Make(kernel, h =>
        {
            h.Write(User, user);
            h.Write(KernelTarget, target);
            (h.State->Lstar, h.State->Sfmask) = (Kernel, 0x47700);
            (h.State->Gpr[3], h.State->Gpr[7]) = (at, Results);
            // What programs do not use is null, as a kernel has it.
            for (int i = SegmentIndex.DS; i <= SegmentIndex.GS; i++)
                *CpuState.SegmentAt(h.State, i) = EventUnit.NullSegment(0);
            h.State->Es = EventUnit.NullSegment(0);
            ulong word = at;
            foreach (Frame f in all)
                foreach (ulong value in (ulong[])[f.Rip, f.Cs, f.Flags, f.Rsp, f.Ss])
                {
                    h.Word(word) = value;
                    word += 8;
                }
            h.State->NmiBlocked = 1;
            prepare?.Invoke(h);
        }, 0);
    }

    /// <summary>The noting returns to both levels, and then the frame itself.</summary>
    private static Frame[] Behind(params ReadOnlySpan<Frame> last) =>
        [Frame.Of(true, 2), Frame.Of(false, 2), Frame.Of(false, 2, 1), Frame.Of(true, 0x202), Frame.Of(false, 2, 1), .. last];

    [Fact]
    public void Iret_ToBothLevels_StaysInTranslatedCode()
    {
        for (int seed = 0; seed < 40; seed++)
        {
            Random r = new(seed);
            const ulong Any = Rflags.Status | Rflags.DF | Rflags.IF | Rflags.IOPL | Rflags.ID | Rflags.RF;
            Frame[] frames = Behind([.. Enumerable.Range(0, 40).Select(_ => Frame.Of(r.Next(2) == 0, (ulong)r.Next() & Any | 2, r.Next(2)) with
            {
                Rsp = (ulong)r.NextInt64(),
            }).Select(f => f.Cs == SysLongHarness.UserCode ? f with { Rsp = SysLongHarness.UserStack + (ulong)r.Next(64) } : f)]);
            using RegionMachine m = ReturnLoop([.. frames, default]);
            Assert.Equal(ExitReason.Exception, Run(m, $"seed {seed}"));
            Assert.Equal(Vector.GP, m.Fast.Exit->Vector);
            Assert.Equal(0, m.Fast.State->NmiBlocked);
            Assert.True(Calls(m) <= 8, $"seed {seed}: {Calls(m)} calls of handlers for {frames.Length} returns");
        }
    }

    public static TheoryData<string> Unusual => [.. s_unusual.Keys];

    private static readonly Dictionary<string, Frame> s_unusual = new()
    {
        ["RIP above the hole"] = Frame.Of(true, 2) with { Rip = 0x0000_8000_0000_0000 },
        ["RIP below it"] = Frame.Of(false, 2) with { Rip = 0xffff_7fff_0000_0000 },
        ["CS null"] = Frame.Of(false, 2) with { Cs = 0 },
        ["CS null of the program"] = Frame.Of(true, 2) with { Cs = 3 },
        ["CS is data"] = Frame.Of(true, 2) with { Cs = SysLongHarness.UserData },
        ["CS of the kernel for the program"] = Frame.Of(true, 2) with { Cs = SysLongHarness.KernelCode | 3 },
        ["CS of the program for the kernel"] = Frame.Of(false, 2) with { Cs = SysLongHarness.UserCode & ~3UL },
        ["CS of 32 bits"] = Frame.Of(true, 2) with { Cs = SysLongHarness.UserCode32 },
        ["CS beyond the GDT"] = Frame.Of(true, 2) with { Cs = 0x7fb },
        ["CS in the LDT"] = Frame.Of(true, 2) with { Cs = SysLongHarness.UserCode | 4 },
        ["CS with junk above"] = Frame.Of(true, 2) with { Cs = SysLongHarness.UserCode | 0xdead_0000 },
        ["SS null for the program"] = Frame.Of(true, 2) with { Ss = 3 },
        ["SS 0 for the program"] = Frame.Of(true, 2) with { Ss = 0 },
        ["SS of the kernel for the program"] = Frame.Of(true, 2) with { Ss = SysLongHarness.KernelData },
        ["SS of the program for the kernel"] = Frame.Of(false, 2) with { Ss = SysLongHarness.UserData },
        ["SS null with a level"] = Frame.Of(false, 2) with { Ss = 1 },
        ["SS is code"] = Frame.Of(false, 2) with { Ss = SysLongHarness.KernelCode },
        ["SS with junk above"] = Frame.Of(false, 2) with { Ss = 0x1234_0000 },
        ["RSP not canonical"] = Frame.Of(false, 2) with { Rsp = 0x1234_0000_0000_0000 },
        ["TF"] = Frame.Of(true, 2 | Rflags.TF),
        ["TF in the kernel"] = Frame.Of(false, 2 | Rflags.TF),
        ["AC"] = Frame.Of(true, 2 | Rflags.AC),
        ["AC in the kernel"] = Frame.Of(false, 2 | Rflags.AC),
        ["NT"] = Frame.Of(false, 2 | Rflags.NT),
        ["NT of the program"] = Frame.Of(true, 2 | Rflags.NT),
        ["VIF and VIP"] = Frame.Of(true, 2 | Rflags.VIF | Rflags.VIP),
        ["VM"] = Frame.Of(true, 2 | Rflags.VM),
    };

    [Theory]
    [MemberData(nameof(Unusual))]
    public void Iret_ThroughAnUnusualFrame_IsTheHandlers(string name)
    {
        foreach (ulong am in (ulong[])[0, Cr0.AM])
            foreach (ulong smap in (ulong[])[0, Cr4.SMAP])
            {
                using RegionMachine m = ReturnLoop(Behind(s_unusual[name], Frame.Of(true, 2), Frame.Of(false, 2)), h =>
                {
                    h.State->Cr0 |= am;
                    h.State->Cr4 |= smap;
                    if (smap != 0)
                        Supervisor(h);
                });
                Run(m, $"{name}, AM {am:x}, SMAP {smap:x}");
            }
    }

    /// <summary>Takes the U bit from the frames' page, as SMAP wants it: the first 2 MiB become a table of pages.</summary>
    private static void Supervisor(CpuHarness h)
    {
        ulong root = h.Size - 0x4000, table = root + 0x3000;
        for (ulong i = 0; i < 512; i++)
        {
            bool shared = i << 12 is User or SysLongHarness.UserStack or (>= Results and < Results + 0x4000) || i << 12 == SysLongHarness.UserStack - 0x1000;
            h.Word(table + 8 * i) = i << 12 | Pte.P | Pte.W | (shared ? Pte.U : 0);
        }
        h.Word(root + 0x2000) = table | Pte.P | Pte.W | Pte.U;
    }

    [Fact]
    public void Iret_AfterTheDescriptorHasChanged_LoadsTheNewOne()
    {
        (ushort Selector, ulong Value)[] changes =
        [
            (SysLongHarness.UserCode, 0), (SysLongHarness.UserCode, 0x00af_7b00_0000_ffff), (SysLongHarness.UserCode, 0x0020_fb00_0000_0000),
            (SysLongHarness.UserCode, 0x00ef_fb00_0000_ffff), (SysLongHarness.UserCode, 0x12af_fb34_5678_ffff),
            (SysLongHarness.UserCode, 0x00af_fa00_0000_ffff),
            (SysLongHarness.UserData, 0x00cf_7300_0000_ffff), (SysLongHarness.UserData, 0x00cf_f100_0000_ffff),
            (SysLongHarness.UserData, 0x12cf_f234_5678_ffff),
            (SysLongHarness.KernelCode, 0x00af_1b00_0000_ffff), (SysLongHarness.KernelData, 0x00cf_1300_0000_ffff), (SysLongHarness.KernelData, 0),
        ];
        foreach ((ushort selector, ulong value) in changes)
        {
            // The kernel itself changes it, in the last rounds.
            using RegionMachine m = ReturnLoop(Behind(Frame.Of(true, 2), Frame.Of(false, 2, 1), Frame.Of(true, 2), Frame.Of(false, 2, 1), default), null, a =>
            {
                Label keep = a.CreateLabel();
                a.cmp(rbx, (int)Frames + 6 * FrameBytes);
                a.jb(keep);
                a.mov(rax, value);
                a.mov(__qword_ptr[SysLongHarness.Gdt + (selector & ~7u)], rax);
                a.Label(ref keep);
            });
            Run(m, $"{selector:x} becomes {value:x}");
            Assert.Equal(m.Slow.Word(SysLongHarness.Gdt + (selector & ~7u)), m.Fast.Word(SysLongHarness.Gdt + (selector & ~7u)));
        }
    }

    [Fact]
    public void Iret_WithSegmentsThatTheProgramMayNotUse_DropsThem()
    {
        foreach (uint access in (uint[])[0xc093, 0xc0b3, 0xc0d3, 0xc0f3, 0xa09f, 0x1_00f3])
            for (int i = 0; i < 4; i++)
            {
                int segment = (SegmentIndex.ES, SegmentIndex.DS, SegmentIndex.FS, SegmentIndex.GS) is var all && i == 0 ? all.Item1 : SegmentIndex.DS + i - 1;
                using RegionMachine m = ReturnLoop(Behind(default(Frame)), h =>
                    *CpuState.SegmentAt(h.State, segment) = new Segment { Selector = 0x10, Limit = uint.MaxValue, Access = access, Base = 0x5000 });
                Run(m, $"segment {segment}, access {access:x}");
            }
    }

    [Fact]
    public void Iret_FromAFrameInTwoPagesOrNone_IsTheHandlers()
    {
        for (ulong distance = 0; distance < 48; distance += 8)
        {
            ulong at = Frames + 0x1000 - 5 * FrameBytes - distance;
            using RegionMachine m = ReturnLoop(Behind(Frame.Of(true, 2), default(Frame)), null, null, at);
            Run(m, $"{distance} bytes before the end");
            using RegionMachine gone = ReturnLoop(Behind(Frame.Of(true, 2), default(Frame)), h => h.NestedEntry(Frames + 0x1000) = 0, null, at);
            Assert.Equal(ExitReason.NestedFault, Run(gone, $"{distance} bytes before the end of memory"));
        }
    }

    [Fact]
    public void Iret_EndsTheBlockingOfNmis_AndLetsWindowsIn()
    {
        using RegionMachine nmi = ReturnLoop(Behind(default(Frame)), h => h.State->RequestNmiWindow = 1);
        Assert.Equal(ExitReason.NmiWindow, Run(nmi, "NMI"));
        Assert.Equal(1UL, (nmi.Fast.State->Gpr[3] - Frames) / FrameBytes);
        using RegionMachine window = ReturnLoop(Behind(Frame.Of(true, 2), Frame.Of(false, 2, 1), Frame.Of(false, 0x202, 1), default), h =>
        {
            h.State->RequestInterruptWindow = 1;
            h.Word(Frames + 3 * FrameBytes + 16) = 2;
        });
        Assert.Equal(ExitReason.InterruptWindow, Run(window, "interrupt"));
        Assert.Equal(8UL, (window.Fast.State->Gpr[3] - Frames) / FrameBytes);
        Assert.Equal(0u, window.Fast.State->Cpl);
    }

    [Fact]
    public void Iret_InTranslatedCode_EndsTheBlockingOfNmis()
    {
        foreach (bool user in (bool[])[false, true])
            foreach (byte window in (byte[])[0, 1])
            {
                using RegionMachine m = ReturnLoop(Behind(Frame.Of(user, 2), default));
                Assert.Equal(ExitReason.Exception, Run(m, "all frames"));
                long before = Calls(m);
                foreach (CpuHarness h in (CpuHarness[])[m.Fast, m.Slow])
                {
                    // The last but one again, inside the handler of an NMI.
                    (h.State->Rip, h.State->Gpr[3]) = (Kernel, Frames + 5 * FrameBytes);
                    (h.State->NmiBlocked, h.State->RequestNmiWindow) = (1, window);
                }
                Assert.Equal(window != 0 ? ExitReason.NmiWindow : ExitReason.Exception, Run(m, $"user {user}, window {window}"));
                Assert.Equal(0, m.Fast.State->NmiBlocked);
                // That of the frame of zeros, or of the one that lets the NMI in.
                Assert.Equal(1, Calls(m) - before);
            }
    }

    /// <summary>A program that meets page faults of every kind of access, and a kernel that notes each and goes on behind it.</summary>
    [Fact]
    public void PageFaults_AreDeliveredAndReturnedFrom_InTranslatedCode()
    {
        const ulong ReadOnly = 0x40_0000, Absent = 0x60_0000, Handler = KernelTarget;
        Action<Assembler>[] accesses =
        [
            a => a.mov(ecx, __[rax]), a => a.mov(__[rax], ecx), a => a.add(__qword_ptr[rax + 8], 5), a => a.adc(rcx, __[rax]), a => a.push(__qword_ptr[rax]),
            a => a.@lock.xadd(__[rax], ecx), a => a.bts(__qword_ptr[rax], rcx), a => a.movups(xmm1, __[rax]), a => a.setc(__byte_ptr[rax]),
            a => a.cmpxchg(__[rax], rcx), a => a.inc(__dword_ptr[rax]), a => a.call(__qword_ptr[rax]), a => a.div(__dword_ptr[rax]),
        ];
        for (int n = 0; n < accesses.Length; n++)
            foreach (ulong at in (ulong[])[ReadOnly, Absent, Absent + 0xffc, ReadOnly + 0x1f_fffc])
            {
                byte[] user = Assemble(User, a =>
                {
                    Label again = a.CreateLabel(), behind = a.CreateLabel(), loop = a.CreateLabel();
                    a.Label(ref again);
                    a.lea(r8, __[behind]);
                    a.mov(rax, at);
                    a.mov(ecx, 5);
                    a.sub(rcx, rbx);
                    accesses[n](a);
                    a.Label(ref behind);
                    a.mov(rsp, SysLongHarness.UserStack);
                    a.pushfq();
                    a.pop(rax);
                    a.mov(__[rdi], rax);
                    a.add(rdi, 8);
                    a.dec(ebx);
                    a.jnz(again);
                    a.hlt();
                });
                byte[] handler = Assemble(Handler, a =>
                {
                    a.pop(rdx);
                    a.mov(__[rdi], rdx);
                    a.mov(rdx, cr2);
                    a.mov(__[rdi + 8], rdx);
                    a.mov(rdx, __[rsp]);
                    a.mov(__[rdi + 16], rdx);
                    a.mov(rdx, __[rsp + 16]);
                    a.mov(__[rdi + 24], rdx);
                    a.add(rdi, 32);
                    a.mov(__[rsp], r8);
                    a.iretq();
                });
                using RegionMachine m = Make([0xf4], h =>
                {
                    h.Write(User, user);
                    h.Write(Handler, handler);
                    h.Word(SysLongHarness.Idt + 16 * Vector.PF) =
                        Handler & 0xffff | (ulong)SysLongHarness.KernelCode << 16 | 0x8eUL << 40 | Handler >> 16 << 48;
                    (h.State->Rip, h.State->Gpr[3], h.State->Gpr[7]) = (User, Rounds, Results);
                    h.State->ExceptionIntercepts = ~(1u << Vector.PF);
                    ulong tables = h.Size - 0x2000;
                    h.Word(tables + 8 * (ReadOnly >> 21)) = ReadOnly | Pte.P | Pte.U | Pte.PS;
                    h.Word(tables + 8 * (Absent >> 21)) = 0;
                }, 3);
                Assert.Equal(ExitReason.Exception, Run(m, $"{n} at {at:x}"));
                if (at == Absent)
                    Assert.True(m.Fast.Cpu.Translator.Counters.Entries <= 8, $"{n}: {m.Fast.Cpu.Translator.Counters.Entries} entries");
            }
    }

    /// <summary>A kernel whose pages are global reads and writes a program's page between STAC and CLAC, and once without.</summary>
    [Fact]
    public void StacAndClac_ChangeWhatTheKernelReaches()
    {
        foreach (bool global in (bool[])[true, false])
            foreach (int last in (int[])[0, 1, 2])
            {
                byte[] kernel = Assemble(Kernel, a =>
                {
                    Label again = a.CreateLabel();
                    a.mov(rsi, SysLongHarness.UserStack);
                    a.Label(ref again);
                    a.cmp(ebx, 7);
                    a.stac();
                    a.adc(__qword_ptr[rsi], rbx);
                    a.mov(rax, __[rsi + 8]);
                    a.pushfq();
                    a.pop(rdx);
                    a.clac();
                    a.adc(rdx, rax);
                    a.mov(__[rdi], rdx);
                    a.add(rdi, 8);
                    a.dec(ebx);
                    a.jnz(again);
                    if (last == 1)
                        a.mov(__[rsi], rbx);
                    if (last == 2)
                        a.mov(rbx, __[rsi]);
                    a.hlt();
                });
                using RegionMachine m = Make(kernel, h =>
                {
                    h.State->Cr4 |= Cr4.SMAP | Cr4.PGE;
                    Supervisor(h);
                    ulong table = h.Size - 0x1000;
                    for (ulong i = 0; i < 512; i++)
                        h.Word(table + 8 * i) |= global && (h.Word(table + 8 * i) & Pte.U) == 0 ? Pte.G : 0;
                    (h.State->Gpr[3], h.State->Gpr[7]) = (Rounds, Data);
                }, 0);
                Assert.Equal(last == 0 ? ExitReason.Hlt : ExitReason.Exception, Run(m, $"global {global}, last {last}"));
                Assert.True(Calls(m) <= 4, $"{Calls(m)} calls of handlers");
            }
    }
}
