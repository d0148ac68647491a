using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Units;

/// <summary>The two engines alone: the translator's builder over decoded blocks, and the interpreter's loop over a TLB that the test has filled.</summary>
/// <remarks>SAFETY: blocks lie in the bench's cache, guest code and data in its memory.</remarks>
public sealed unsafe class EngineTests
{
    private const int Code = 0x1000;

    /// <summary>Decodes and publishes the block at an offset of guest memory.</summary>
    private static Block* Decode(UnitBench b, int at, uint mode)
    {
        BlockDecoder decoder = new(ProcessorModel.Host);
        Assert.True(decoder.Decode((ulong)at, b.Memory + at, null, mode, out Block header));
        Block* block = b.Blocks.Publish(&header, decoder.Ops, decoder.Snapshot);
        decoder.Free();
        return block;
    }

    private static int Put(UnitBench b, int bits, Action<Assembler> program)
    {
        byte[] code = CoreSmokeTests.Assemble(bits, program, Code);
        code.CopyTo(new Span<byte>(b.Memory + Code, code.Length));
        return code.Length;
    }

    private static RegionBuilder Builder(UnitBench b) => new(b.Blocks, b.Identity);

    /// <summary>A loop that adds words up, and what follows it: two blocks.</summary>
    private static void Sum(Assembler a)
    {
        Label again = a.CreateLabel();
        a.Label(ref again);
        a.add(eax, a.Bitness == 64 ? __dword_ptr[rsi] : __dword_ptr[esi]);
        a.add(esi, 4);
        a.dec(ecx);
        a.jnz(again);
        a.mov(edx, eax);
        a.ret();
    }

    [Theory]
    [InlineData(64, BlockMode.Code64)]
    [InlineData(32, BlockMode.Code32 | BlockMode.Flat)]
    public void RegionBuilder_MakesOneRegionOfALoopAndWhatFollows(int bits, uint mode)
    {
        using UnitBench b = new();
        int length = Put(b, bits, Sum);
        Block* loop = Decode(b, Code, mode), after = Decode(b, Code + loop->Bytes, mode);
        Assert.Equal((4, 2, length), ((int)loop->Instructions, (int)after->Instructions, loop->Bytes + after->Bytes));
        RegionBuilder builder = Builder(b);
        Assert.True(builder.Build(loop, 0x40_1000));
        Assert.Equal(6, builder.Instructions);
        Assert.False(b.Blocks.PublishRegion(builder, b.Blocks.Epoch + 1));
        Assert.True(b.Blocks.PublishRegion(builder, b.Blocks.Epoch));

        Region* region = loop->Uses->Region;
        Assert.Equal((2, 6, 0x40_1000UL, 0), (region->SourceCount, region->Instructions, region->Address, region->Stale));
        Assert.InRange(loop->Code, region->Code, region->Code + region->CodeBytes - 1);
        Assert.True(after->Uses->Region == region);

        // Both blocks go with it when bytes of the second are written; the first can be translated again.
        b.Blocks.CodeWritten(b.Memory + Code + length - 1, 1);
        Assert.Equal((1, (nint)0), (region->Stale, loop->Code));
        Assert.True(builder.Build(loop, 0x40_1000));
        Assert.Equal(4, builder.Instructions);
    }

    [Fact]
    public void RegionBuilder_RefusesWhatTheInterpreterKeeps()
    {
        using UnitBench b = new();
        Put(b, 64, a =>
        {
            a.emms();
            a.ret();
        });
        Assert.False(Builder(b).Build(Decode(b, Code, BlockMode.Code64), Code));
    }

    [Fact]
    public void RegionBuilder_NeedsTheBytesThatWereDecoded()
    {
        using UnitBench b = new();
        Put(b, 64, Sum);
        Block* loop = Decode(b, Code, BlockMode.Code64);
        // Written behind the cache's back: lengths differ.
        b.Memory[Code] = 0x48;
        Assert.False(Builder(b).Build(loop, Code));
    }

    [Fact]
    public void RegionBuilder_AllocatesNothingOnceItHasGrown()
    {
        using UnitBench b = new();
        Put(b, 64, Sum);
        Block* loop = Decode(b, Code, BlockMode.Code64);
        Decode(b, Code + loop->Bytes, BlockMode.Code64);
        RegionBuilder builder = Builder(b);
        for (int i = 0; i < 3; i++)
            Assert.True(builder.Build(loop, Code));
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 10; i++)
            builder.Build(loop, Code);
        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
    }

    [Fact]
    public void Interpreter_ExecutesABlockOverAnyTlb()
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        CodeFetch fetch = new(b.State, paging, b.Blocks, ProcessorModel.Host);
        b.Blocks.Join(fetch);
        nuint bytes = Tlb.Level1Entries * (nuint)sizeof(TlbEntry);
        TlbEntry* level1 = (TlbEntry*)HostMemory.Map(bytes);
        GuestAccess access = new(paging, ProcessorModel.Host);
        Interpreter interpreter = new(null!, fetch, level1, access, new MemoryGuard());
        Put(b, 64, a =>
        {
            Label end = a.CreateLabel();
            a.mov(rax, __qword_ptr[rbx]);
            a.add(rax, rcx);
            a.mov(__qword_ptr[rbx + 8], rax);
            a.jmp(end);
            a.nop();
            a.Label(ref end);
            a.hlt();
        });
        Block* block = Decode(b, Code, BlockMode.Code64);
        // The translator is not there to be asked.
        block->Heat = int.MaxValue;
        CpuState* c = b.State;
        // One page of data, at an address that no page table of the guest knows.
        const ulong data = 0x7654_3000;
        byte* page = b.Memory + 0x5000;
        (c->BlockMode, c->TlbContext) = (BlockMode.Code64, 5);
        *(level1 + Tlb.Index(data)) = new TlbEntry
        {
            TagRead = data | c->TlbContext, TagWrite = data | c->TlbContext, Addend = (long)page - (long)data, CodeBits = b.Blocks.CodeMap.BitsFor(page),
        };
        *(ulong*)(page + 0x10) = 0x1_0000_0001;
        (c->Rip, c->BlockRip, c->TimerLook) = (Code, Code, ulong.MaxValue);
        (c->Gpr[1], c->Gpr[3]) = (41, data + 0x10);
        Assert.Equal(LoopExit.Lookup, interpreter.LoopGuarded(c, block));
        Assert.Equal((0x1_0000_002aUL, 0x1_0000_002aUL), (c->Gpr[0], *(ulong*)(page + 0x18)));
        Assert.Equal((Code + (ulong)block->Bytes + 1, 4UL), (c->Rip, c->InstructionsRetired));
        access.Free();
        fetch.Free();
        paging.Free();
        HostMemory.Unmap(level1, bytes);
    }
}
