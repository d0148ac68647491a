using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu.Tests;

/// <summary>A processor with guest memory behind a nested table of 4 KiB pages, identity-mapped from guest-physical 0.</summary>
internal sealed unsafe class SysMachine : IDisposable
{
    public const int Pages = 4096;
    public readonly Machine Machine;
    public readonly LogicalProcessor P;
    public readonly CpuState* C;
    public readonly byte* Ram = HostMemory.Map(Pages * 4096);
    private readonly ulong* _nested = (ulong*)HostMemory.Map(16 * 4096);

    private readonly nint _guard;

    public SysMachine(ProcessorModel? model = null)
    {
        Machine = new Machine(model);
        _guard = FaultGuard.AddGuestMemory((ulong)Ram, (ulong)Ram + Pages * 4096);
        P = Machine.CreateProcessor();
        C = P.State;
        // Root, one level 3, one level 2, and a leaf table for each 2 MiB.
        _nested[0] = (ulong)(_nested + 512) | NestedPte.RWX;
        _nested[512] = (ulong)(_nested + 1024) | NestedPte.RWX;
        for (int t = 0; t < Pages / 512; t++)
            _nested[1024 + t] = (ulong)(_nested + 512 * (3 + t)) | NestedPte.RWX;
        for (ulong i = 0; i < Pages; i++)
            *NestedEntry(i << 12) = NestedLeaf(i << 12);
        C->NestedRoot = (ulong)_nested;
        C->Asid = 1;
    }

    public ulong* NestedEntry(ulong gpa) => _nested + 512 * 3 + (gpa >> 12);

    /// <summary>The entry that maps a page with every permission.</summary>
    public ulong NestedLeaf(ulong gpa) => (ulong)(Ram + (gpa & ~0xfffUL)) | NestedPte.RWX;

    public ref ulong At64(ulong gpa) => ref *(ulong*)(Ram + gpa);
    public ref uint At32(ulong gpa) => ref *(uint*)(Ram + gpa);
    public ref ushort At16(ulong gpa) => ref *(ushort*)(Ram + gpa);

    public void Write(ulong gpa, ReadOnlySpan<byte> bytes) => bytes.CopyTo(new Span<byte>(Ram + gpa, bytes.Length));

    public void Dispose()
    {
        Machine.Dispose();
        FaultGuard.RemoveGuestMemory(_guard);
        HostMemory.Unmap(Ram, Pages * 4096);
        HostMemory.Unmap(_nested, 16 * 4096);
    }
}
