using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu.Tests.Vec;

/// <summary>Registers before and after an instruction, in the layout that the native stub uses.</summary>
internal unsafe struct NativeState
{
    public fixed byte Ymm[512];
    public fixed ulong Gpr[16];
    public ulong Flags;
    public ulong Mxcsr;
    public ulong Pad0, Pad1, Pad2, Pad3, Pad4, Pad5;
    /// <summary>FXSAVE64 image: x87 part in and out.</summary>
    public fixed byte Fx[512];

    public const int GprAt = 512, FlagsAt = 640, MxcsrAt = 648, FxAt = 704;
}

/// <summary>
/// Runs one instruction on the host with all vector, general-purpose (but RSP and RBP) and x87 registers set: the reference that shares nothing with
/// the thunks.
/// </summary>
internal sealed unsafe class NativeRun
{
    private const int ArenaBytes = 1 << 20;
    private ExecutableMemory _memory = new(ArenaBytes);

    private sealed class Sink : CodeWriter
    {
        public readonly List<byte> Bytes = [];
        public override void WriteByte(byte value) => Bytes.Add(value);
    }

    private static readonly Register[] s_gpr =
        [Register.RAX, Register.RCX, Register.RDX, Register.RBX, Register.RSP, Register.RBP, Register.RSI, Register.RDI,
         Register.R8, Register.R9, Register.R10, Register.R11, Register.R12, Register.R13, Register.R14, Register.R15];

    /// <summary>Executes <paramref name="instruction"/> on <paramref name="state"/>, a 64-byte aligned block.</summary>
    public void Execute(in Instruction instruction, NativeState* state)
    {
        Sink sink = new();
        Encoder e = Encoder.Create(64, sink);
        void Add(Instruction i) => e.Encode(i, (ulong)sink.Bytes.Count);
        static MemoryOperand At(Register r, int d) => new(r, d, 8);

        Register[] saved = [Register.RBX, Register.RBP, Register.R12, Register.R13, Register.R14, Register.R15];
        foreach (Register r in saved)
            Add(Instruction.Create(Code.Push_r64, r));
        Add(Instruction.Create(Code.Push_r64, Register.RDI));
        Add(Instruction.Create(Code.Fxrstor64_m512byte, At(Register.RDI, NativeState.FxAt)));
        Add(Instruction.Create(Code.Ldmxcsr_m32, At(Register.RDI, NativeState.MxcsrAt)));
        for (int i = 0; i < 16; i++)
            Add(Instruction.Create(Code.VEX_Vmovups_ymm_ymmm256, Register.YMM0 + i, At(Register.RDI, 32 * i)));
        Add(Instruction.Create(Code.Push_rm64, At(Register.RDI, NativeState.FlagsAt)));
        Add(Instruction.Create(Code.Popfq));
        for (int i = 0; i < 16; i++)
            if (i is not (4 or 5 or 7))
                Add(Instruction.Create(Code.Mov_r64_rm64, s_gpr[i], At(Register.RDI, NativeState.GprAt + 8 * i)));
        Add(Instruction.Create(Code.Mov_r64_rm64, Register.RDI, At(Register.RDI, NativeState.GprAt + 56)));
        Add(instruction);
        Add(Instruction.Create(Code.Pushfq));
        Add(Instruction.Create(Code.Push_r64, Register.RDI));
        Add(Instruction.Create(Code.Mov_r64_rm64, Register.RDI, At(Register.RSP, 16)));
        for (int i = 0; i < 16; i++)
            if (i is not (4 or 5 or 7))
                Add(Instruction.Create(Code.Mov_rm64_r64, At(Register.RDI, NativeState.GprAt + 8 * i), s_gpr[i]));
        Add(Instruction.Create(Code.Pop_rm64, At(Register.RDI, NativeState.GprAt + 56)));
        Add(Instruction.Create(Code.Pop_rm64, At(Register.RDI, NativeState.FlagsAt)));
        for (int i = 0; i < 16; i++)
            Add(Instruction.Create(Code.VEX_Vmovups_ymmm256_ymm, At(Register.RDI, 32 * i), Register.YMM0 + i));
        Add(Instruction.Create(Code.Stmxcsr_m32, At(Register.RDI, NativeState.MxcsrAt)));
        Add(Instruction.Create(Code.Fxsave64_m512byte, At(Register.RDI, NativeState.FxAt)));
        Add(Instruction.Create(Code.Fninit));
        Add(Instruction.Create(Code.Mov_rm32_imm32, At(Register.RDI, NativeState.MxcsrAt + 4), 0x1f80));
        Add(Instruction.Create(Code.Ldmxcsr_m32, At(Register.RDI, NativeState.MxcsrAt + 4)));
        Add(Instruction.Create(Code.VEX_Vzeroupper));
        Add(Instruction.Create(Code.Pop_r64, Register.RDI));
        for (int i = saved.Length - 1; i >= 0; i--)
            Add(Instruction.Create(Code.Pop_r64, saved[i]));
        Add(Instruction.Create(Code.Retnq));

        if (_memory.Free < (nuint)sink.Bytes.Count + 64)
        {
            _memory.Dispose();
            _memory = new(ArenaBytes);
        }
        nint entry = _memory.Add(sink.Bytes.ToArray());
        ((delegate* unmanaged<NativeState*, void>)entry)(state);
        state->Mxcsr = (uint)state->Mxcsr;
    }
}
