using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Units;

/// <summary>The two engines alone: the translator's builder over decoded blocks, and the interpreter's loop over handlers of the test's.</summary>
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
            // AVX-512 is undefined here.
            a.vaddps(zmm0, zmm1, zmm2);
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

    private const int Ops = 4;

    private static OpResult Counts(LogicalProcessor p, CpuState* c, Op* op)
    {
        c->Gpr[0]++;
        return OpResult.Next;
    }

    /// <summary>As if the instruction had overwritten its block.</summary>
    private static OpResult Overwrites(LogicalProcessor p, CpuState* c, Op* op)
    {
        Interpreter.BlockOf(op)->Stale = 1;
        return OpResult.Next;
    }

    private static OpResult Faults(LogicalProcessor p, CpuState* c, Op* op) => OpResult.Fault;

    private static OpResult Exits(LogicalProcessor p, CpuState* c, Op* op)
    {
        c->Rip = Code + Ops;
        return OpResult.RetiredExit;
    }

    /// <summary>The loop calls the handlers of a block in their order, and counts what has retired; the handlers are the test's.</summary>
    [Theory]
    [InlineData(0, "RetiredExit", 3, Code + Ops, 4)]
    [InlineData(1, "Stale", 2, Code + 3, 3)]
    [InlineData(2, "Fault", 2, Code + 2, 2)]
    public void Interpreter_CallsTheHandlersOfABlock(int what, string exit, int counted, int rip, int retired)
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        CodeFetch fetch = new(b.State, paging, b.Blocks, ProcessorModel.Host);
        b.Blocks.Join(fetch);
        GuestAccess access = new(paging, ProcessorModel.Host);
        Interpreter interpreter = new(null!, fetch, access, new MemoryGuard());
        Put(b, 64, a =>
        {
            a.nop();
            a.nop();
            a.nop();
            a.hlt();
        });
        Block* block = Decode(b, Code, BlockMode.Code64);
        // The translator is not there to be asked.
        block->Heat = int.MaxValue;
        Op* op = Block.FirstOp(block);
        for (int i = 0; i < Ops - 1; i++)
            op[i].Handler = &Counts;
        op[Ops - 1].Handler = &Exits;
        if (what == 1)
            op[2].Handler = &Overwrites;
        if (what == 2)
            op[2].Handler = &Faults;
        CpuState* c = b.State;
        (c->BlockMode, c->Rip, c->BlockRip, c->TimerLook) = (BlockMode.Code64, Code, Code, ulong.MaxValue);
        Assert.Equal(exit, $"{interpreter.LoopGuarded(c, block)}");
        Assert.Equal(((ulong)counted, (ulong)rip, (ulong)retired), (c->Gpr[0], c->Rip, c->InstructionsRetired));
        access.Free();
        fetch.Free();
        paging.Free();
    }
}
