using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu.Tests;

/// <summary>
/// A bare machine for tests: one processor, guest-physical memory in one host buffer mapped read-write-execute by a nested table, and for the paged
/// modes an identity-mapped guest page table at the top of it.
/// Exceptions leave the guest (ExceptionIntercepts is all ones), so no IDT is needed. HLT ends a run.
/// </summary>
internal sealed unsafe class CpuHarness : IDisposable
{
    public const ulong CodeAddress = 0x1_0000, StackTop = 0x8_0000, DataAddress = 0x10_0000;

    /// <summary>Top of guest memory less the room for page tables.</summary>
    public readonly ulong Size;
    public readonly byte* Memory;
    public readonly Machine Machine;
    public readonly LogicalProcessor Cpu;
    public readonly ulong* NestedTables;
    private readonly bool _ownsMachine;
    private readonly nuint _tableBytes;

    public CpuState* State => Cpu.State;
    public ExitInfo* Exit => Cpu.Exit;

    public ref ulong Rax => ref State->Gpr[0];
    public ref ulong Rcx => ref State->Gpr[1];
    public ref ulong Rdx => ref State->Gpr[2];
    public ref ulong Rbx => ref State->Gpr[3];
    public ref ulong Rsp => ref State->Gpr[4];
    public ref ulong Rbp => ref State->Gpr[5];
    public ref ulong Rsi => ref State->Gpr[6];
    public ref ulong Rdi => ref State->Gpr[7];
    public ulong RflagsValue
    {
        get => Flags.Get(State);
        set => Flags.Set(State, value);
    }

    private CpuHarness(ulong size, Machine? machine, byte* memory, ProcessorModel? model = null)
    {
        Size = size;
        Memory = memory != null ? memory : HostMemory.Map((nuint)size);
        _ownsMachine = machine == null;
        Machine = machine ?? new Machine(model);
        Cpu = Machine.CreateProcessor();
        ulong pages = size >> 12, leaves = (pages + 511) / 512;
        _tableBytes = (nuint)((3 + leaves) * 4096);
        NestedTables = (ulong*)HostMemory.Map(_tableBytes);
        ulong* pml4 = NestedTables, pdpt = pml4 + 512, pd = pdpt + 512, pt = pd + 512;
        pml4[0] = (ulong)pdpt | NestedPte.RWX;
        pdpt[0] = (ulong)pd | NestedPte.RWX;
        for (ulong i = 0; i < leaves; i++)
            pd[i] = (ulong)(pt + i * 512) | NestedPte.RWX;
        for (ulong i = 0; i < pages; i++)
            pt[i] = (ulong)(Memory + (i << 12)) | NestedPte.RWX;
        State->NestedRoot = (ulong)pml4;
        State->Asid = 1;
        State->ExceptionIntercepts = uint.MaxValue;
        State->Rflags = Rflags.Fixed1;
        State->Mxcsr = 0x1f80;
        State->Fcw = 0x37f;
        State->Xcr0 = Xcr0.X87 | Xcr0.Sse | Xcr0.Avx;
        State->Pat = 0x0007040600070406;
        State->Dr6 = Dr.Dr6Fixed1;
        State->Dr7 = Dr.Dr7Fixed1;
        State->TscMultiplier = 1UL << 48;
    }

    /// <summary>A processor in 64-bit mode with identity-mapped memory (2 MiB user pages), flat segments, CPL <paramref name="cpl"/>.</summary>
    public static CpuHarness Long(ReadOnlySpan<byte> code, int cpl = 0, ulong size = 16 << 20, Machine? machine = null, byte* memory = null,
        ProcessorModel? model = null, bool translate = false)
    {
        CpuHarness h = new(size, machine, memory, model);
        if (translate)
            h.Machine.TranslationThreshold = 0;
        CpuState* c = h.State;
        ulong root = size - 0x4000;
        ulong* tables = (ulong*)(h.Memory + root);
        const ulong table = Pte.P | Pte.W | Pte.U;
        tables[0] = root + 0x1000 | table;
        tables[512] = root + 0x2000 | table;
        for (ulong i = 0; i < size >> 21; i++)
            tables[1024 + i] = i << 21 | table | Pte.PS;
        c->Cr0 = Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.PG;
        c->Cr3 = root;
        c->Cr4 = Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.OSXSAVE | Cr4.FSGSBASE;
        c->Efer = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE;
        h.Segments(Segment.L, Segment.DB, cpl);
        return h.Finish(code);
    }

    /// <summary>A processor in flat 32-bit protected mode without paging.</summary>
    public static CpuHarness Protected32(ReadOnlySpan<byte> code, int cpl = 0, ulong size = 16 << 20, ProcessorModel? model = null, bool translate = false)
    {
        CpuHarness h = new(size, null, null, model);
        if (translate)
            h.Machine.TranslationThreshold = 0;
        h.State->Cr0 = Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE;
        h.State->Cr4 = Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.OSXSAVE;
        h.Segments(Segment.DB, Segment.DB, cpl);
        return h.Finish(code);
    }

    /// <summary>A processor in real mode; CS base is <see cref="CodeAddress"/>, the other bases 0, SP 0x8000.</summary>
    public static CpuHarness Real16(ReadOnlySpan<byte> code, ulong size = 16 << 20)
    {
        CpuHarness h = new(size, null, null);
        CpuState* c = h.State;
        c->Cr0 = Cr0.ET;
        for (int i = 0; i < 6; i++)
            *CpuState.SegmentAt(c, i) = new Segment { Limit = 0xffff, Access = i == SegmentIndex.CS ? 0x9bu : 0x93u };
        c->Cs.Base = CodeAddress;
        c->Cs.Selector = (ushort)(CodeAddress >> 4);
        c->Tr = new Segment { Access = 0x8b, Limit = 0xffff };
        c->Ldtr = new Segment { Access = 0x82, Limit = 0xffff };
        c->Idtr.Limit = 0x3ff;
        h.Write(CodeAddress, code);
        c->Rip = 0;
        c->Gpr[4] = 0x8000;
        h.Cpu.RecomputeMode();
        return h;
    }

    private void Segments(uint codeBits, uint dataBits, int cpl)
    {
        CpuState* c = State;
        uint dpl = (uint)cpl << 5;
        for (int i = 0; i < 6; i++)
            *CpuState.SegmentAt(c, i) = new Segment { Limit = uint.MaxValue, Access = 0x93 | dpl | dataBits | Segment.G, Selector = (ushort)(0x10 | cpl) };
        c->Cs = new Segment { Limit = uint.MaxValue, Access = 0x9b | dpl | codeBits | Segment.G, Selector = (ushort)(0x08 | cpl) };
        c->Tr = new Segment { Access = 0x8b, Limit = 0x67, Base = 0x2000, Selector = 0x40 };
        c->Ldtr = new Segment { Access = Segment.Unusable };
    }

    private CpuHarness Finish(ReadOnlySpan<byte> code)
    {
        Write(CodeAddress, code);
        State->Rip = CodeAddress;
        State->Gpr[4] = StackTop;
        Cpu.RecomputeMode();
        return this;
    }

    /// <summary>Writes guest-physical memory and drops code decoded from it.</summary>
    public void Write(ulong gpa, ReadOnlySpan<byte> bytes)
    {
        bytes.CopyTo(new Span<byte>(Memory + gpa, bytes.Length));
        Machine.CodeWritten(Memory + gpa, (nuint)bytes.Length);
    }

    public Span<byte> Data(ulong gpa, int bytes) => new(Memory + gpa, bytes);
    public ref ulong Word(ulong gpa) => ref *(ulong*)(Memory + gpa);

    /// <summary>Nested entry of a guest-physical page; flush the processor after a change.</summary>
    public ref ulong NestedEntry(ulong gpa) => ref NestedTables[3 * 512 + (gpa >> 12)];

    /// <summary>Runs until something other than a kick.</summary>
    public ExitReason Run()
    {
        for (; ; )
        {
            State->ExitRequest = 0;
            ExitReason reason = Cpu.Enter();
            if (reason != ExitReason.Request)
                return reason;
        }
    }

    /// <summary>Runs and fails unless HLT ended it.</summary>
    public void RunToHlt()
    {
        ExitReason reason = Run();
        if (reason != ExitReason.Hlt)
            throw new InvalidOperationException(reason == ExitReason.Exception
                ? $"exception {Exit->Vector} ({Exit->ErrorCode:x}, {Exit->Payload:x}) at {State->Rip:x}" : $"{reason} at {State->Rip:x}, gpa {Exit->Gpa:x}");
    }

    public void Dispose()
    {
        if (!_ownsMachine)
            return;
        Machine.Dispose();
        HostMemory.Unmap(Memory, (nuint)Size);
        HostMemory.Unmap(NestedTables, _tableBytes);
    }
}
