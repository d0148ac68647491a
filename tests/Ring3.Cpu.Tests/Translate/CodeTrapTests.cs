using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Code where other translators have gone wrong: pages that come and go under it, faults at its edges, traps, and stores into it.</summary>
public sealed unsafe class CodeTrapTests
{
    private const ulong Code = CpuHarness.CodeAddress, Data = RegionMachine.Data, Second = Code + 0x1000;

    /// <summary>Gives the first 2 MiB page tables of their own, in the page behind the directory. The entry of a page.</summary>
    private static ref ulong GuestEntry(CpuHarness h, ulong linear)
    {
        ulong table = h.Size - 0x1000;
        ref ulong directory = ref h.Word(h.Size - 0x2000);
        if ((directory & Pte.PS) != 0)
        {
            for (ulong i = 0; i < 512; i++)
                h.Word(table + 8 * i) = i << 12 | Pte.P | Pte.W | Pte.U;
            directory = table | Pte.P | Pte.W | Pte.U;
            h.Cpu.FlushAll();
        }
        return ref h.Word(table + 8 * (linear >> 12));
    }

    private static void Both(RegionMachine m, Action<CpuHarness> change)
    {
        change(m.Fast);
        change(m.Slow);
        m.Fast.Cpu.FlushAll();
        m.Slow.Cpu.FlushAll();
    }

    private static void Restart(CpuHarness h, ulong rip = Code)
    {
        h.State->Rip = rip;
        h.State->Gpr[4] = CpuHarness.StackTop;
        h.Cpu.RecomputeMode();
    }

    /// <summary>An instruction across two pages runs, and its second page goes.</summary>
    [Fact]
    public void SecondPageOfAnInstruction_GoesAfterItRan()
    {
        using RegionMachine m = new(a =>
        {
            Label across = a.CreateLabel();
            a.jmp(across);
            for (int i = 0; i < 0xffe - 5; i++)
                a.nop();
            a.Label(ref across);
            a.mov(eax, 0x12345678);
            a.hlt();
        });
        for (int i = 0; i < 3; i++)
        {
            Assert.Equal(ExitReason.Hlt, m.Run("mapped"));
            Both(m, h => Restart(h));
        }
        Both(m, h => GuestEntry(h, Second) = 0);
        Assert.Equal(ExitReason.Exception, m.Run("without its second page"));
        Assert.Equal((Vector.PF, Second, PageFaultError.I), (m.Fast.Exit->Vector, m.Fast.Exit->Payload, (ulong)m.Fast.Exit->ErrorCode));
    }

    /// <summary>A conditional jump, a direct one and a call to a page that goes: the fault is at the target, and a call has pushed.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void TargetPageOfATransfer_Goes(int how)
    {
        using RegionMachine m = new(a =>
        {
            Label target = a.CreateLabel();
            a.lea(rbx, __[target]);
            a.cmp(eax, eax);
            if (how == 0)
                a.je(target);
            else if (how == 1)
                a.jmp(target);
            else if (how == 2)
                a.call(target);
            else
                a.jmp(rbx);
            for (int i = 0; i < 0x1000; i++)
                a.nop();
            a.Label(ref target);
            a.inc(rdx);
            a.hlt();
        });
        for (int i = 0; i < 3; i++)
        {
            Assert.Equal(ExitReason.Hlt, m.Run("mapped"));
            Both(m, h => Restart(h));
        }
        Both(m, h => GuestEntry(h, Second) = 0);
        Assert.Equal(ExitReason.Exception, m.Run("without its target"));
        Assert.Equal((Vector.PF, m.Fast.State->Rip), (m.Fast.Exit->Vector, m.Fast.Exit->Payload));
        Assert.Equal(Second, m.Fast.State->Rip & ~0xfffUL);
    }

    /// <summary>Transfers to addresses that are not canonical: where RIP and RSP are.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void TargetThatIsNotCanonical(int how)
    {
        using RegionMachine m = new(a =>
        {
            a.mov(rbx, 0x8000_0000_0000UL);
            a.mov(__[rsi], rbx);
            a.sub(rsp, 8);
            a.mov(__[rsp], rbx);
            if (how == 0)
                a.jmp(rbx);
            else if (how == 1)
                a.call(rbx);
            else if (how == 2)
                a.ret(16);
            else
                a.call(__qword_ptr[rsi]);
            a.hlt();
        }, h => h.Rsi = Data);
        Assert.Equal(ExitReason.Exception, m.Run("to where nothing can be"));
        Assert.Equal(Vector.GP, m.Fast.Exit->Vector);
    }

    /// <summary>REP ends a page; the next is not there. The fetch faults with the REP done.</summary>
    [Fact]
    public void FetchBehindARepeatedInstruction_Faults()
    {
        using RegionMachine m = new(a =>
        {
            Label last = a.CreateLabel();
            a.jmp(last);
            for (int i = 0; i < 0xffe - 5; i++)
                a.nop();
            a.Label(ref last);
            a.rep.movsb();
            a.hlt();
        }, h => (h.Rsi, h.Rdi, h.Rcx) = (Data, Data + 0x100, 50));
        Both(m, h => GuestEntry(h, Second) = 0);
        Assert.Equal(ExitReason.Exception, m.Run("without the page behind it"));
        Assert.Equal((Second, Second, 0UL), (m.Fast.Exit->Payload, m.Fast.State->Rip, m.Fast.Rcx));
    }

    /// <summary>TF in a hot loop: with a repeated instruction, and with a branch to itself. Every trap is where the interpreter has it.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void TrapFlag_InHotCode(bool branch)
    {
        using RegionMachine m = new(a =>
        {
            Label again = a.CreateLabel(), self = a.CreateLabel();
            a.mov(ebx, 40);
            a.Label(ref again);
            a.mov(ecx, 3);
            a.mov(rdi, Data);
            if (branch)
            {
                a.Label(ref self);
                a.loop(self);
            }
            else
            {
                a.rep.stosb();
            }
            // TF from the 30th round on.
            a.pushfq();
            a.cmp(ebx, 10);
            a.setbe(al);
            a.or(__[rsp + 1], al);
            a.popfq();
            a.dec(ebx);
            a.jnz(again);
            a.hlt();
        }) { InBlocks = true };
        int traps = 0;
        for (ExitReason reason; (reason = m.Run($"after {traps} traps")) != ExitReason.Hlt; traps++)
        {
            Assert.Equal((ExitReason.Exception, Vector.DB), (reason, m.Fast.Exit->Vector));
            foreach (CpuHarness h in (CpuHarness[])[m.Fast, m.Slow])
            {
                h.State->PendingDebug = 0;
                h.Cpu.TakePendingDebug();
            }
            Assert.True(traps < 500);
        }
        Assert.True(traps > 80, $"{traps} traps");
    }

    /// <summary>MOV SS once and twice in a row, STI: the interrupt window opens where the interpreter opens it.</summary>
    [Fact]
    public void Shadows_InHotCode()
    {
        using RegionMachine m = new(a =>
        {
            Label again = a.CreateLabel();
            a.mov(ebx, 60);
            a.Label(ref again);
            a.mov(edx, ss);
            a.mov(ss, edx);
            a.mov(ss, edx);
            a.inc(r8);
            a.inc(r9);
            a.cli();
            a.sti();
            a.mov(ss, edx);
            a.inc(r10);
            a.inc(r11);
            a.dec(ebx);
            a.jnz(again);
            a.hlt();
        }, h => h.RflagsValue = 2 | Rflags.IF) { InBlocks = true };
        for (ulong from = 1; ; from += 7)
        {
            // The window is asked for at any place.
            m.Slow.State->TimerDeadline = m.Fast.State->TimerDeadline = 1;
            m.Slow.Cpu.FirstTimerLook = m.Fast.Cpu.FirstTimerLook = from;
            ExitReason fast = m.Fast.Run();
            m.Slow.State->TimerDeadline = m.Fast.State->TimerDeadline = 0;
            if (fast != ExitReason.Timer)
                break;
            m.Slow.State->HostSingleStep = 1;
            m.Slow.Run();
            while (m.Slow.State->InstructionsRetired < m.Fast.State->InstructionsRetired)
                m.Slow.Run();
            m.Slow.State->HostSingleStep = 0;
            m.Compare($"from {from}");
            m.Fast.State->RequestInterruptWindow = m.Slow.State->RequestInterruptWindow = 1;
            Assert.Equal(ExitReason.InterruptWindow, m.Run($"window from {from}"));
            m.Fast.State->RequestInterruptWindow = m.Slow.State->RequestInterruptWindow = 0;
        }
    }

    /// <summary>A store to a page of code that is read-only: the error code is a write's.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    public void StoreToAReadOnlyPageOfCode_IsAWriteFault(int cpl)
    {
        using RegionMachine m = new(a =>
        {
            a.lea(rdi, __[Code + 0x800]);
            a.mov(__dword_ptr[rdi], 5);
            a.hlt();
        }, null, cpl);
        Both(m, h => GuestEntry(h, Code) &= ~Pte.W);
        Assert.Equal(ExitReason.Exception, m.Run("read-only"));
        Assert.Equal((Vector.PF, Code + 0x800, (cpl == 3 ? PageFaultError.U : 0) | PageFaultError.P | PageFaultError.W),
            (m.Fast.Exit->Vector, m.Fast.Exit->Payload, (ulong)m.Fast.Exit->ErrorCode));
    }

    /// <summary>Code across two pages is overwritten in its first part, then in its second.</summary>
    [Theory]
    [InlineData(-1, 0x12)]
    [InlineData(0, 0x34)]
    [InlineData(1, 0x56)]
    public void CodeAcrossPages_IsOverwrittenInEither(int at, int value)
    {
        // mov eax, imm32 begins two bytes before the page's end.
        using RegionMachine m = new(a =>
        {
            Label across = a.CreateLabel(), again = a.CreateLabel();
            a.mov(ecx, 8);
            a.Label(ref again);
            a.jmp(across);
            for (int i = 0; i < 0xffe - 10; i++)
                a.nop();
            a.Label(ref across);
            a.mov(eax, 0x11111111);
            a.add(rdx, rax);
            a.mov(__byte_ptr[(ulong)((long)Second + at)], value);
            a.dec(ecx);
            a.jnz(again);
            a.hlt();
        });
        Assert.Equal(ExitReason.Hlt, m.Run($"{at}"));
        Assert.NotEqual(0x11111111u, (uint)m.Fast.Rax);
    }

    /// <summary>
    /// A hot loop that stores into the immediate of its next instruction, another value every round; and into one of another page that was written to
    /// before it first ran.
    /// </summary>
    [Fact]
    public void StoresIntoCode_EveryRound()
    {
        using RegionMachine m = new(a =>
        {
            Label again = a.CreateLabel(), next = a.CreateLabel(), other = a.CreateLabel();
            a.mov(ecx, 300);
            a.Label(ref again);
            a.lea(rdi, __[next]);
            a.mov(__[rdi + 1], ecx);
            a.Label(ref next);
            a.mov(eax, 0x7777);
            a.add(rdx, rax);
            a.lea(rdi, __[other]);
            a.imul(ebx, ecx, 77);
            a.mov(__[rdi + 1], ebx);
            a.call(other);
            a.add(rbp, rax);
            a.dec(ecx);
            a.jnz(again);
            a.hlt();
            for (int i = 0; i < 0x1000; i++)
                a.nop();
            a.Label(ref other);
            a.mov(eax, 1);
            a.ret();
        }, h => h.Rbp = h.Rdx = 0);
        Assert.Equal(ExitReason.Hlt, m.Run("stores"));
        Assert.Equal((300UL * 301 / 2, 77UL * 300 * 301 / 2), (m.Fast.Rdx, m.Fast.Rbp));
    }

    /// <summary>Loops of every kind of transfer let a kick through.</summary>
    [Theory]
    [InlineData("self")]
    [InlineData("indirect")]
    [InlineData("returns")]
    [InlineData("calls")]
    [InlineData("pages")]
    [InlineData("condition")]
    [InlineData("memory")]
    public void EndlessLoops_LetAKickThrough(string kind)
    {
        using CpuHarness h = CpuHarness.Long(CoreSmokeTests.Assemble(64, a =>
        {
            Label loop = a.CreateLabel(), other = a.CreateLabel(), far = a.CreateLabel();
            a.lea(rbx, __[loop]);
            a.lea(rbp, __[other]);
            a.mov(rsi, Data);
            a.mov(__[rsi], rbx);
            a.Label(ref loop);
            switch (kind)
            {
                case "self": a.jmp(loop); break;
                case "indirect": a.jmp(rbx); break;
                case "returns": a.push(rbp); a.ret(); break;
                case "calls": a.call(other); break;
                case "pages": a.jmp(far); break;
                case "condition": a.cmp(eax, eax); a.je(loop); break;
                default: a.jmp(__qword_ptr[rsi]); break;
            }
            a.Label(ref other);
            if (kind == "returns")
            {
                a.push(rbx);
                a.ret();
            }
            else
            {
                a.pop(rax);
                a.jmp(loop);
            }
            for (int i = 0; i < 0x1000; i++)
                a.nop();
            a.Label(ref far);
            a.inc(rdx);
            a.jmp(loop);
        }), translate: true);
        for (int i = 0; i < 4; i++)
        {
            h.State->ExitRequest = 0;
            using Timer timer = new(_ => h.Cpu.RequestExit(), null, 20, Timeout.Infinite);
            Assert.Equal(ExitReason.Request, h.Cpu.Enter());
        }
        Assert.True(h.Cpu.Translator.Counters.Translated > 1000, $"{h.Cpu.Translator.Counters.Translated} translated instructions");
    }
}
