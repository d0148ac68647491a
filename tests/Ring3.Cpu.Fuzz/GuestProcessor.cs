using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Differential;

/// <summary>
/// The machine side: one logical processor in 64-bit or compatibility mode or with 16-bit segments, at CPL 3, whose page tables map the sandbox at the
/// native side's addresses. Runs one instruction and reports like the native side.
/// </summary>
/// <remarks>SAFETY: table pages and data are mapped for the lifetime of the object; code is the cases' memory, which outlives it.</remarks>
internal sealed unsafe class GuestProcessor : IDisposable
{
    private const int TablePages = 16;
    private const ulong CodeGpa = 0x10_0000, DataGpa = 0x14_0000;

    private readonly CaseMemory _cases;
    private readonly Machine _machine;
    private readonly LogicalProcessor _processor;
    /// <summary>Nested tables, then the guest's tables, then the data pages and the image of their initial contents.</summary>
    private readonly byte* _memory;
    private readonly byte* _data, _image;
    private const int MemoryPages = TablePages + 2 * (Sandbox.DataSize / 4096);

    internal GuestProcessor(CaseMemory memory, int bits, ProcessorModel model, bool translate = false, bool limits = false)
    {
        _machine = new Machine(model);
        _machine.TranslationThreshold = translate ? 0 : int.MaxValue;
        _cases = memory;
        _memory = HostMemory.Map(MemoryPages * 4096);
        _data = _memory + TablePages * 4096;
        _image = _data + Sandbox.DataSize;
        BuildNestedTables();
        BuildGuestTables();
        _processor = _machine.CreateProcessor();
        Initialize(_processor.State, bits);
        if (limits && bits == 32)
            End(_processor.State);
    }

    /// <summary>Instructions that have retired, and those of them that did in translated code.</summary>
    internal (ulong Retired, ulong Translated) Progress => (_processor.State->InstructionsRetired, _processor.Translator.Counters.Translated);

    /// <summary>The machine implements this instruction as this model.</summary>
    internal static bool Supports(Code code, ProcessorModel model) =>
        HandlerTable.Get(code) != null && (model.IsAmd || !code.CpuidFeatures().Any(f => f is CpuidFeature.SSE4A or CpuidFeature.CLZERO));

    private ulong* Table(int page) => (ulong*)(_memory + page * 4096);

    /// <summary>Guest-physical 0..2 MiB: tables at 0x8000, code at 1 MiB, data behind it.</summary>
    private void BuildNestedTables()
    {
        const ulong flags = NestedPte.RWX | NestedPte.A | NestedPte.D;
        Table(0)[0] = (ulong)Table(1) | flags;
        Table(1)[0] = (ulong)Table(2) | flags;
        Table(2)[0] = (ulong)Table(3) | flags;
        ulong* leaves = Table(3);
        for (int n = 0; n < 8; n++)
            leaves[8 + n] = (ulong)Table(8 + n) | flags;
        for (int n = 0; n < Sandbox.CodeSize / 4096; n++)
            leaves[(int)(CodeGpa >> 12) + n] = ((ulong)_cases.Code + (ulong)n * 4096) | flags;
        for (int n = 0; n < Sandbox.DataSize / 4096; n++)
            leaves[(int)(DataGpa >> 12) + n] = ((ulong)_data + (ulong)n * 4096) | flags;
    }

    private void BuildGuestTables()
    {
        const ulong table = Pte.P | Pte.W | Pte.U | Pte.A;
        Table(8)[0] = 0x9000 | table;
        Table(9)[Sandbox.WindowStart >> 30] = 0xa000 | table;
        Table(10)[(Sandbox.WindowStart >> 21) & 511] = 0xb000 | table;
        ulong* leaves = Table(11);
        for (ulong n = 0; n < Sandbox.CodeSize / 4096; n++)
            leaves[((Sandbox.CodeAddress >> 12) & 511) + n] = (CodeGpa + n * 4096) | Pte.P | Pte.U | Pte.A;
        for (ulong n = 0; n < Sandbox.DataSize / 4096; n++)
            leaves[((Sandbox.DataAddress >> 12) & 511) + n] = (DataGpa + n * 4096) | Pte.P | Pte.U | Pte.A | Pte.NX | (n < Sandbox.DataWritable / 4096 ? Pte.W
                : 0);
    }

    private void Initialize(CpuState* c, int bits)
    {
        _processor.Reset(false);
        c->Cr0 = Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.PG;
        c->Cr4 = Cr4.PAE | Cr4.PGE | Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.OSXSAVE | Cr4.FSGSBASE | Cr4.UMIP;
        c->Efer = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE;
        c->Xcr0 = Xcr0.X87 | Xcr0.Sse | Xcr0.Avx;
        c->Cr3 = 0x8000;
        // The selectors that Linux gives a process.
        c->Cs = new Segment { Selector = 0x33, Limit = uint.MaxValue, Access = 0xb | Segment.S | Segment.DplMask | Segment.P | Segment.L | Segment.G };
        c->Ss = new Segment { Selector = 0x2b, Limit = uint.MaxValue, Access = 0x3 | Segment.S | Segment.DplMask | Segment.P | Segment.DB | Segment.G };
        c->Ds = c->Es = c->Fs = c->Gs = new Segment { Access = Segment.Unusable };
        if (bits == 32)
        {
            c->Cs.Selector = 0x23;
            c->Cs.Access = 0xb | Segment.S | Segment.DplMask | Segment.P | Segment.DB | Segment.G;
            c->Ds = c->Es = c->Ss;
        }
        if (bits == 16)
        {
            c->Cs.Limit = 0xffff;
            c->Cs.Access = 0xb | Segment.S | Segment.DplMask | Segment.P;
            c->Ss = c->Ds = c->Es = new Segment { Selector = (ushort)Sandbox.WordDataSelector, Base = Sandbox.WordDataBase, Limit = 0xffff, Access = 0x3
                | Segment.S | Segment.DplMask | Segment.P };
        }
        c->Gdtr = c->Idtr = default;
        c->Ldtr = new Segment { Access = Segment.Unusable };
        c->Tr = new Segment { Selector = 0x40, Limit = 0x67, Access = 0xb | Segment.P };
        c->Cpl = 3;
        c->NestedRoot = (ulong)Table(0);
        c->Asid = 1;
        c->ExceptionIntercepts = uint.MaxValue;
        _processor.RecomputeMode();
        _processor.FlushAll();
    }

    /// <summary>Segments that end behind the window.</summary>
    private void End(CpuState* c)
    {
        const uint limit = 0x5fff_ffff;
        c->Cs.Limit = c->Ss.Limit = c->Ds.Limit = c->Es.Limit = limit;
        _processor.RecomputeMode();
    }

    /// <summary>Code and data contents of the cases changed.</summary>
    internal void NextBatch()
    {
        Buffer.MemoryCopy(_cases.Data, _data, Sandbox.DataSize, Sandbox.DataSize);
        Buffer.MemoryCopy(_cases.Data, _image, Sandbox.DataSize, Sandbox.DataSize);
        _machine.CodeWritten(_cases.Code, Sandbox.CodeSize);
    }

    /// <summary>
    /// Runs the case. Stepped: one instruction through the host's single step. Otherwise the processor runs freely and stops at what follows the
    /// instruction: the jump to the native side's exit,
    /// whose target this guest does not map, or the bytes that a branch lands on.
    /// </summary>
    internal void Run(CaseInput* input, in CaseMeta meta, bool step, CaseOutput* output)
    {
        CpuState* c = _processor.State;
        Load(input, c);
        c->HostSingleStep = (byte)(step ? 1 : 0);
        if (input->PatchLength != 0)
        {
            Buffer.MemoryCopy(input->Patch, _data + input->PatchOffset, input->PatchLength, input->PatchLength);
            Buffer.MemoryCopy(input->Patch, _image + input->PatchOffset, input->PatchLength, input->PatchLength);
        }
        ExitReason reason = _processor.Enter();
        // A repeated string instruction may be stepped by iteration.
        for (int n = 0; reason == ExitReason.SingleStep && c->Rip == input->Rip && n < 4096; n++)
            reason = _processor.Enter();
        Save(reason, c, output);
        if (!step)
            NormalizeFree(input, meta, output);
        CollectDiffs(output);
        if (input->PatchLength != 0)
        {
            Buffer.MemoryCopy(_cases.Data + input->PatchOffset, _data + input->PatchOffset, input->PatchLength, input->PatchLength);
            Buffer.MemoryCopy(_cases.Data + input->PatchOffset, _image + input->PatchOffset, input->PatchLength, input->PatchLength);
        }
    }

    private void NormalizeFree(CaseInput* input, in CaseMeta meta, CaseOutput* o)
    {
        // 64-bit: the fetch at the exit's address. Otherwise: the far jump behind the instruction, which finds no descriptor.
        bool left = meta.Kind == CaseKind.Compare && (input->Bits == 64 ? o->Vector == Vector.PF && o->Rip == _cases.ExitAddress : o->Vector == Vector.GP
            && o->Rip == input->NextRip && o->ErrorCode != 0);
        if (!left)
        {
            // An intercepted INT3 leaves RIP at the instruction; natively it is behind it.
            if (o->Vector == Vector.BP && o->Rip != input->Rip)
                o->Rip++;
            Comparer.NormalizeNative(input, o);
            return;
        }
        o->Rip = input->NextRip;
        o->Vector = CaseOutput.NoVector;
        o->ErrorCode = 0;
        o->Cr2 = 0;
    }

    private void Load(CaseInput* s, CpuState* c)
    {
        if (s->Bits == 16)
        {
            c->Cs.Selector = (ushort)s->CodeSelector;
            c->Cs.Base = Sandbox.CodeAddress + (s->CodeSelector == Sandbox.WordCodeSelector1 ? 0x10000UL : 0);
            _processor.RecomputeMode();
        }
        for (int n = 0; n < 16; n++)
            c->Gpr[n] = s->Gpr[n];
        c->Rip = s->Rip;
        Flags.Set(c, s->Rflags & ~Rflags.TF);
        c->Fs.Base = s->FsBase;
        c->Gs.Base = s->GsBase;
        byte* x = s->Xsave;
        c->Mxcsr = Unsafe.ReadUnaligned<uint>(x + XsaveArea.Mxcsr);
        c->Fcw = Unsafe.ReadUnaligned<ushort>(x + XsaveArea.Fcw);
        c->Fsw = Unsafe.ReadUnaligned<ushort>(x + XsaveArea.Fsw);
        c->Ftw = x[XsaveArea.Ftw];
        c->Fop = Unsafe.ReadUnaligned<ushort>(x + XsaveArea.Fop);
        c->Fip = Unsafe.ReadUnaligned<ulong>(x + XsaveArea.Fip);
        c->Fdp = Unsafe.ReadUnaligned<ulong>(x + XsaveArea.Fdp);
        c->FipSelector = c->FdpSelector = 0;
        int top = (c->Fsw >> 11) & 7;
        for (int n = 0; n < 8; n++)
            Buffer.MemoryCopy(x + XsaveArea.St + 16 * n, c->X87 + 16 * ((top + n) & 7), 16, 16);
        for (int n = 0; n < 16; n++)
        {
            Buffer.MemoryCopy(x + XsaveArea.Xmm + 16 * n, c->Ymm + 32 * n, 16, 16);
            Buffer.MemoryCopy(x + XsaveArea.YmmHigh + 16 * n, c->Ymm + 32 * n + 16, 16, 16);
        }
        c->ExitRequest = 0;
        c->InterruptShadow = 0;
    }

    private void Save(ExitReason reason, CpuState* c, CaseOutput* o)
    {
        for (int n = 0; n < 16; n++)
            o->Gpr[n] = c->Gpr[n];
        o->Rip = c->Rip;
        o->Rflags = Flags.Get(c);
        o->FsBase = c->Fs.Base;
        o->GsBase = c->Gs.Base;
        o->Vector = CaseOutput.NoVector;
        o->ErrorCode = 0;
        o->Cr2 = 0;
        if (reason == ExitReason.Exception)
        {
            o->Vector = _processor.Exit->Vector;
            o->ErrorCode = _processor.Exit->ErrorCode;
            if (o->Vector == Vector.PF)
                o->Cr2 = _processor.Exit->Payload;
        }
        else if (reason != ExitReason.SingleStep)
        {
            o->Vector = 0x100 + (uint)reason;
        }
        byte* x = o->Xsave;
        Unsafe.WriteUnaligned(x + XsaveArea.Mxcsr, c->Mxcsr);
        Unsafe.WriteUnaligned(x + XsaveArea.Fcw, c->Fcw);
        Unsafe.WriteUnaligned(x + XsaveArea.Fsw, c->Fsw);
        x[XsaveArea.Ftw] = c->Ftw;
        Unsafe.WriteUnaligned(x + XsaveArea.Fop, c->Fop);
        Unsafe.WriteUnaligned(x + XsaveArea.Fip, c->Fip);
        Unsafe.WriteUnaligned(x + XsaveArea.Fdp, c->Fdp);
        int top = (c->Fsw >> 11) & 7;
        for (int n = 0; n < 8; n++)
            Buffer.MemoryCopy(c->X87 + 16 * ((top + n) & 7), x + XsaveArea.St + 16 * n, 16, 16);
        for (int n = 0; n < 16; n++)
        {
            Buffer.MemoryCopy(c->Ymm + 32 * n, x + XsaveArea.Xmm + 16 * n, 16, 16);
            Buffer.MemoryCopy(c->Ymm + 32 * n + 16, x + XsaveArea.YmmHigh + 16 * n, 16, 16);
        }
    }

    private void CollectDiffs(CaseOutput* o)
    {
        o->Diffs = 0;
        for (int line = 0; line < Sandbox.DataWritable / Sandbox.Line; line++)
        {
            byte* now = _data + line * Sandbox.Line;
            var live = new Span<byte>(now, Sandbox.Line);
            if (live.SequenceEqual(new ReadOnlySpan<byte>(_image + line * Sandbox.Line, Sandbox.Line)))
                continue;
            if (o->Diffs < Sandbox.MaxDiffs)
            {
                o->DiffLine[o->Diffs] = (uint)line;
                live.CopyTo(new Span<byte>(o->DiffBytes + o->Diffs * Sandbox.Line, Sandbox.Line));
            }
            o->Diffs++;
            new ReadOnlySpan<byte>(_cases.Data + line * Sandbox.Line, Sandbox.Line).CopyTo(live);
        }
    }

    public void Dispose()
    {
        _machine.Dispose();
        HostMemory.Unmap(_memory, MemoryPages * 4096);
    }
}
