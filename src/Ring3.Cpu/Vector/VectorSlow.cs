using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Floating-point forms whose MXCSR is not live: it is loaded, the form executed, and the status read by one emitted trampoline, so that no managed code runs
/// in between.
/// </summary>
/// <remarks>
/// SAFETY: the temporary is as large as the largest operand; the real destination of a form that may fault is written only when the instruction completes.
/// </remarks>
internal static unsafe class VectorSlow
{
    private const uint Invalid = 1, Denormal = 2, ZeroDivide = 4, Underflow = 16;

    /// <summary>What the trampoline works on.</summary>
    private struct Frame
    {
        public uint Control, Raised, Host, Pad;
        public nint Entry;
    }

    private static readonly delegate* unmanaged[SuppressGCTransition]<byte*, byte*, byte*, byte*, CpuState*, Frame*, ulong> s_trampoline = Emit();

    private static delegate* unmanaged[SuppressGCTransition]<byte*, byte*, byte*, byte*, CpuState*, Frame*, ulong> Emit()
    {
        ThunkAssembler a = new();
        a.Add(Instruction.Create(Code.Push_r64, Register.R9));
        a.Unary(Code.Ldmxcsr_m32, Register.R9);
        a.Unary(Code.Call_rm64, Register.R9, 16);
        a.Add(Instruction.Create(Code.Pop_r64, Register.R9));
        a.Unary(Code.Stmxcsr_m32, Register.R9, 4);
        a.Unary(Code.Ldmxcsr_m32, Register.R9, 8);
        a.Plain(Code.Retnq);
        int length = a.Position;
        nint entry = a.Finish();
        FaultGuard.SetTrampoline(entry, (nuint)length);
        return (delegate* unmanaged[SuppressGCTransition]<byte*, byte*, byte*, byte*, CpuState*, Frame*, ulong>)entry;
    }

    public static OpResult Execute(LogicalProcessor p, CpuState* c, VectorForm* f, byte* a0, byte* a1, byte* a2, byte* a3)
    {
        uint mxcsr = c->Mxcsr;
        if ((mxcsr & MxcsrUnit.MaskBits) != MxcsrUnit.MaskBits)
            return ExecuteUnmasked(p, c, f, a0, a1, a2, a3);
        ulong flags = Run(mxcsr, f, a0, a1, a2, a3, c, out uint raised);
        c->Mxcsr = mxcsr | raised;
        if ((f->Flags & VectorFormFlags.WritesFlags) != 0)
            Flags.SetStatus(c, flags);
        return OpResult.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static OpResult ExecuteUnmasked(LogicalProcessor p, CpuState* c, VectorForm* f, byte* a0, byte* a1, byte* a2, byte* a3)
    {
        uint mxcsr = c->Mxcsr, unmasked = MxcsrUnit.Unmasked(mxcsr);
        uint control = mxcsr & ~MxcsrUnit.StatusMask | MxcsrUnit.MaskBits;
        byte* result = stackalloc byte[64];
        CopyIn(f, a0, result);
        ulong zero = c->FlagsZero, sign = c->FlagsSign, carry = c->FlagsCarry;
        ulong flags = Run(control, f, result, a1, a2, a3, c, out uint raised);
        // An unmasked underflow is raised by every tiny result, a masked one only by inexact ones: flushing to zero reports the first.
        if ((unmasked & Underflow) != 0 && (raised & Underflow) == 0 && (IsHalf(f) ? HasHalfDenormal(f, result) : IsTiny(control, f, a0, a1, a2, a3, c)))
            raised |= Underflow;
        if ((raised & unmasked) != 0)
        {
            c->FlagsZero = zero;
            c->FlagsSign = sign;
            c->FlagsCarry = carry;
            return Raise(p, c, raised, unmasked);
        }
        c->Mxcsr = mxcsr | raised;
        Buffer.MemoryCopy(result, a0, 64, f->ResultSize);
        if ((f->Flags & VectorFormFlags.WritesFlags) != 0)
            Flags.SetStatus(c, flags);
        return OpResult.Next;
    }

    // A register destination may be a source too; a memory destination never is.
    private static void CopyIn(VectorForm* f, byte* a0, byte* to)
    {
        if ((f->Flags & VectorFormFlags.StoresMemory) == 0)
            Buffer.MemoryCopy(a0, to, 64, 32);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong Run(uint control, VectorForm* f, byte* a0, byte* a1, byte* a2, byte* a3, CpuState* c, out uint raised)
    {
        Frame frame;
        frame.Control = control & ~(MxcsrUnit.StatusMask | MxcsrUnit.Misaligned);
        frame.Host = MxcsrUnit.Default;
        frame.Entry = (nint)f->Entry;
        ulong flags = s_trampoline(a0, a1, a2, a3, c, &frame);
        raised = frame.Raised & MxcsrUnit.StatusMask;
        return flags;
    }

    private static bool IsHalf(VectorForm* f) => (Code)f->Code is Code.VEX_Vcvtps2ph_xmmm64_xmm_imm8 or Code.VEX_Vcvtps2ph_xmmm128_ymm_imm8;

    /// <summary>VCVTPS2PH takes no notice of FTZ: there, a tiny result is a denormal half.</summary>
    private static bool HasHalfDenormal(VectorForm* f, byte* result)
    {
        int count = (Code)f->Code == Code.VEX_Vcvtps2ph_xmmm64_xmm_imm8 ? 4 : 8;
        for (int i = 0; i < count; i++)
        {
            ushort half = ((ushort*)result)[i];
            if ((half & 0x7c00) == 0 && (half & 0x3ff) != 0)
                return true;
        }
        return false;
    }

    private static bool IsTiny(uint control, VectorForm* f, byte* a0, byte* a1, byte* a2, byte* a3, CpuState* c)
    {
        byte* scratch = stackalloc byte[64];
        CopyIn(f, a0, scratch);
        Run(control | MxcsrUnit.Ftz, f, scratch, a1, a2, a3, c, out uint raised);
        return (raised & Underflow) != 0;
    }

    /// <summary>
    /// #XM, or #UD when the system does not handle it. An unmasked exception of the operands prevents the computation, so that those of the result do not
    /// appear.
    /// </summary>
    private static OpResult Raise(LogicalProcessor p, CpuState* c, uint raised, uint unmasked)
    {
        const uint Operands = Invalid | Denormal | ZeroDivide;
        if ((raised & unmasked & Operands) != 0)
            raised &= Operands;
        c->Mxcsr |= raised;
        return Outcome.Raise(c, (c->Cr4 & Cr4.OSXMMEXCPT) != 0 ? Arch.Vector.XM : Arch.Vector.UD);
    }
}
