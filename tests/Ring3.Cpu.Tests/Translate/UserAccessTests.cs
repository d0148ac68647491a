using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Supervisor code with SMAP between user pages and its own, in level-1 entries that displace each other.</summary>
public sealed unsafe class UserAccessTests
{
    private const int Times = 1000;
    private const ulong User = RegionMachine.Data, Own = User + 0x1000;
    /// <summary>Other addresses of the same pages, with the same level-1 entries.</summary>
    private const ulong Alias = (ulong)Tlb.Level1Entries << 12;

    /// <summary>One user page; all others are the supervisor's. The first 2 MiB are mapped twice.</summary>
    private static void Prepare(CpuHarness h)
    {
        ulong table = h.Size - 0x1000, directory = h.Size - 0x2000;
        for (ulong i = 0; i < 512; i++)
            h.Word(table + 8 * i) = i << 12 | Pte.P | Pte.W | (i << 12 == User ? Pte.U : 0);
        h.Word(directory) = h.Word(directory + 8 * (Alias >> 21)) = table | Pte.P | Pte.W | Pte.U;
        h.State->Cr4 |= Cr4.SMAP;
        h.Cpu.RecomputeMode();
        h.Cpu.FlushAll();
    }

    private static void Loop(Assembler a, Action body)
    {
        Label again = a.CreateLabel();
        a.mov(ecx, Times);
        a.Label(ref again);
        body();
        a.dec(ecx);
        a.jnz(again);
    }

    [Fact]
    public void UserPages_AreInReachBetweenStacAndClacOnly()
    {
        using RegionMachine m = new(a =>
        {
            a.mov(rsi, User);
            a.mov(rdi, User + Alias);
            Loop(a, () =>
            {
                a.stac();
                a.mov(rax, __[rsi + 8]);
                a.add(rax, rcx);
                a.mov(__[rdi + 8], rax);
                a.inc(__qword_ptr[rsi + 16]);
                a.clac();
                a.add(__[rsi + 0x1000], rax);
                a.sub(rbx, __[rdi + 0x1000]);
            });
            a.mov(rdx, __[rdi]);
            a.hlt();
        }, Prepare);
        Assert.Equal(ExitReason.Exception, m.Run("behind CLAC"));
        Assert.Equal((Vector.PF, User + Alias), (m.Fast.Exit->Vector, m.Fast.Exit->Payload));
        Assert.Equal(0UL, m.Fast.State->Gpr[1]);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ImplicitAccesses_StayOut(bool write)
    {
        using RegionMachine m = new(a =>
        {
            a.mov(rsi, User);
            a.stac();
            a.mov(rax, __[rsi + 8]);
            a.mov(__[rsi + 16], rax);
            a.mov(ecx, 8);
            // Sets the descriptor's accessed bit, when it can be read.
            if (write)
                a.mov(__qword_ptr[rsi + 8], 0);
            a.mov(es, ecx);
            a.hlt();
        }, h =>
        {
            Prepare(h);
            h.State->Gdtr.Base = User;
            h.State->Gdtr.Limit = 0xfff;
            h.Word(User + 8) = 0x00cf92000000ffff;
        });
        Assert.Equal(ExitReason.Exception, m.Run("descriptor in a user page"));
        Assert.Equal((Vector.PF, User + 8), (m.Fast.Exit->Vector, m.Fast.Exit->Payload));
    }

    [Fact]
    public void AnEntryThatWasDisplaced_ComesBackWithoutACall()
    {
        using RegionMachine m = new(a =>
        {
            a.mov(rsi, Own);
            a.mov(rdi, Own + Alias);
            Loop(a, () =>
            {
                a.mov(rax, __[rsi + 8]);
                a.add(rax, rcx);
                a.mov(__[rdi + 8], rax);
                a.add(rbx, __[rsi + 8]);
            });
            a.hlt();
        }, Prepare);
        Assert.Equal(ExitReason.Hlt, m.Run("two pages, one entry"));
        Assert.InRange(m.Fast.Cpu.Translator.Counters.Sites[(int)SiteKind.Miss], 1, Times / 10);
        // Neither place may keep what a flush has dropped.
        foreach (CpuHarness h in (CpuHarness[])[m.Fast, m.Slow])
        {
            h.State->Rip = CpuHarness.CodeAddress;
            h.Word(h.Size - 0x1000 + 8 * (Own >> 12)) = 0;
            h.Cpu.Paging.InvalidatePage(h.State, Own);
            h.Cpu.Paging.InvalidatePage(h.State, Own + Alias);
        }
        Assert.Equal(ExitReason.Exception, m.Run("unmapped"));
        Assert.Equal(Own + 8, m.Fast.Exit->Payload);
    }
}
