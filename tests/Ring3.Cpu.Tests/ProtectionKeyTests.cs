using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>
/// PKRU by its instructions and images, and that cached translations follow it, in the interpreter and in translated code.
/// SysPageWalkTests has the rights themselves.
/// </summary>
public sealed unsafe class ProtectionKeyTests
{
    private const ulong Data = CpuHarness.DataAddress, Keyed = 4 << 20;

    public static TheoryData<bool> Engines => [false, true];

    private static CpuHarness Create(Action<Assembler> code, bool translate = false, int cpl = 0, ProcessorModel? model = null)
    {
        var a = new Assembler(64);
        code(a);
        a.int3();
        using var stream = new MemoryStream();
        a.Assemble(new StreamCodeWriter(stream), CpuHarness.CodeAddress);
        CpuHarness h = CpuHarness.Long(stream.ToArray(), cpl, model: model, translate: translate);
        h.State->Cr4 |= Cr4.PKE;
        h.State->Xcr0 |= Xcr0.Pkru;
        h.State->Gpr[2] = 0;
        h.Cpu.RecomputeMode();
        return h;
    }

    /// <summary>Gives the 2 MiB at an address a key.</summary>
    private static void SetKey(CpuHarness h, ulong address, int key)
    {
        ref ulong leaf = ref h.Word(h.Size - 0x4000 + 0x2000 + 8 * (address >> 21));
        leaf = leaf & ~(15UL << Pte.KeyShift) | (ulong)key << Pte.KeyShift;
    }

    private static byte Run(CpuHarness h, ulong rip = CpuHarness.CodeAddress)
    {
        h.State->Rip = rip;
        Assert.Equal(ExitReason.Exception, h.Run());
        return h.Exit->Vector;
    }

    // ---- RDPKRU, WRPKRU

    [Fact]
    public void Registers_AreReadAndWritten()
    {
        foreach (int cpl in (int[])[0, 3])
        {
            using CpuHarness write = Create(a => { a.wrpkru(); a.xor(eax, eax); a.mov(rdx, -1L); a.rdpkru(); }, cpl: cpl);
            write.State->Gpr[0] = 0xffff_ffff_5555_5554;
            write.State->Gpr[1] = write.State->Gpr[2] = 0xffff_ffff_0000_0000;
            Assert.Equal(Vector.BP, Run(write));
            Assert.Equal((0x5555_5554u, 0x5555_5554UL, 0UL), (write.State->Pkru, write.Rax, write.Rdx));
        }
    }

    [Fact]
    public void Registers_WithOtherOperands_AreGeneralProtection()
    {
        byte outcome(Action<Assembler> code, ulong rcx, ulong rdx, ulong cr4 = Cr4.PKE)
        {
            using CpuHarness h = Create(code);
            h.State->Cr4 = h.State->Cr4 & ~Cr4.PKE | cr4;
            h.Cpu.RecomputeMode();
            (h.Rax, h.Rcx, h.Rdx) = (4, rcx, rdx);
            byte vector = Run(h);
            Assert.Equal(0u, h.State->Pkru & ~4u);
            return vector;
        }
        Assert.Equal(Vector.BP, outcome(a => a.rdpkru(), 0, 7));
        Assert.Equal(Vector.BP, outcome(a => a.wrpkru(), 0, 0));
        Assert.Equal(Vector.GP, outcome(a => a.rdpkru(), 1, 0));
        Assert.Equal(Vector.GP, outcome(a => a.wrpkru(), 1, 0));
        Assert.Equal(Vector.GP, outcome(a => a.wrpkru(), 0, 1));
        // Without CR4.PKE, before anything else.
        Assert.Equal(Vector.UD, outcome(a => a.rdpkru(), 1, 0, 0));
        Assert.Equal(Vector.UD, outcome(a => a.wrpkru(), 1, 1, 0));
    }

    [Fact]
    public void Pke_WithoutTheBit_IsReserved()
    {
        using CpuHarness h = Create(a => { a.mov(rax, cr4); a.mov(cr4, rax); });
        Assert.Equal(Vector.BP, Run(h));
        h.Cpu.CpuidFeatures.Pku = false;
        Assert.Equal(Vector.GP, Run(h));
    }

    // ---- State images

    /// <summary>The standard format has the model's place, the compacted one that behind AVX state, or behind the header.</summary>
    [Theory]
    [InlineData("intel", 2688)]
    [InlineData("amd", 2432)]
    public void Images_HavePkruInItsPlace(string vendor, int standard)
    {
        ProcessorModel.TryParse(vendor, out ProcessorModel model);
        (string Name, Action<Assembler> Save, ulong Components, int Offset, ulong Compacted)[] saves =
        [
            ("xsave", a => a.xsave(__[rsi]), 0x207, standard, 0), ("xsave64", a => a.xsave64(__[rsi]), 0x200, standard, 0),
            ("xsaveopt", a => a.xsaveopt(__[rsi]), 0x207, standard, 0), ("xsavec", a => a.xsavec(__[rsi]), 0x207, 832, 1UL << 63 | 0x207),
            ("xsavec64", a => a.xsavec64(__[rsi]), 0x203, 576, 1UL << 63 | 0x203), ("xsaves", a => a.xsaves(__[rsi]), 0x207, 832, 1UL << 63 | 0x207),
        ];
        foreach (var s in saves)
        {
            foreach (uint value in (uint[])[0x5555_5554, 0])
            {
                using CpuHarness h = Create(s.Save, model: model);
                (h.Rax, h.Rsi, h.State->Pkru) = (s.Components, Data, value);
                h.Data(Data, 4096).Fill(0xa5);
                h.Data(Data + 512, 64).Clear();
                Assert.Equal(Vector.BP, Run(h));
                ulong held = h.Word(Data + 512);
                Assert.Equal(value != 0 ? 0x200UL : 0, held & 0x200);
                Assert.Equal(s.Compacted, h.Word(Data + 520));
                // XSAVE writes an initial component, the others leave it out.
                ulong expected = value != 0 || s.Name is "xsave64" or "xsave" ? value : 0xa5a5_a5a5_a5a5_a5a5;
                Assert.True(expected == h.Word(Data + (ulong)s.Offset), $"{s.Name} {value:x}: {h.Word(Data + (ulong)s.Offset):x}");
                Assert.Equal(0xa5a5_a5a5_a5a5_a5a5, h.Word(Data + (ulong)s.Offset + 8));
                if (s.Offset == standard)
                    Assert.Equal(-1, h.Data(Data + 832, standard - 832).IndexOfAnyExcept((byte)0xa5));
            }
        }
        (Action<Assembler> Restore, ulong Held, ulong Compacted, ulong Requested, int Offset, uint Pkru)[] restores =
        [
            (a => a.xrstor(__[rsi]), 0x200, 0, 0x200, standard, 0xa5a5_a5a5), (a => a.xrstor64(__[rsi]), 0, 0, 0x200, standard, 0),
            (a => a.xrstor(__[rsi]), 0x200, 0, 7, standard, 4), (a => a.xrstor(__[rsi]), 0x200, 1UL << 63 | 0x207, 0x200, 832, 0xa5a5_a5a5),
            (a => a.xrstor(__[rsi]), 0x200, 1UL << 63 | 0x200, 0x200, 576, 0xa5a5_a5a5),
            (a => a.xrstor(__[rsi]), 0, 1UL << 63 | 7, 0x200, 576, 0), (a => a.xrstors(__[rsi]), 0x200, 1UL << 63 | 0x203, 0x207, 576, 0xa5a5_a5a5),
        ];
        foreach (var s in restores)
        {
            using CpuHarness h = Create(s.Restore, model: model);
            (h.Rax, h.Rsi, h.State->Pkru) = (s.Requested, Data, 4);
            h.Data(Data, 4096).Clear();
            h.Word(Data + 24) = 0x1f80;
            (h.Word(Data + 512), h.Word(Data + 520), h.Word(Data + (ulong)s.Offset)) = (s.Held, s.Compacted, 0xa5a5_a5a5);
            Assert.Equal(Vector.BP, Run(h));
            Assert.Equal(s.Pkru, h.State->Pkru);
        }
        // With XCR0's bit clear it is no component.
        using CpuHarness off = Create(a => a.xrstor(__[rsi]), model: model);
        off.State->Xcr0 &= ~Xcr0.Pkru;
        (off.Rax, off.Rsi, off.Word(Data + 512)) = (0x200, Data, 0x200);
        Assert.Equal(Vector.GP, Run(off));
    }

    /// <summary>A page that cannot be written behind the image's other parts: nothing of the image is written.</summary>
    [Fact]
    public void Xsave_WhosePkruFaults_WritesNothing()
    {
        using CpuHarness h = Create(a => a.xsave(__[rsi]), model: ProcessorModel.EmeraldRapids);
        // 2 MiB border between the AVX state and PKRU.
        ulong area = Keyed - 1024;
        h.Word(h.Size - 0x4000 + 0x2000 + 8 * (Keyed >> 21)) &= ~Pte.W;
        (h.Rax, h.Rsi) = (0x207, area);
        h.Data(area, 1024).Fill(0xa5);
        h.Data(area + 512, 64).Clear();
        Assert.Equal(Vector.PF, Run(h));
        Assert.Equal(area + 2688, h.Exit->Payload);
        Assert.Equal(-1, h.Data(area, 512).IndexOfAnyExcept((byte)0xa5));
        Assert.Equal(0UL, h.Word(area + 512));
    }

    // ---- Cached translations

    /// <summary>Reads and writes keyed pages again and again while the rights change between: each access has the rights of its moment.</summary>
    [Theory]
    [InlineData(false, 3)]
    [InlineData(true, 3)]
    [InlineData(false, 0)]
    [InlineData(true, 0)]
    public void CachedPages_FollowEveryChange(bool translate, int cpl)
    {
        // eax: rights; rsi: address; ebx: 0 read, 1 write. Thousands of rounds through the same code.
        using CpuHarness h = Create(a =>
        {
            Label write = a.CreateLabel(), end = a.CreateLabel();
            a.wrpkru();
            a.test(ebx, ebx);
            a.jne(write);
            a.mov(r8, __qword_ptr[rsi]);
            a.jmp(end);
            a.Label(ref write);
            a.mov(__qword_ptr[rsi], r9);
            a.Label(ref end);
            a.nop();
        }, translate, cpl);
        for (int key = 0; key < 4; key++)
            SetKey(h, Keyed + ((ulong)key << 21), key);
        h.Cpu.FlushAll();
        Random random = new(99);
        for (int round = 0; round < 6000; round++)
        {
            int key = random.Next(4);
            bool write = random.Next(2) != 0;
            // The code and its tables have key 0: fetches do not care.
            uint rights = (uint)random.Next(256) & (uint)random.Next(256);
            // Many pages of the region, few of them often.
            h.Rsi = Keyed + ((ulong)key << 21) + (ulong)random.Next(random.Next(4) == 0 ? 200 : 3) * 4096 + 8;
            (h.Rax, h.Rcx, h.Rdx, h.Rbx) = (rights, 0, 0, write ? 1UL : 0);
            byte vector = Run(h);
            uint of = rights >> 2 * key & 3;
            bool forbidden = (of & 1) != 0 || write && (of & 2) != 0;
            Assert.True(vector == (forbidden ? Vector.PF : Vector.BP), $"round {round}: key {key} rights {rights:x} write {write}: {vector}");
            if (!forbidden)
                continue;
            uint code = PageFaultError.P | PageFaultError.PK | (write ? PageFaultError.W : 0) | (cpl == 3 ? PageFaultError.U : 0);
            Assert.Equal((code, h.Rsi), (h.Exit->ErrorCode, h.Exit->Payload));
        }
    }

    /// <summary>More keyed pages in level 1 than it remembers, then all of them at once forbidden.</summary>
    [Fact]
    public void ManyPages_AreForbiddenAtOnce()
    {
        using CpuHarness h = Create(a => { a.wrpkru(); a.mov(r8, __qword_ptr[rsi]); }, cpl: 3);
        SetKey(h, Keyed, 5);
        h.Cpu.FlushAll();
        for (int round = 0; round < 3; round++)
        {
            for (ulong page = 0; page < 300; page++)
            {
                (h.Rax, h.Rsi) = (0, Keyed + page * 4096);
                Assert.Equal(Vector.BP, Run(h));
            }
            for (ulong page = 0; page < 300; page++)
            {
                (h.Rax, h.Rsi) = (1 << 10, Keyed + page * 4096);
                Assert.Equal(Vector.PF, Run(h));
            }
        }
    }

    /// <summary>Other ways to a new PKRU: XRSTOR, the owner, CR4.PKE.</summary>
    [Theory]
    [MemberData(nameof(Engines))]
    public void CachedPages_FollowXrstorOwnerAndCr4(bool translate)
    {
        using CpuHarness h = Create(a => { a.mov(r8, __qword_ptr[rdi]); a.xrstor(__[rsi]); a.mov(r8, __qword_ptr[rdi]); }, translate, cpl: 3);
        SetKey(h, Keyed, 7);
        h.Cpu.FlushAll();
        h.Word(Data + 512) = 0x200;
        (h.Rax, h.Rsi, h.Rdi) = (0x200, Data, Keyed);
        Assert.Equal(Vector.BP, Run(h));
        h.Word(Data + 2688) = h.Word(Data + 2432) = 1 << 14;
        Assert.Equal(Vector.PF, Run(h));
        Assert.NotEqual(CpuHarness.CodeAddress, h.State->Rip);
        Assert.Equal(Vector.PF, Run(h));
        Assert.Equal(CpuHarness.CodeAddress, h.State->Rip);
        h.Cpu.Pkru = 0;
        h.Word(Data + 2688) = h.Word(Data + 2432) = 0;
        Assert.Equal(Vector.BP, Run(h));
        h.Cpu.Pkru = 1 << 14;
        Assert.Equal(Vector.PF, Run(h));
        // Keys are ignored without CR4.PKE, and count again with it.
        h.State->Cr4 &= ~Cr4.PKE;
        h.Cpu.RecomputeMode();
        (h.Rax, h.State->Gpr[2]) = (0, 0);
        Assert.Equal(Vector.BP, Run(h));
        h.State->Cr4 |= Cr4.PKE;
        h.Cpu.RecomputeMode();
        Assert.Equal(Vector.PF, Run(h));
    }

    /// <summary>Fetches know no keys.</summary>
    [Theory]
    [MemberData(nameof(Engines))]
    public void Fetches_AreExempt(bool translate)
    {
        using CpuHarness h = Create(a => { a.wrpkru(); a.jmp(rdi); }, translate, cpl: 3);
        SetKey(h, Keyed, 3);
        h.Cpu.FlushAll();
        h.Write(Keyed, [0x90, 0xcc]);
        (h.Rax, h.Rdi) = (uint.MaxValue, Keyed);
        Assert.Equal(Vector.BP, Run(h));
        Assert.Equal(Keyed + 1, h.State->Rip);
    }

    /// <summary>WRPKRU costs level 1 nothing when no page of the changed key is in it.</summary>
    [Fact]
    public void Wrpkru_OfAnotherKey_KeepsTheContext()
    {
        using CpuHarness h = Create(a => { a.mov(r8, __qword_ptr[rsi]); a.wrpkru(); a.mov(r8, __qword_ptr[rsi]); }, cpl: 3);
        SetKey(h, Keyed, 1);
        h.Cpu.FlushAll();
        (h.Rax, h.Rsi) = (0xffff_fff0, Keyed);
        Assert.Equal(Vector.BP, Run(h));
        ulong context = h.State->TlbContext;
        Assert.Equal(Keyed | context, (h.Cpu.Paging.Level1 + Tlb.Index(Keyed))->TagRead);
        h.Rax = 0;
        ulong misses = h.Cpu.Paging.Tlb.Misses;
        Assert.Equal(Vector.BP, Run(h));
        Assert.Equal((context, misses), (h.State->TlbContext, h.Cpu.Paging.Tlb.Misses));
        // And its own key drops just that page.
        h.Rax = 1 << 2;
        Assert.Equal(Vector.PF, Run(h));
        Assert.Equal(context, h.State->TlbContext);
    }
}
