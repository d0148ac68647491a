using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Registration of the vector, MMX and x87 instructions.</summary>
/// <remarks>SAFETY: takes addresses of static methods only.</remarks>
internal static unsafe class VectorHandlers
{
    /// <summary>Features whose every legacy or VEX form runs through a thunk unless a handler of its own is registered.</summary>
    private static bool IsThunked(CpuidFeature feature) => feature switch
    {
        CpuidFeature.MMX or CpuidFeature.SSE or CpuidFeature.SSE2 or CpuidFeature.SSE3 or CpuidFeature.SSSE3 or CpuidFeature.SSE4_1 or CpuidFeature.SSE4_2
            or CpuidFeature.AVX or CpuidFeature.AVX2 or CpuidFeature.FMA or CpuidFeature.F16C or CpuidFeature.AES or CpuidFeature.PCLMULQDQ
                or CpuidFeature.SHA => true,
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
            {
                HandlerTable.Set(code, &First);
                s_hasForm[i] = true;
            }
        }
        VectorMoves.Register();
        VectorSpecial.Register();
        Sse4aHandlers.Register();
        StateInstructions.Register();
        X87Handlers.Register();
    }

    // Prefetches, fences, CRC32 and MOVNTI carry the same feature bits but have no vector operand.
    private static bool IsInteger(Mnemonic m)
        => m is Mnemonic.Prefetchnta or Mnemonic.Prefetcht0 or Mnemonic.Prefetcht1 or Mnemonic.Prefetcht2 or Mnemonic.Sfence or Mnemonic.Lfence
            or Mnemonic.Mfence
            or Mnemonic.Movnti or Mnemonic.Crc32;

    /// <summary>Handlers of moves, which need no thunk, by code; 0 for all others.</summary>
    private static readonly nint[] s_direct = new nint[HandlerTable.Count];

    /// <summary>Codes whose handler is <see cref="First"/>.</summary>
    private static readonly bool[] s_hasForm = new bool[HandlerTable.Count];

    /// <summary>Registers a handler that does not use the thunk of its form.</summary>
    internal static void SetDirect(Code code, delegate*<LogicalProcessor, CpuState*, Op*, OpResult> handler) => s_direct[(int)code] = (nint)handler;

    /// <summary>Registers a handler of an instruction that no thunk executes.</summary>
    internal static void SetSpecial(Code code, delegate*<LogicalProcessor, CpuState*, Op*, OpResult> handler)
    {
        HandlerTable.Set(code, handler);
        s_hasForm[(int)code] = false;
    }

    /// <summary>Whether an instruction is on the white list: its very form may be emitted.</summary>
    internal static bool HasForm(Code code) => s_hasForm[(int)code];

    /// <summary>
    /// First execution of an op: gives it its form and its own handler. Processors that share the block may do it at the same time; they write the same values.
    /// </summary>
    private static OpResult First(LogicalProcessor p, CpuState* c, Op* op)
    {
        VectorUnit.Park(c);
        Code code = (Code)op->Code;
        uint index = VectorForms.Get(code, VectorFacts.HasImmediate(code) ? (byte)op->Imm : (byte)0, (op->Flags & OpFlags.HasMemory) != 0);
        delegate*<LogicalProcessor, CpuState*, Op*, OpResult> handler = VectorForms.At(index)->Handler;
        Volatile.Write(ref op->Aux, index);
        Volatile.Write(ref *(nint*)&op->Handler, (nint)handler);
        return handler(p, c, op);
    }

    internal static delegate*<LogicalProcessor, CpuState*, Op*, OpResult> Choose(VectorForm* f)
    {
        if (s_direct[f->Code] != 0)
            return (delegate*<LogicalProcessor, CpuState*, Op*, OpResult>)s_direct[f->Code];
        bool fp = (f->Flags & VectorFormFlags.Fp) != 0;
        if ((f->Flags & VectorFormFlags.Mmx) != 0)
            return f->MemoryIndex == 255
                ? fp ? &MmxShapes<Yes>.Registers : &MmxShapes<No>.Registers
                : fp ? &MmxShapes<Yes>.Memory : &MmxShapes<No>.Memory;
        if ((f->Flags & VectorFormFlags.Vex) != 0)
            return fp ? Choose<AvxGate, Yes>(f) : Choose<AvxGate, No>(f);
        return fp ? Choose<SseGate, Yes>(f) : Choose<SseGate, No>(f);
    }

    private static delegate*<LogicalProcessor, CpuState*, Op*, OpResult> Choose<TGate, TFp>(VectorForm* f) where TGate : struct, IVectorGate where TFp
        : struct, IFlag
    {
        if ((f->Flags & VectorFormFlags.Mixed) != 0)
            return f->MemoryIndex == 255 ? &MixedShapes<TGate, TFp>.Registers : &MixedShapes<TGate, TFp>.Memory;
        return f->MemoryIndex switch
        {
            0 when (Code)f->Code == Code.VEX_Vcvtps2ph_xmmm64_xmm_imm8 => &VectorShapes<TGate, TFp>.StoreSpared,
            0 => &VectorShapes<TGate, TFp>.Store,
            1 when (Code)f->Code == Code.VEX_Vcvtph2ps_xmm_xmmm64 => &VectorShapes<TGate, TFp>.LoadSpared,
            1 when VectorFacts.IsSha(((Code)f->Code).Mnemonic()) => &VectorShapes<TGate, TFp>.LoadAnywhere,
            1 => &VectorShapes<TGate, TFp>.Load1,
            2 => &VectorShapes<TGate, TFp>.Load2,
            _ => &VectorShapes<TGate, TFp>.Registers,
        };
    }
}
