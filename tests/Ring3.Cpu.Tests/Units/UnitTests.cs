using Ring3.Arch;
using Xunit;

namespace Ring3.Cpu.Tests.Units;

/// <summary>Each unit of a processor alone, on what its constructor names.</summary>
public sealed unsafe class UnitTests
{
    [Fact]
    public void BlockCache_KeepsABlockUntilItsBytesAreWritten()
    {
        using UnitBench b = new();
        BlockDecoder decoder = new(ProcessorModel.Host);
        byte* code = b.Memory + 0x1000;
        *code = 0xf4;
        Assert.True(decoder.Decode(0x1000, code, null, BlockMode.Code16, out Block header));
        Block* block = b.Blocks.Publish(&header, decoder.Ops, decoder.Snapshot);
        Assert.True(block == b.Blocks.Find(code, BlockMode.Code16, null));
        Assert.True(b.Blocks.Find(code, BlockMode.Code64, null) == null);
        Assert.NotEqual(0UL, *b.Blocks.CodeMap.BitsFor(code));

        b.Blocks.CodeWritten(code + 64, 1);
        Assert.True(block == b.Blocks.Find(code, BlockMode.Code16, null));
        b.Blocks.CodeWritten(code, 1);
        Assert.True(b.Blocks.Find(code, BlockMode.Code16, null) == null);
        Assert.NotEqual(0, block->Stale);
        Assert.Equal(0UL, *b.Blocks.CodeMap.BitsFor(code));
        decoder.Free();
    }

    [Fact]
    public void BlockCache_DropsEverythingInANewEpochWhileAReaderKeepsItsOwn()
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        CodeFetch reader = new(b.State, paging, b.Blocks, ProcessorModel.Host);
        b.Blocks.Join(reader);
        reader.EnterEpoch();
        long entered = reader.ActiveEpoch;
        Assert.Equal(b.Blocks.Epoch, entered);
        // Another value of the setting drops everything that was decoded.
        *(b.Memory + 0x2000) = 0xf4;
        b.State->Rip = 0x2000;
        Block* block = reader.Lookup(b.State, CpuMode.CodeMode(b.State));
        Assert.Equal(1, block->Instructions);
        b.Blocks.ExternalWriters = true;
        Assert.Equal(entered + 1, b.Blocks.Epoch);
        Assert.Equal(entered, reader.ActiveEpoch);
        Assert.NotEqual(0, block->Stale);
        reader.LeaveEpoch();
        reader.Free();
        paging.Free();
    }

    [Fact]
    public void PagingUnit_TranslatesAndReportsWhatIsMissing()
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        Assert.True(paging.Translate(b.State, 0x5123, AccessKind.Read, out Translation t));
        Assert.True(t.Host == b.Memory + 0x5000);
        Assert.Equal(0x5000UL, t.Gpa);

        Assert.True(paging.Translate(b.State, UnitBench.Device + 8, AccessKind.Write, out t));
        Assert.True(t.Host == null);

        Assert.False(paging.Translate(b.State, 0x4000_0000, AccessKind.Write, out _));
        Assert.Equal(ExitReason.NestedFault, b.State->Exit->Reason);
        Assert.Equal(0x4000_0000UL, b.State->Exit->Gpa);
        Assert.Equal(AccessKind.Write, b.State->Exit->Access & AccessKind.Write);
        paging.Free();
    }

    [Fact]
    public void PagingUnit_ForgetsLevel1WhenTheContextChanges()
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        Assert.True(paging.Translate(b.State, 0x5000, AccessKind.Read, out _));
        ulong before = b.State->TlbContext;
        Assert.Equal(0x5000 | before, (paging.Level1 + Tlb.Index(0x5000))->TagRead);
        paging.FlushAsid(1);
        Assert.NotEqual(before, b.State->TlbContext);
        paging.Free();
    }

    [Fact]
    public void GuestAccess_JoinsPagesAndAsksForDevices()
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        GuestAccess access = new(paging, ProcessorModel.Host);
        Assert.True(access.Store64(b.State, 0x5ffc, 0x1122_3344_5566_7788));
        Assert.Equal(0x5566_7788u, *(uint*)(b.Memory + 0x5ffc));
        Assert.True(access.Load64(b.State, 0x5ffc, out ulong value));
        Assert.Equal(0x1122_3344_5566_7788UL, value);

        Assert.False(access.Load32(b.State, UnitBench.Device, out _));
        Assert.Equal(ExitReason.Mmio, b.State->Exit->Reason);
        access.CompleteMmio([1, 2, 3, 4]);
        Assert.True(access.Replay.InProgress);
        access.Replay.Begin();
        Assert.True(access.Load32(b.State, UnitBench.Device, out uint word));
        Assert.Equal(0x0403_0201u, word);
        access.Replay.Retire();
        Assert.False(access.Replay.InProgress);
        access.Free();
        paging.Free();
    }

    [Fact]
    public void EventUnit_DeliversInRealModeAndKnowsWhatIsNext()
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        GuestAccess access = new(paging, ProcessorModel.Host);
        EventUnit events = new(b.State, b.Identity, paging, access, new MemoryGuard());
        events.RecomputeMode();
        CpuState* c = b.State;
        c->Rflags |= Rflags.IF;
        Assert.Equal(BoundaryEvents.Interrupt, events.FirstEvent(BoundaryEvents.Interrupt));
        c->InterruptShadow = 1;
        Assert.Equal(BoundaryEvents.None, events.FirstEvent(BoundaryEvents.Interrupt));
        c->InterruptShadow = 0;

        *(uint*)(b.Memory + 4 * 0x21) = 0x1000_0234;
        (c->Gpr[4], c->Rip) = (0x800, 0x77);
        Assert.True(events.DeliverInterrupt(c, 0x21));
        Assert.Equal((0x234UL, 0x1000, 0x7faUL), (c->Rip, (int)c->Cs.Selector, c->Gpr[4]));
        Assert.Equal(0x77, *(ushort*)(b.Memory + 0x7fa));
        Assert.Equal(0UL, c->Rflags & Rflags.IF);
        access.Free();
        paging.Free();
    }

    [Fact]
    public void ControlUnit_ChecksWhatItLoads()
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        GuestAccess access = new(paging, ProcessorModel.Host);
        EventUnit events = new(b.State, b.Identity, paging, access, new MemoryGuard());
        ControlUnit control = new(b.State, b.Identity, paging, events);
        Assert.False(control.TryWriteGuestMsr(Msr.PAT, 2));
        Assert.True(control.TryWriteGuestMsr(Msr.PAT, 6));
        Assert.True(control.ReadMsr(Msr.PAT, out ulong pat));
        Assert.Equal(6UL, pat);
        Assert.False(control.WriteCr0(b.State, Cr0.PG));
        Assert.Equal(Vector.GP, b.State->PendingVector);
        Assert.True(control.WriteCr0(b.State, Cr0.PE));
        Assert.Equal(Cr0.PE | Cr0.ET, b.State->Cr0);
        access.Free();
        paging.Free();
    }

    [Fact]
    public void CodeFetch_FindsABlockAgainWithoutAWalk()
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        CodeFetch fetch = new(b.State, paging, b.Blocks, ProcessorModel.Host);
        b.Blocks.Join(fetch);
        fetch.EnterEpoch();
        CpuState* c = b.State;
        (b.Memory[0x3000], b.Memory[0x3001], c->Rip) = (0x90, 0xf4, 0x3000);
        Block* first = fetch.Lookup(c, CpuMode.CodeMode(c));
        Assert.Equal(2, first->Instructions);
        ulong searched = c->BlocksExecuted, walks = paging.Tlb.Walks;
        Assert.True(first == fetch.Lookup(c, CpuMode.CodeMode(c)));
        Assert.Equal((searched, walks), (c->BlocksExecuted, paging.Tlb.Walks));
        c->Rip = 0x1_0000;
        Assert.True(fetch.Lookup(c, CpuMode.CodeMode(c)) == null);
        Assert.Equal(Vector.GP, c->PendingVector);
        fetch.LeaveEpoch();
        fetch.Free();
        paging.Free();
    }

    [Fact]
    public void PortInput_GivesTheValueToRax()
    {
        using UnitBench b = new();
        PagingUnit paging = b.Paging();
        GuestAccess access = new(paging, ProcessorModel.Host);
        PortInput input = new(b.State, paging, access, new MemoryGuard());
        CpuState* c = b.State;
        (c->Gpr[0], c->Rip) = (0xffff_ffff, 0x10);
        (c->Exit->Reason, c->Exit->Size, c->Exit->InstructionLength) = (ExitReason.Io, 2, 1);
        Assert.False(input.InputGoesToMemory);
        Assert.Equal(InputResult.Done, input.CompleteIo([0x34, 0x12]));
        Assert.Equal((0xffff_1234UL, 0x11UL), (c->Gpr[0], c->Rip));
        access.Free();
        paging.Free();
    }

    [Fact]
    public void Breakpoints_AreFoundInTheState()
    {
        CpuState state = default;
        CpuState* c = &state;
        // DR0 executes at 1000h; DR1 watches writes of 4 bytes at 2000h; DR2 watches a port, which CR4.DE allows.
        (c->Dr0, c->Dr1, c->Dr2) = (0x1000, 0x2000, 0x3f8);
        c->Dr7 = 0b_0011_1111 | 0b_1101UL << 20 | 0b_0010UL << 24;
        c->Cr4 = Cr4.DE;
        Assert.True(Breakpoints.Recompute(c));
        Assert.Equal((2, 1, 4), ((int)c->DataBreakpoints, (int)c->CodeBreakpoints, (int)c->PortBreakpoints));
        Assert.Equal(1, Breakpoints.CodeAt(c, 0x1000));
        Assert.True(Breakpoints.HasData(c, 0x2000));
        Breakpoints.Observed(c, 0x1ffe, 4, false, null);
        Assert.Equal(0, c->PendingDebug);
        Breakpoints.Observed(c, 0x1ffe, 4, true, null);
        Breakpoints.NotePort(c, 0x3f8, 1);
        Assert.Equal(2UL | 4, DebugTraps.Take(c));
        Assert.Equal(0, c->PendingDebug);
        Breakpoints.UpdateStep(c);
        Assert.Equal((byte)StepReason.Breakpoints, c->StepMode);
    }

    [Fact]
    public void RandomSource_RepeatsItselfFromASeed()
    {
        RandomSource a = new(), b = new();
        a.Seed(7);
        b.Seed(7);
        ulong first = a.Next();
        Assert.Equal(first, b.Next());
        Assert.NotEqual(first, a.Next());
    }
}
