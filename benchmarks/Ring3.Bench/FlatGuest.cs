using System.Buffers.Binary;
using System.Text;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Host;

namespace Ring3.Bench;

/// <summary>One logical processor with 64 MiB of flat guest memory that runs a multiboot image to its debug exit. No hypervisor in between: the figure is the machine's own.</summary>
/// <remarks>SAFETY: guest memory and nested tables are mapped for the lifetime of the object.</remarks>
internal sealed unsafe class FlatGuest : IDisposable
{
    private const int MemorySize = 64 << 20, LeafTables = MemorySize >> 21;
    private const uint CommandLine = 0x7100, Information = 0x7000;

    private readonly Machine _machine = new();
    private readonly LogicalProcessor _processor;
    private readonly byte* _memory = HostMemory.Map(MemorySize);
    private readonly ulong* _tables = (ulong*)HostMemory.Map((3 + LeafTables) * 4096);

    internal FlatGuest(string image, long iterations)
    {
        const ulong flags = NestedPte.RWX | NestedPte.A | NestedPte.D;
        _tables[0] = (ulong)(_tables + 512) | flags;
        _tables[512] = (ulong)(_tables + 1024) | flags;
        for (int n = 0; n < LeafTables; n++)
            _tables[1024 + n] = (ulong)(_tables + 512 * (3 + n)) | flags;
        for (int n = 0; n < MemorySize >> 12; n++)
            _tables[512 * 3 + n] = (ulong)(_memory + n * 4096L) | flags;
        uint entry = LoadImage(File.ReadAllBytes(image));
        byte[] line = Encoding.ASCII.GetBytes($"bench {iterations}\0");
        line.CopyTo(new Span<byte>(_memory + CommandLine, line.Length));
        ((uint*)(_memory + Information))[0] = 4;
        ((uint*)(_memory + Information))[4] = CommandLine;
        _processor = _machine.CreateProcessor();
        Initialize(_processor.State, entry);
    }

    /// <summary>SPEC: Multiboot 0.6.96, "OS image format" (address fields).</summary>
    private uint LoadImage(byte[] image)
    {
        for (int at = 0; at + 32 <= Math.Min(image.Length, 8192); at += 4)
        {
            uint Field(int n) => BinaryPrimitives.ReadUInt32LittleEndian(image.AsSpan(at + 4 * n));
            if (Field(0) != 0x1badb002)
                continue;
            uint load = Field(4);
            image.AsSpan().CopyTo(new Span<byte>(_memory + load, MemorySize - (int)load));
            return Field(7);
        }
        throw new InvalidDataException("no multiboot header");
    }

    private void Initialize(CpuState* c, uint entry)
    {
        _processor.Reset(false);
        const uint present = Segment.S | Segment.P | Segment.DB | Segment.G;
        c->Cs = new Segment { Selector = 8, Limit = uint.MaxValue, Access = 0xb | present };
        c->Ds = c->Es = c->Ss = c->Fs = c->Gs = new Segment { Selector = 16, Limit = uint.MaxValue, Access = 0x3 | present };
        c->Cr0 = Cr0.PE | Cr0.ET;
        c->Gpr[0] = 0x2badb002;
        c->Gpr[3] = Information;
        c->Rip = entry;
        c->NestedRoot = (ulong)_tables;
        c->Asid = 1;
        _processor.RecomputeMode();
        _processor.FlushAll();
    }

    /// <summary>Runs to the debug exit. Returns the number of instructions retired.</summary>
    internal ulong Run()
    {
        CpuState* c = _processor.State;
        for (; ; )
        {
            ExitReason reason = _processor.Enter();
            if (reason == ExitReason.Io && _processor.Exit->Port == 0xf4)
                return _processor.Exit->Data[0] == 0x10 ? c->InstructionsRetired : throw new InvalidOperationException($"the guest failed with status {_processor.Exit->Data[0]:x}");
            if (reason != ExitReason.Request)
                throw new InvalidOperationException($"unexpected exit {reason}, rip={c->Rip:x} gpa={_processor.Exit->Gpa:x} vector={_processor.Exit->Vector}");
        }
    }

    public void Dispose()
    {
        _machine.Dispose();
        HostMemory.Unmap(_memory, MemorySize);
        HostMemory.Unmap(_tables, (3 + LeafTables) * 4096);
    }
}
