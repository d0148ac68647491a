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

    /// <summary>What CLAC takes back is there again behind STAC, until something flushes it.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void AnEntryThatIsHidden_ComesBackUntilItIsFlushed(bool whole)
    {
        using RegionMachine m = new(a =>
        {
            a.mov(rsi, User);
            Loop(a, () =>
            {
                a.stac();
                a.mov(rax, __[rsi + 8]);
                a.add(rax, rcx);
                a.mov(__[rsi + 16], rax);
                a.clac();
                a.add(rbx, rax);
            });
            a.hlt();
        }, Prepare);
        Assert.Equal(ExitReason.Hlt, m.Run("lent and taken back"));
        Assert.InRange(m.Fast.Cpu.Translator.Counters.Sites[(int)SiteKind.Miss], 1, Times / 10);
        foreach (CpuHarness h in (CpuHarness[])[m.Fast, m.Slow])
        {
            h.State->Rip = CpuHarness.CodeAddress;
            h.Word(h.Size - 0x1000 + 8 * (User >> 12)) = 0;
            if (whole)
                h.Cpu.FlushAll();
            else
                h.Cpu.Paging.InvalidatePage(h.State, User);
        }
        Assert.Equal(ExitReason.Exception, m.Run("unmapped"));
        Assert.Equal((Vector.PF, User + 8), (m.Fast.Exit->Vector, m.Fast.Exit->Payload));
    }

    /// <summary>The kernel makes its own page of a user page while the entry is hidden, and says so by INVLPG; or does not permit writes any more.</summary>
    [Theory]
    [InlineData(Pte.P | Pte.W)]
    [InlineData(Pte.P | Pte.U)]
    public void AHiddenEntry_IsFlushedByTheGuest(ulong rights)
    {
        ulong entry = 0;
        using RegionMachine m = new(a =>
        {
            a.mov(rsi, User);
            Loop(a, () =>
            {
                a.stac();
                a.inc(__qword_ptr[rsi + 8]);
                a.clac();
                a.cmp(ecx, Times / 2);
                Label onward = a.CreateLabel();
                a.jne(onward);
                a.mov(r8, User | rights);
                a.mov(__[rdi], r8);
                a.invlpg(__byte_ptr[rsi]);
                a.Label(ref onward);
                a.nop();
            });
            a.inc(__qword_ptr[rsi + 16]);
            a.hlt();
        }, h =>
        {
            Prepare(h);
            entry = h.Size - 0x1000 + 8 * (User >> 12);
            // The table is in reach at the alias of its first 2 MiB only if it lies there: it is mapped in place of another page.
            h.Word(h.Size - 0x1000 + 8 * 0x1f0) = (h.Size - 0x1000) | Pte.P | Pte.W;
            h.State->Gpr[7] = 0x1f_0000 + 8 * (User >> 12);
            h.State->Cr0 |= Cr0.WP;
            h.Cpu.RecomputeMode();
            h.Cpu.FlushAll();
        });
        bool own = (rights & Pte.U) == 0;
        Assert.Equal(own ? ExitReason.Hlt : ExitReason.Exception, m.Run("changed"));
        if (!own)
            Assert.Equal((Vector.PF, User + 8, (ulong)Times / 2 - 1), (m.Fast.Exit->Vector, m.Fast.Exit->Payload, m.Fast.State->Gpr[1]));
    }

    /// <summary>A string instruction finds hidden pages as well; and two pages that have one entry do not drive each other out for ever.</summary>
    [Theory]
    [InlineData(Own)]
    [InlineData(User + Alias)]
    public void StringInstructions_NeedNoHandler(ulong source)
    {
        using RegionMachine m = new(a =>
        {
            Loop(a, () =>
            {
                a.mov(ebx, ecx);
                a.mov(rsi, source);
                a.mov(rdi, User + 0x100);
                a.stac();
                a.mov(ecx, 48);
                a.rep.movsb();
                a.clac();
                a.mov(ecx, ebx);
            });
            a.hlt();
        }, Prepare);
        Assert.Equal(ExitReason.Hlt, m.Run("copied"));
        if (source == Own)
            Assert.InRange(m.Fast.Cpu.Translator.Counters.Sites[(int)SiteKind.Call], 0, Times / 10);
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
