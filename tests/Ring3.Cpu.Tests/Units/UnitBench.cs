using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu.Tests.Units;

/// <summary>
/// What units stand on, without a processor: a state in real mode with its exit block, an identity, a block cache, and 1 MiB of guest memory behind a nested
/// table. Its second MiB is a device.
/// </summary>
internal sealed unsafe class UnitBench : IDisposable
{
    public const ulong Size = 1 << 20, Device = Size;
    private const int TableBytes = 5 * 4096;

    public readonly CpuState* State = ProcessorMemory.Map();
    public readonly byte* Memory = HostMemory.Map((nuint)Size);
    public readonly Identity Identity = new(ProcessorModel.Host);
    public readonly BlockCache Blocks = new();
    private readonly ulong* _tables = (ulong*)HostMemory.Map(TableBytes);

    public UnitBench()
    {
        State->Exit = (ExitInfo*)HostMemory.Map((nuint)sizeof(ExitInfo));
        ulong* directory = _tables + 1024, leaves = _tables + 1536;
        _tables[0] = (ulong)(_tables + 512) | NestedPte.RWX;
        _tables[512] = (ulong)directory | NestedPte.RWX;
        directory[0] = (ulong)leaves | NestedPte.RWX;
        for (ulong page = 0; page < 256; page++)
            leaves[page] = (ulong)(Memory + (page << 12)) | NestedPte.RWX;
        for (ulong page = 256; page < 512; page++)
            leaves[page] = NestedPte.MmioValue;
        State->NestedRoot = (ulong)_tables;
        State->Asid = 1;
        State->Cr0 = Cr0.ET;
        State->Rflags = Rflags.Fixed1;
        for (int i = 0; i < 6; i++)
            *CpuState.SegmentAt(State, i) = new Segment { Limit = 0xffff, Access = i == SegmentIndex.CS ? 0x9bu : 0x93u };
        State->Idtr.Limit = 0x3ff;
    }

    public PagingUnit Paging() => new(State, Identity, Blocks);

    public void Dispose()
    {
        Blocks.Free();
        HostMemory.Unmap(State->Exit, (nuint)sizeof(ExitInfo));
        ProcessorMemory.Unmap(State);
        HostMemory.Unmap(Memory, (nuint)Size);
        HostMemory.Unmap(_tables, TableBytes);
    }
}
