using Ring3.Arch;

namespace Ring3.Cpu.Tests;

/// <summary>
/// What the TLB keeps and what each flush drops. The guest's tables are changed behind its back: a stale answer proves a hit, a fresh one a miss.
/// </summary>
public sealed unsafe class SysTlbTests
{
    private const ulong Root = 0x10_0000, Pdpt = 0x10_1000, Pd = 0x10_2000, Pt = 0x10_3000, Root2 = 0x10_4000, PageA = 0x20_0000, PageB = 0x20_1000,
        Linear = 0x5000;
    private const ulong Rwu = Pte.P | Pte.W | Pte.U;

    private static SysMachine Create(ulong cr4 = 0)
    {
        SysMachine m = new();
        m.At64(Root) = m.At64(Root2) = Pdpt | Rwu;
        m.At64(Pdpt) = Pd | Rwu;
        m.At64(Pd) = Pt | Rwu;
        m.At64(Pt + 8 * 5) = PageA | Rwu;
        m.At64(Pd + 8 * 8) = 0x20_0000 | Rwu | Pte.PS; // linear 16 MiB
        m.At64(PageA) = 0xaaaa;
        m.At64(PageB) = 0xbbbb;
        CpuState* c = m.C;
        c->Cr0 = Cr0.PE | Cr0.PG | Cr0.ET | Cr0.WP;
        c->Cr4 = Cr4.PAE | cr4;
        c->Efer = Efer.LME | Efer.LMA | Efer.NXE;
        c->Cr3 = Root;
        c->Cs.Access = 0xa09b;
        c->Ss.Access = 0xc093;
        m.P.RecomputeMode();
        return m;
    }

    private static ulong Read(SysMachine m, ulong linear = Linear)
    {
        Assert.True(m.P.Access.Load64(m.C, linear, out ulong value), $"vector {m.C->PendingVector} exit {m.P.Exit->Reason}");
        return value;
    }

    private static void Remap(SysMachine m, ulong flags = Rwu) => m.At64(Pt + 8 * 5) = PageB | flags;

    [Fact]
    public void InvlpgDropsThePageInBothLevels()
    {
        using SysMachine m = Create();
        Assert.Equal(0xaaaaUL, Read(m));
        Remap(m);
        Assert.Equal(0xaaaaUL, Read(m));
        m.P.Paging.InvalidatePage(m.C, Linear + 0x1000);
        Assert.Equal(0xaaaaUL, Read(m));
        m.P.Paging.InvalidatePage(m.C, Linear + 0x123);
        Assert.Equal(0xbbbbUL, Read(m));
    }

    [Fact]
    public void InvlpgDropsAllOfALargePage()
    {
        using SysMachine m = Create();
        Assert.Equal(0xaaaaUL, Read(m, 0x100_0000));
        Assert.Equal(0xbbbbUL, Read(m, 0x100_1000));
        m.At64(Pd + 8 * 8) = 0x40_0000 | Rwu | Pte.PS;
        m.At64(0x40_0000) = 0xcccc;
        m.P.Paging.InvalidatePage(m.C, 0x11f_f000);
        Assert.Equal(0xccccUL, Read(m, 0x100_0000));
        Assert.Equal(0UL, Read(m, 0x100_1000));
    }

    [Fact]
    public void Cr3WriteKeepsGlobalPagesAndPgeChangeDropsThem()
    {
        using SysMachine m = Create(Cr4.PGE);
        m.At64(Pt + 8 * 5) |= Pte.G;
        m.At64(Pt + 8 * 6) = PageA | Rwu;
        Assert.Equal(0xaaaaUL, Read(m));
        Assert.Equal(0xaaaaUL, Read(m, 0x6000));
        Remap(m);
        m.At64(Pt + 8 * 6) = PageB | Rwu;
        Assert.True(m.P.Control.WriteCr3(m.C, Root));
        Assert.Equal(0xaaaaUL, Read(m));
        Assert.Equal(0xbbbbUL, Read(m, 0x6000));
        Assert.True(m.P.Control.WriteCr4(m.C, m.C->Cr4 & ~Cr4.PGE));
        Assert.Equal(0xbbbbUL, Read(m));
    }

    [Fact]
    public void PcidsKeepTheirTranslationsApart()
    {
        using SysMachine m = Create();
        Assert.True(m.P.Control.WriteCr4(m.C, m.C->Cr4 | Cr4.PCIDE));
        Assert.Equal(0xaaaaUL, Read(m));
        Assert.True(m.P.Control.WriteCr3(m.C, Root2 | 7));
        Remap(m);
        Assert.Equal(0xbbbbUL, Read(m));
        Assert.True(m.P.Control.WriteCr3(m.C, Root | Cr3.NoFlush));
        Assert.Equal(0xaaaaUL, Read(m));
        Assert.Equal(Root, m.C->Cr3);
        Assert.True(m.P.Control.WriteCr3(m.C, Root2 | 7 | Cr3.NoFlush));
        m.At64(Pt + 8 * 5) = PageA | Rwu;
        Assert.Equal(0xbbbbUL, Read(m));
        m.P.Paging.InvalidatePcid(m.C, 1, 7, 0);
        Assert.Equal(0xaaaaUL, Read(m));
        Assert.True(m.P.Control.WriteCr3(m.C, Root));
        Assert.Equal(0xaaaaUL, Read(m));
    }

    [Fact]
    public void InvpcidTypes()
    {
        using SysMachine m = Create(Cr4.PGE);
        m.At64(Pt + 8 * 5) |= Pte.G;
        Assert.Equal(0xaaaaUL, Read(m));
        Remap(m);
        m.P.Paging.InvalidatePcid(m.C, 3, 0, 0);
        Assert.Equal(0xaaaaUL, Read(m));
        m.P.Paging.InvalidatePcid(m.C, 2, 0, 0);
        Assert.Equal(0xbbbbUL, Read(m));
    }

    [Fact]
    public void PermissionsFollowTheControlsAtOnce()
    {
        using SysMachine m = Create();
        m.At64(Pt + 8 * 5) = PageA | Pte.P | Pte.U;
        m.C->Cr0 &= ~Cr0.WP;
        m.P.RecomputeMode();
        Assert.True(m.P.Access.Store64(m.C, Linear, 1));
        Assert.True(m.P.Control.WriteCr0(m.C, m.C->Cr0 | Cr0.WP));
        Assert.False(m.P.Access.Store64(m.C, Linear, 2));
        Assert.Equal(Vector.PF, m.C->PendingVector);
        Assert.True(m.P.Control.WriteCr4(m.C, m.C->Cr4 | Cr4.SMAP));
        Assert.False(m.P.Access.Load64(m.C, Linear, out _));
    }

    [Fact]
    public void PrivilegeSeparatesLevelOneEntries()
    {
        using SysMachine m = Create();
        m.At64(Pt + 8 * 5) = PageA | Pte.P | Pte.W;
        Assert.Equal(0xaaaaUL, Read(m));
        m.C->Cpl = 3;
        m.P.Events.ModeChanged(m.C);
        Assert.False(m.P.Access.Load64(m.C, Linear, out _));
        Assert.Equal(PageFaultError.P | PageFaultError.U, (uint)m.C->PendingErrorCode);
        Assert.True(m.P.Access.LoadSystem64(m.C, Linear, out ulong value));
        Assert.Equal(0xaaaaUL, value);
        Assert.False(m.P.Access.Load64(m.C, Linear, out _));
    }

    [Fact]
    public void OwnerFlushesSeeNestedChanges()
    {
        using SysMachine m = Create();
        Assert.Equal(0xaaaaUL, Read(m));
        *m.NestedEntry(PageA) = m.NestedLeaf(PageB);
        Assert.Equal(0xaaaaUL, Read(m));
        m.P.Paging.InvalidatePage(m.C, Linear); // The guest cannot drop nested translations.
        Assert.Equal(0xaaaaUL, Read(m));
        m.P.FlushAsid(2);
        Assert.Equal(0xaaaaUL, Read(m));
        m.P.FlushAsid(1);
        Assert.Equal(0xbbbbUL, Read(m));
    }

    [Fact]
    public void AsidsDoNotMix()
    {
        using SysMachine m = Create();
        Assert.Equal(0xaaaaUL, Read(m));
        Remap(m);
        m.C->Asid = 2;
        m.P.Paging.UpdateContext(m.C);
        Assert.Equal(0xbbbbUL, Read(m));
        m.C->Asid = 1;
        m.P.Paging.UpdateContext(m.C);
        Assert.Equal(0xaaaaUL, Read(m));
    }

    /// <summary>Fetches of the supervisor from global pages are the same in every address space, until global pages are dropped.</summary>
    [Fact]
    public void GlobalCode_IsKnownInEveryAddressSpace()
    {
        using SysMachine m = Create(Cr4.PGE);
        m.At64(Pt + 8 * 5) |= Pte.G;
        byte* host = m.P.Paging.TranslateExecute(m.C, Linear);
        ulong context = m.C->CodeContext;
        Assert.NotEqual(m.C->TlbContext, context);
        Remap(m, Rwu | Pte.G);
        Assert.True(m.P.Control.WriteCr3(m.C, Root2));
        Assert.Equal(context, m.C->CodeContext);
        Assert.True(m.P.Paging.TranslateExecute(m.C, Linear) == host);
        m.C->Rflags |= Rflags.AC;
        m.P.Paging.UpdatePrivilege(m.C);
        Assert.Equal(context, m.C->CodeContext);
        m.C->Cpl = 3;
        m.P.Paging.UpdateContext(m.C);
        Assert.Equal(m.C->TlbContext, m.C->CodeContext);
        m.C->Cpl = 0;
        m.P.Paging.UpdateContext(m.C);
        Assert.True(m.P.Control.WriteCr4(m.C, m.C->Cr4 & ~Cr4.PGE));
        Assert.NotEqual(context, m.C->CodeContext);
        Assert.True(m.P.Paging.TranslateExecute(m.C, Linear) == host + (PageB - PageA));
    }

    /// <summary>One page of the supervisor's code that is not global: all of it goes with its address space from then on.</summary>
    [Fact]
    public void LocalCode_GoesWithItsAddressSpace()
    {
        using SysMachine m = Create(Cr4.PGE);
        m.At64(Pt + 8 * 6) = PageA | Rwu | Pte.G;
        Assert.True(m.P.Paging.TranslateExecute(m.C, Linear + 0x1000) != null);
        Assert.NotEqual(m.C->TlbContext, m.C->CodeContext);
        byte* host = m.P.Paging.TranslateExecute(m.C, Linear);
        Assert.Equal(m.C->TlbContext, m.C->CodeContext);
        Remap(m);
        Assert.True(m.P.Paging.TranslateExecute(m.C, Linear) == host);
        Assert.True(m.P.Control.WriteCr3(m.C, Root2));
        Assert.Equal(m.C->TlbContext, m.C->CodeContext);
        Assert.True(m.P.Paging.TranslateExecute(m.C, Linear) == host + (PageB - PageA));
    }

    [Fact]
    public void ContextNumbersRunOutSafely()
    {
        using SysMachine m = Create();
        for (int i = 0; i < 20_000; i++)
        {
            m.At64(Pt + 8 * 5) = ((i & 1) == 0 ? PageA : PageB) | Rwu;
            Assert.True(m.P.Control.WriteCr3(m.C, Root));
            Assert.Equal((i & 1) == 0 ? 0xaaaaUL : 0xbbbbUL, Read(m));
        }
    }

    [Fact]
    public void DirtyIsSetByTheFirstWriteOnly()
    {
        using SysMachine m = Create();
        Read(m);
        Assert.Equal(0UL, m.At64(Pt + 8 * 5) & Pte.D);
        Assert.Equal(0UL, *m.NestedEntry(PageA) & NestedPte.D);
        Assert.True(m.P.Access.Store64(m.C, Linear, 1));
        Assert.Equal(Pte.D, m.At64(Pt + 8 * 5) & Pte.D);
        Assert.Equal(NestedPte.D, *m.NestedEntry(PageA) & NestedPte.D);
        m.At64(Pt + 8 * 5) &= ~Pte.D;
        Assert.True(m.P.Access.Store64(m.C, Linear, 2));
        Assert.Equal(0UL, m.At64(Pt + 8 * 5) & Pte.D);
    }

    [Fact]
    public void InvlpgOfAnExecutedPageChangesTheFetchGeneration()
    {
        using SysMachine m = Create();
        Assert.True(m.P.Paging.TranslateExecute(m.C, Linear) != null);
        uint generation = m.P.Paging.Tlb.FetchGeneration;
        m.P.Paging.InvalidatePage(m.C, 0x7000);
        Assert.Equal(generation, m.P.Paging.Tlb.FetchGeneration);
        m.P.Paging.InvalidatePage(m.C, Linear);
        Assert.NotEqual(generation, m.P.Paging.Tlb.FetchGeneration);
    }

    [Fact]
    public void AccessAcrossPagesUsesBothTranslations()
    {
        using SysMachine m = Create();
        m.At64(Pt + 8 * 6) = PageB + 0x1000 | Rwu;
        Assert.True(m.P.Access.Store64(m.C, Linear + 0xffc, 0x1122_3344_5566_7788));
        Assert.Equal(0x5566_7788u, m.At32(PageA + 0xffc));
        Assert.Equal(0x1122_3344u, m.At32(PageB + 0x1000));
        Assert.Equal(0x1122_3344_5566_7788UL, Read(m, Linear + 0xffc));
        m.At64(Pt + 8 * 6) = 0;
        m.P.Paging.InvalidatePage(m.C, 0x6000);
        Assert.False(m.P.Access.Store64(m.C, Linear + 0xffc, 0));
        Assert.Equal(0x6000UL, m.C->PendingAddress);
        Assert.Equal(0x5566_7788u, m.At32(PageA + 0xffc));
    }

    [Fact]
    public void DebugTranslationHasNoSideEffects()
    {
        using SysMachine m = Create();
        m.At64(Pt + 8 * 5) &= ~Pte.W;
        Assert.True(m.P.TranslateGva(Linear + 0x123, out ulong gpa, out bool writable, out bool user));
        Assert.Equal(PageA + 0x123, gpa);
        Assert.False(writable);
        Assert.True(user);
        Assert.Equal(0UL, m.At64(Pt + 8 * 5) & Pte.A);
        Assert.Equal(0UL, *m.NestedEntry(Pt) & NestedPte.A);
        Assert.False(m.P.TranslateGva(0x7000, out _, out _, out _));
    }
}
