using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Registration of the vector, MMX and x87 instructions.</summary>
internal static unsafe class VectorHandlers
{
    /// <summary>Features whose every legacy or VEX form runs through a thunk unless a handler of its own is registered.</summary>
    private static bool IsThunked(CpuidFeature feature) => feature switch
    {
        CpuidFeature.MMX or CpuidFeature.SSE or CpuidFeature.SSE2 or CpuidFeature.SSE3 or CpuidFeature.SSSE3 or CpuidFeature.SSE4_1 or CpuidFeature.SSE4_2
            or CpuidFeature.AVX or CpuidFeature.AVX2 or CpuidFeature.FMA or CpuidFeature.F16C or CpuidFeature.AES or CpuidFeature.PCLMULQDQ or CpuidFeature.SHA => true,
        CpuidFeature.VAES => VectorFeatures.Vaes,
        CpuidFeature.VPCLMULQDQ => VectorFeatures.Vpclmulqdq,
        CpuidFeature.GFNI => VectorFeatures.Gfni,
        _ => false,
    };

    /// <summary>Number of Iced's codes.</summary>
    internal static readonly int CodeCount = (int)Enum.GetValues<Code>()[^1] + 1;

    internal static void Register()
    {
        for (int i = 0; i < CodeCount; i++)
        {
            Code code = (Code)i;
            if (code.Encoding() is EncodingKind.Legacy or EncodingKind.VEX && Array.TrueForAll(code.CpuidFeatures(), IsThunked) && !IsInteger(code.Mnemonic()))
                HandlerTable.Set(code, &First);
        }
        VectorMoves.Register();
        VectorSpecial.Register();
        StateInstructions.Register();
        X87Handlers.Register();
    }

    // Prefetches, fences, CRC32 and MOVNTI carry the same feature bits but have no vector operand.
    private static bool IsInteger(Mnemonic m)
        => m is Mnemonic.Prefetchnta or Mnemonic.Prefetcht0 or Mnemonic.Prefetcht1 or Mnemonic.Prefetcht2 or Mnemonic.Sfence or Mnemonic.Lfence or Mnemonic.Mfence
            or Mnemonic.Movnti or Mnemonic.Crc32;

    /// <summary>First execution of an op: finds its form and replaces the handler. Processors that share the block may do it at the same time; they write the same values, Aux first.</summary>
    private static OpResult First(LogicalProcessor p, CpuState* c, Op* op)
    {
        VectorUnit.Park(c);
        Code code = (Code)op->Code;
        uint index = VectorForms.Get(code, VectorFacts.HasImmediate(code) ? (byte)op->Imm : (byte)0, (op->Flags & OpFlags.HasMemory) != 0);
        delegate*<LogicalProcessor, CpuState*, Op*, OpResult> handler = Choose(VectorForms.At(index));
        Volatile.Write(ref op->Aux, index);
        Volatile.Write(ref *(nint*)&op->Handler, (nint)handler);
        return handler(p, c, op);
    }

    private static delegate*<LogicalProcessor, CpuState*, Op*, OpResult> Choose(VectorForm* f)
    {
        bool fp = (f->Flags & VectorFormFlags.Fp) != 0;
        if ((f->Flags & VectorFormFlags.Mmx) != 0)
            return f->MemoryIndex == 255
                ? fp ? &MmxShapes<Yes>.Registers : &MmxShapes<No>.Registers
                : fp ? &MmxShapes<Yes>.Memory : &MmxShapes<No>.Memory;
        if ((f->Flags & VectorFormFlags.Vex) != 0)
            return fp ? Choose<AvxGate, Yes>(f) : Choose<AvxGate, No>(f);
        return fp ? Choose<SseGate, Yes>(f) : Choose<SseGate, No>(f);
    }

    private static delegate*<LogicalProcessor, CpuState*, Op*, OpResult> Choose<TGate, TFp>(VectorForm* f) where TGate : struct, IVectorGate where TFp : struct, IFlag
    {
        if ((f->Flags & VectorFormFlags.Mixed) != 0)
            return f->MemoryIndex == 255 ? &MixedShapes<TGate, TFp>.Registers : &MixedShapes<TGate, TFp>.Memory;
        return f->MemoryIndex switch
        {
            0 => &VectorShapes<TGate, TFp>.Store,
            1 => &VectorShapes<TGate, TFp>.Load1,
            2 => &VectorShapes<TGate, TFp>.Load2,
            _ => &VectorShapes<TGate, TFp>.Registers,
        };
    }
}
