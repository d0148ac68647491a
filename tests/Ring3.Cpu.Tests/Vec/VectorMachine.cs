using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu.Tests.Vec;

/// <summary>A processor in 64-bit mode with one window of memory that is mapped one to one, on which handlers are called directly.</summary>
internal sealed unsafe class VectorMachine
{
    public const int WindowBytes = 4 * 4096;
    public readonly LogicalProcessor P;
    public readonly CpuState* C;
    /// <summary>Window of memory: host and linear address are the same.</summary>
    public readonly byte* Window;
    private readonly ulong* _noCode;
    private readonly byte* _code;

    public VectorMachine()
    {
        P = new Machine().CreateProcessor();
        C = P.State;
        Window = HostMemory.Map(WindowBytes);
        _noCode = (ulong*)HostMemory.Map(4096);
        _code = HostMemory.Map(4096);
        C->Cr0 = Cr0.PE | Cr0.PG | Cr0.NE | Cr0.MP | Cr0.ET;
        C->Cr4 = Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.OSXSAVE;
        C->Efer = Efer.LMA | Efer.LME | Efer.SCE;
        C->Cs.Access = Segment.L | Segment.P | Segment.S | 0xb;
        C->Xcr0 = 7;
        C->Rflags = 2;
        C->BlockMode = BlockMode.Code64;
        C->TlbContext = 5;
        C->Mxcsr = 0x1f80;
        C->Fcw = 0x37f;
        MapWindow();
    }

    /// <summary>Enters the window's pages into the level-1 TLB.</summary>
    public void MapWindow()
    {
        for (int i = 0; i < WindowBytes; i += 4096)
        {
            ulong page = (ulong)(Window + i);
            TlbEntry* e = P.Paging.Level1 + Tlb.Index(page);
            e->TagRead = e->TagWrite = page | C->TlbContext;
            e->Addend = 0;
            e->CodeBits = _noCode;
        }
    }

    /// <summary>Which granules of the window's pages stores shall find to hold decoded code, as a bitmap.</summary>
    public void MarkCode(ulong granules) => *_noCode = granules;

    /// <summary>Encodes, decodes as a guest would, and returns the op.</summary>
    public Op Decode(in Instruction instruction)
    {
        byte[] bytes = Encode(instruction);
        Decoder d = Decoder.Create(64, bytes);
        d.IP = 0x1000;
        Instruction decoded = d.Decode();
        Op op;
        OpEncoder.Encode(&op, decoded, 0x1000, BlockMode.Code64);
        op.Length = (byte)bytes.Length;
        fixed (byte* first = bytes)
        {
            if (X87Handlers.HasOpcode(decoded.Code))
                op.Imm2 = X87Handlers.Opcode(first, bytes.Length);
        }
        C->BlockRip = 0x1000;
        return op;
    }

    private sealed class Sink : CodeWriter
    {
        public readonly List<byte> Bytes = [];
        public override void WriteByte(byte value) => Bytes.Add(value);
    }

    public static byte[] Encode(in Instruction instruction)
    {
        Sink sink = new();
        Encoder.Create(64, sink).Encode(instruction, 0x1000);
        return sink.Bytes.ToArray();
    }

    public OpResult Run(ref Op op)
    {
        fixed (Op* o = &op)
            return o->Handler(P, C, o);
    }

    public void LoadFrom(NativeState* s)
    {
        Buffer.MemoryCopy(s->Ymm, C->Ymm, 512, 512);
        for (int i = 0; i < 16; i++)
            C->Gpr[i] = s->Gpr[i];
        Flags.SetStatus(C, s->Flags);
        VectorUnit.Park(C);
        C->Mxcsr = (uint)s->Mxcsr;
        StateImage.LoadX87(C, s->Fx, true);
    }

    public void StoreTo(NativeState* s)
    {
        VectorUnit.Park(C);
        Buffer.MemoryCopy(C->Ymm, s->Ymm, 512, 512);
        for (int i = 0; i < 16; i++)
            s->Gpr[i] = C->Gpr[i];
        s->Flags = Flags.GetStatus(C);
        s->Mxcsr = C->Mxcsr;
        StateImage.StoreX87(C, s->Fx, true);
    }
}
