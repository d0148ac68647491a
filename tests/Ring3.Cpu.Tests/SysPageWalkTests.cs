using Ring3.Arch;
using Xunit;
using static Ring3.Cpu.Tests.SysPageWalkSpecification;

namespace Ring3.Cpu.Tests;

/// <summary>Permutations of entry bits, controls and access kinds in both dimensions against <see cref="SysPageWalkSpecification"/>.</summary>
public sealed unsafe class SysPageWalkTests
{
    private static readonly string[] s_modes = ["32-bit", "PAE", "4-level", "5-level"];
    /// <summary>Guest-physical pages of the tables, top first; the leaf's page depends on the path.</summary>
    private static ulong TablePage(int level) => 0x10_0000 + 0x1000 * (ulong)level;
    private const ulong LeafPage = 0xa0_0000, Linear64 = 0x0000_1234_5678_9abcUL, Linear57 = 0x0012_1234_5678_9abcUL, Linear32 = 0x5678_9abc;

    [Theory]
    [InlineData("32-bit", 1, 60_000, "intel")]
    [InlineData("PAE", 2, 60_000, "intel")]
    [InlineData("4-level", 3, 80_000, "intel")]
    [InlineData("5-level", 4, 60_000, "intel")]
    [InlineData("PAE", 5, 20_000, "amd")]
    [InlineData("4-level", 6, 60_000, "amd")]
    [InlineData("5-level", 7, 60_000, "amd")]
    public void RandomPermutations(string mode, int seed, int cases, string vendor)
    {
        Assert.True(ProcessorModel.TryParse(vendor, out ProcessorModel model));
        using SysMachine m = new(model);
        Random random = new(seed);
        for (int i = 0; i < cases; i++)
            Check(m, RandomCase(random, mode, model.IsAmd), $"{mode} {vendor} #{i}");
    }

    /// <summary>Every combination of leaf bits, controls, privilege and access, under fully permissive upper levels.</summary>
    [Theory]
    [MemberData(nameof(Modes))]
    public void EveryLeaf(string mode)
    {
        using SysMachine m = new();
        int levels = mode switch { "5-level" => 5, "4-level" => 4, _ => 2 };
        for (int bits = 0; bits < 1 << 14; bits++)
        {
            bool B(int n) => (bits >> n & 1) != 0;
            if (mode == "32-bit" && B(3))
                continue;
            ulong leaf = LeafPage | (B(0) ? Pte.P : 0) | (B(1) ? Pte.W : 0) | (B(2) ? Pte.U : 0) | (B(3) ? Pte.NX : 0) | (B(4) ? Pte.A | Pte.D : 0);
            for (int access = 0; access < 3; access++)
            {
                ulong[] entries = new ulong[levels];
                for (int i = 0; i < levels - 1; i++)
                    entries[i] = TablePage(i + 1) | Pte.P | Pte.W | Pte.U;
                entries[levels - 1] = leaf;
                ulong[] nested = new ulong[levels];
                Array.Fill(nested, NestedPte.RWX);
                Case c = new(mode, B(5), B(6), B(7), B(8), B(9), B(10) ? 3 : 0, B(11), B(12), (Kind)access, entries, nested, B(13) ? NestedPte.RWX
                    : NestedPte.R, 46, true);
                if (c.Implicit && c.Access == Kind.Fetch)
                    continue;
                Check(m, c, $"{mode} leaf {bits:x} {c.Access}");
            }
        }
    }

    public static TheoryData<string> Modes => [.. s_modes];

    /// <summary>
    /// Every key with every right of it, against privilege, CR0.WP, the page's own rights and the kind of access; keys of the entries above the leaf
    /// are nobody's.
    /// </summary>
    [Theory]
    [InlineData("4-level")]
    [InlineData("5-level")]
    [InlineData("PAE")]
    public void EveryKey(string mode)
    {
        using SysMachine m = new();
        int levels = mode switch { "5-level" => 5, "4-level" => 4, _ => 2 };
        for (int bits = 0; bits < 1 << 13; bits++)
        {
            bool B(int n) => (bits >> n & 1) != 0;
            int key = bits & 15;
            if (key != 0 && mode == "PAE")
                continue;
            // The other keys have the opposite rights.
            uint rights = (uint)bits >> 4 & 3, pkru = (rights ^ 3) * 0x5555_5555 & ~(3u << 2 * key) | rights << 2 * key;
            ulong[] entries = new ulong[levels], nested = new ulong[levels];
            for (int i = 0; i < levels - 1; i++)
                entries[i] = TablePage(i + 1) | Pte.P | Pte.W | Pte.U | (mode == "PAE" ? 0 : (ulong)(key + 1 & 15) << Pte.KeyShift);
            entries[levels - 1] = LeafPage | Pte.P | (B(6) ? Pte.W : 0) | (B(7) ? Pte.U : 0) | (ulong)key << Pte.KeyShift;
            Array.Fill(nested, NestedPte.RWX);
            for (int access = 0; access < 3; access++)
            {
                Case c = new(mode, B(8), false, B(9), true, true, B(10) ? 3 : 0, true, B(11) && access != 2, (Kind)access, entries, nested, NestedPte.RWX, 46,
                    true, Pke: B(12), Pkru: pkru);
                Check(m, c, $"{mode} key {key} rights {rights} {c.Access}");
            }
        }
    }

    private static Case RandomCase(Random r, string mode, bool amd)
    {
        int levels = mode switch { "5-level" => 5, "4-level" => 4, _ => 2 };
        bool pages1G = r.Next(4) != 0;
        int maxPhysical = r.Next(4) switch { 0 => 36, 1 => 46, 2 => 38, _ => 52 };
        bool pse = r.Next(4) != 0;
        ulong[] entries = new ulong[levels], nested = new ulong[levels];
        for (int i = 0; i < levels; i++)
        {
            entries[i] = RandomEntry(r, mode, levels, i, maxPhysical, pse);
            // Mostly not where AMD reserves it.
            if (amd && levels - i >= 4 && r.Next(8) != 0)
                entries[i] &= ~Pte.G;
            nested[i] = RandomNested(r);
        }
        Kind access = (Kind)r.Next(3);
        bool isImplicit = access != Kind.Fetch && r.Next(4) == 0;
        return new(mode, r.Next(2) == 0, r.Next(2) == 0, r.Next(2) == 0, r.Next(2) == 0, pse, r.Next(2) * 3, r.Next(2) == 0, isImplicit, access,
            entries, nested, RandomNested(r), maxPhysical, pages1G, r.Next(4) != 0, amd, r.Next(2) == 0, RandomRights(r));
    }

    private static ulong RandomEntry(Random r, string mode, int levels, int i, int maxPhysical, bool pse)
    {
        ulong e = (r.Next(12) != 0 ? Pte.P : 0) | (r.Next(3) != 0 ? Pte.W : 0) | (r.Next(3) != 0 ? Pte.U : 0) | (r.Next(2) == 0 ? Pte.A : 0)
            | (r.Next(2) == 0 ? Pte.D : 0) | (r.Next(2) == 0 ? Pte.G : 0);
        e |= (ulong)r.Next(8) << 9;
        if (r.Next(5) == 0)
            e |= Pte.PWT | Pte.PCD;
        bool large = r.Next(4) == 0;
        if (large)
            e |= Pte.PS;
        if (mode == "32-bit" && !pse)
            large = false;
        if (mode != "32-bit")
        {
            if (r.Next(5) == 0)
                e |= Pte.NX;
            if (r.Next(12) == 0)
                e |= 1UL << r.Next(maxPhysical, 63);
            if (levels >= 4 && r.Next(2) == 0)
                e |= (ulong)r.Next(16) << Pte.KeyShift;
        }
        e |= i == levels - 1 || (large && r.Next(8) != 0) ? LeafPage & ~LargeOffset(mode, levels, i, large) : TablePage(i + 1);
        if (large && r.Next(6) == 0)
            e |= 1UL << r.Next(12, 22);
        return mode == "32-bit" ? (uint)e : e;
    }

    private static uint RandomRights(Random r) => r.Next(3) switch { 0 => 0, 1 => (uint)r.NextInt64(), _ => (uint)(r.NextInt64() & r.NextInt64()) };

    private static ulong LargeOffset(string mode, int levels, int i, bool large)
    {
        if (!large || i == levels - 1)
            return 0xfff;
        if (mode == "32-bit")
            return (1UL << 22) - 1;
        return (1UL << (12 + 9 * (levels - 1 - i))) - 1;
    }

    private static ulong RandomNested(Random r) => r.Next(24) switch
    {
        0 => 0,
        1 => NestedPte.R,
        2 => NestedPte.R | NestedPte.W,
        3 => NestedPte.R | NestedPte.X,
        4 => NestedPte.MmioValue,
        5 => NestedPte.X,
        6 => NestedPte.RWX | NestedPte.A,
        7 => NestedPte.RWX | NestedPte.A | NestedPte.D,
        _ => NestedPte.RWX,
    };

    private static void Check(SysMachine m, Case test, string what)
    {
        int levels = test.Entries.Length;
        Expectation expected = Evaluate(test);
        ulong linear = Prepare(m, test);
        ulong leafGpa = LeafAddress(test, expected, linear);
        if (expected.Result is "Ok" or "Nested" or "Mmio" && expected.LeafIndex >= 0 && expected.NestedAt is -1 or 99 && leafGpa >> 12 >= SysMachine.Pages)
            return; // The random frame lies outside the machine.
        bool tableMmio = Array.Exists(test.TableNested, n => (n & 7) == NestedPte.MmioValue);
        if (tableMmio && expected.Result != "Nested" && expected.Result != "Mmio" && expected.Result != "Fault")
            return;
        SetNested(m, test, leafGpa, expected);
        Access(m, test, linear, out bool ok);
        string entries = string.Join(' ', Array.ConvertAll(test.Entries, e => e.ToString("x")));
        string message = $"{what}: {test} entries [{entries}] nested [{string.Join(' ', test.TableNested)}] {test.LeafNested} "
            + $"expected {expected.Result} {expected.ErrorCode:x} at {expected.NestedAt}";
        Compare(m, test, expected, ok, linear, leafGpa, message);
        Restore(m, test, leafGpa);
    }

    private static ulong Prepare(SysMachine m, Case t)
    {
        CpuState* c = m.C;
        int levels = t.Entries.Length;
        ulong linear = t.Mode switch { "5-level" => Linear57, "4-level" => Linear64, _ => Linear32 };
        bool longMode = levels >= 4;
        c->Cr0 = Cr0.PE | Cr0.PG | Cr0.ET | (t.Wp ? Cr0.WP : 0);
        c->Cr4 = (t.Mode != "32-bit" ? Cr4.PAE : 0) | (t.Mode == "5-level" ? Cr4.LA57 : 0) | (t.Smep ? Cr4.SMEP : 0) | (t.Smap ? Cr4.SMAP : 0)
            | (t.Pse ? Cr4.PSE : 0) | (t.Pke ? Cr4.PKE : 0);
        c->Pkru = t.Pkru;
        c->Efer = (t.Nxe ? Efer.NXE : 0) | (longMode ? Efer.LME | Efer.LMA : 0);
        c->Cr3 = TablePage(0);
        c->Cs.Access = longMode ? 0xa09bu | (uint)t.Cpl << 5 : 0xc09bu | (uint)t.Cpl << 5;
        c->Ss.Access = 0xc093u | (uint)t.Cpl << 5;
        Flags.Set(c, Rflags.Fixed1 | (t.Ac ? Rflags.AC : 0));
        m.P.CpuidFeatures.PhysicalAddressBits = t.MaxPhysical;
        m.P.CpuidFeatures.Pages1G = t.Pages1G;
        m.P.CpuidFeatures.Pse36 = t.Pse36;
        if (t.Mode == "PAE")
            for (int i = 0; i < 4; i++)
                c->Pdptr[i] = TablePage(0) | Pte.P;
        for (int i = 0; i < levels; i++)
        {
            if (t.Mode == "32-bit")
                m.At32(EntryGpa(t, i, linear)) = (uint)t.Entries[i];
            else
                m.At64(EntryGpa(t, i, linear)) = t.Entries[i];
        }
        m.P.RecomputeMode();
        m.P.FlushAll();
        m.P.Access.Replay.Retire();
        return linear;
    }

    private static ulong EntryGpa(Case t, int i, ulong linear)
    {
        bool narrow = t.Mode == "32-bit";
        int bits = narrow ? 10 : 9, shift = 12 + bits * (t.Entries.Length - 1 - i);
        return TablePage(i) + ((linear >> shift) & ((1UL << bits) - 1)) * (narrow ? 4UL : 8);
    }

    private static ulong LeafAddress(Case t, Expectation o, ulong linear)
    {
        if (o.LeafIndex < 0)
            return LeafPage;
        bool narrow = t.Mode == "32-bit";
        int bits = narrow ? 10 : 9, shift = 12 + bits * (t.Entries.Length - 1 - o.LeafIndex);
        ulong e = t.Entries[o.LeafIndex], offset = (1UL << shift) - 1;
        ulong frame = narrow && shift == 22 ? (e & 0xffc0_0000) | (e >> 13 & 0xff) << 32 : e & 0x000f_ffff_ffff_f000 & ~offset;
        return frame | (linear & offset);
    }

    private static void SetNested(SysMachine m, Case t, ulong leafGpa, Expectation o)
    {
        if (leafGpa >> 12 < SysMachine.Pages)
            *m.NestedEntry(leafGpa) = t.LeafNested == 0 ? 0 : (m.NestedLeaf(leafGpa) & ~7UL) | t.LeafNested;
        for (int i = 0; i < t.Entries.Length; i++)
            *m.NestedEntry(TablePage(i)) = t.TableNested[i] == 0 ? 0 : (m.NestedLeaf(TablePage(i)) & ~7UL) | t.TableNested[i];
        _ = o;
    }

    private static void Restore(SysMachine m, Case t, ulong leafGpa)
    {
        if (leafGpa >> 12 < SysMachine.Pages)
            *m.NestedEntry(leafGpa) = m.NestedLeaf(leafGpa);
        for (int i = 0; i < t.Entries.Length; i++)
            *m.NestedEntry(TablePage(i)) = m.NestedLeaf(TablePage(i));
    }

    private static void Access(SysMachine m, Case t, ulong linear, out bool ok)
    {
        CpuState* c = m.C;
        c->PendingVector = 0;
        c->ExitPending = 0;
        m.P.Exit->Reason = ExitReason.None;
        AccessKind privilege = t.Implicit ? AccessKind.Implicit : t.Cpl == 3 ? AccessKind.User : 0;
        ok = t.Access switch
        {
            Kind.Read => m.P.Access.ReadPtrSlow(c, linear, 1, privilege) != null,
            Kind.Write => m.P.Access.WritePtrSlow(c, linear, 1, privilege, false) != null,
            _ => m.P.Paging.TranslateExecute(c, linear) != null,
        };
    }

    private static void Compare(SysMachine m, Case t, Expectation expected, bool ok, ulong linear, ulong leafGpa, string message)
    {
        CpuState* c = m.C;
        switch (expected.Result)
        {
            case "Ok":
                Assert.True(ok, message + $" got vector {c->PendingVector} code {c->PendingErrorCode:x} exit {m.P.Exit->Reason} gpa {m.P.Exit->Gpa:x}");
                ulong nested = *m.NestedEntry(leafGpa);
                Assert.True((nested & NestedPte.A) != 0, message + ": nested A");
                Assert.True((nested & NestedPte.D) != 0 == (t.Access == Kind.Write || (t.LeafNested & NestedPte.D) != 0), message + ": nested D");
                break;
            case "Fault":
                Assert.True(!ok && c->ExitPending == 0 && c->PendingVector == Vector.PF && c->PendingErrorCode == expected.ErrorCode
                    && c->PendingAddress == linear,
                    message + $" got vector {c->PendingVector} code {c->PendingErrorCode:x} exit {m.P.Exit->Reason}");
                break;
            case "Nested":
                Assert.True(!ok && c->ExitPending != 0 && m.P.Exit->Reason == ExitReason.NestedFault, message
                    + $" got {m.P.Exit->Reason} vector {c->PendingVector}");
                CompareNested(m, t, expected, linear, leafGpa, message);
                break;
            default:
                bool reported = m.P.Exit->Reason is ExitReason.Mmio or ExitReason.EmulationFailure || (ok && t.Access == Kind.Write && expected.NestedAt < 0);
                Assert.True(reported, message + $" got {m.P.Exit->Reason} vector {c->PendingVector}");
                break;
        }
        for (int i = 0; i < t.Entries.Length; i++)
        {
            ulong actual = t.Mode == "32-bit" ? m.At32(EntryGpa(t, i, linear)) : m.At64(EntryGpa(t, i, linear));
            Assert.True(actual == expected.EntriesAfter[i], message + $": entry {i} is {actual:x}, expected {expected.EntriesAfter[i]:x}");
        }
    }

    private static void CompareNested(SysMachine m, Case t, Expectation expected, ulong linear, ulong leafGpa, string message)
    {
        ExitInfo* exit = m.P.Exit;
        bool walk = expected.NestedAt != 99;
        ulong gpa = walk ? EntryGpa(t, expected.NestedAt, linear) : (leafGpa & ~0xfffUL) | (linear & 0xfff);
        bool wrote = expected.NestedWrite;
        AccessKind kind = walk ? (wrote ? AccessKind.Write : AccessKind.Read) | AccessKind.GuestPageWalk
            : t.Access switch { Kind.Read => AccessKind.Read, Kind.Write => AccessKind.Write, _ => AccessKind.Execute };
        ulong entry = walk ? t.TableNested[expected.NestedAt] : t.LeafNested;
        if ((entry & 7) != 0)
            kind |= AccessKind.Present;
        Assert.True(exit->Gpa == gpa && exit->Gva == linear && (exit->Access & ~AccessKind.User) == kind, message
            + $" got gpa {exit->Gpa:x} gva {exit->Gva:x} access {exit->Access}, expected {gpa:x} {kind}");
    }
}
