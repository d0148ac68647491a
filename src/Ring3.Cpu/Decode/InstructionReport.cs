using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>What the owner may want to know of the instruction at RIP: its bytes, and whether KVM's instruction emulator has it.</summary>
/// <remarks>SAFETY: reads host memory only through UserCopy; buffers are of the sizes given.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    private const int MaxInstruction = 15;

    /// <summary>Fills Exit.InstructionBytes with up to 15 bytes at RIP, as far as they are mapped, and Exit.InstructionLength with their number.</summary>
    public void ReportInstruction() => Exit->InstructionLength = (byte)PeekInstruction(Exit->InstructionBytes);

    /// <summary>
    /// Whether the instruction at RIP is one that works on memory here and that KVM does not emulate for MMIO: x87, MMX, SSE and AVX, except plain moves and
    /// the state images. For clients that asked to be told
    /// (KVM_CAP_EXIT_ON_EMULATION_FAILURE).
    /// </summary>
    public bool IsBeyondMmioEmulation()
    {
        byte[] bytes = new byte[MaxInstruction];
        fixed (byte* b = bytes)
            if (PeekInstruction(b) == 0)
                return false;
        int bits = State->BlockMode switch { BlockMode.Code64 => 64, BlockMode.Code32 => 32, _ => 16 };
        Decoder.Create(bits, bytes).Decode(out Instruction i);
        if (i.Encoding != EncodingKind.Legacy)
            return true;
        if (i.Mnemonic is Mnemonic.Movaps or Mnemonic.Movapd or Mnemonic.Movups or Mnemonic.Movupd or Mnemonic.Movdqa or Mnemonic.Movdqu or Mnemonic.Movntps
            or Mnemonic.Movntpd or Mnemonic.Movntdq or Mnemonic.Movntq
            or Mnemonic.Fxsave or Mnemonic.Fxsave64 or Mnemonic.Fxrstor or Mnemonic.Fxrstor64 or Mnemonic.Fnstcw or Mnemonic.Fnstsw)
            return false;
        if (i.Code is Code.Movq_mm_mmm64 or Code.Movq_mmm64_mm)
            return false;
        foreach (CpuidFeature f in i.Code.CpuidFeatures())
            if (f is CpuidFeature.FPU or CpuidFeature.FPU287 or CpuidFeature.FPU387 or CpuidFeature.MMX or CpuidFeature.SSE or CpuidFeature.SSE2
                or CpuidFeature.SSE3 or CpuidFeature.SSSE3 or CpuidFeature.SSE4_1
                or CpuidFeature.SSE4_2 or CpuidFeature.SSE4A or CpuidFeature.AES or CpuidFeature.PCLMULQDQ or CpuidFeature.SHA)
                return i.Code is not (Code.Crc32_r32_rm8 or Code.Crc32_r32_rm16 or Code.Crc32_r32_rm32 or Code.Crc32_r64_rm8 or Code.Crc32_r64_rm64
                    or Code.Movnti_m32_r32 or Code.Movnti_m64_r64);
        return false;
    }

    private int PeekInstruction(byte* destination)
    {
        CpuState* c = State;
        ulong linear = c->BlockMode == BlockMode.Code64 ? c->Rip : (uint)(c->Cs.Base + c->Rip);
        int n = 0;
        while (n < MaxInstruction)
        {
            if (!Paging.TranslateGva(linear + (ulong)n, out ulong gpa, out _, out _))
                break;
            byte* page = Paging.PeekNested(c, gpa);
            int run = Math.Min(MaxInstruction - n, 0x1000 - (int)(gpa & 0xfff));
            if (page == null || !UserCopy.TryRead((ulong)page + (gpa & 0xfff), destination + n, (nuint)run))
                break;
            n += run;
        }
        return n;
    }
}
