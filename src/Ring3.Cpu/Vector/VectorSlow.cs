using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Floating-point forms under control bits that managed code must not run with: other rounding, FTZ, DAZ, or unmasked exceptions.</summary>
/// <remarks>SAFETY: the temporary is as large as the largest operand; the real destination is written only when the instruction completes.</remarks>
internal static unsafe class VectorSlow
{
    private const uint Invalid = 1, Denormal = 2, ZeroDivide = 4, Underflow = 16;

    public static OpResult Execute(LogicalProcessor p, CpuState* c, VectorForm* f, byte* a0, byte* a1, byte* a2, byte* a3)
    {
        MxcsrUnit.Park(c);
        uint mxcsr = c->Mxcsr, unmasked = MxcsrUnit.Unmasked(mxcsr);
        uint control = mxcsr & ~MxcsrUnit.StatusMask | MxcsrUnit.MaskBits;
        int size = f->ResultSize;
        byte* result = stackalloc byte[64];
        CopyIn(f, a0, result);

        ulong flags = Run(control, f, result, a1, a2, a3, c, out uint raised);
        if (unmasked != 0)
        {
            // An unmasked underflow is raised by every tiny result, a masked one only by inexact ones: flushing to zero reports the first.
            if ((unmasked & Underflow) != 0 && (raised & Underflow) == 0 && IsTiny(mxcsr, f, a0, a1, a2, a3, c))
                raised |= Underflow;
            if ((raised & unmasked) != 0)
                return Raise(p, c, raised, unmasked);
        }
        c->Mxcsr = mxcsr | raised;
        Buffer.MemoryCopy(result, a0, 64, size);
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

    private static ulong Run(uint control, VectorForm* f, byte* a0, byte* a1, byte* a2, byte* a3, CpuState* c, out uint raised)
    {
        MxcsrUnit.LoadHost(control);
        ulong flags = f->Entry(a0, a1, a2, a3, c);
        raised = MxcsrUnit.ReadHost() & MxcsrUnit.StatusMask;
        MxcsrUnit.LoadHost(MxcsrUnit.Default);
        return flags;
    }

    private static bool IsTiny(uint mxcsr, VectorForm* f, byte* a0, byte* a1, byte* a2, byte* a3, CpuState* c)
    {
        byte* scratch = stackalloc byte[64];
        CopyIn(f, a0, scratch);
        Run(mxcsr & ~MxcsrUnit.StatusMask | MxcsrUnit.MaskBits | MxcsrUnit.Ftz, f, scratch, a1, a2, a3, c, out uint raised);
        return (raised & Underflow) != 0;
    }

    /// <summary>#XM, or #UD when the system does not handle it. An unmasked exception of the operands prevents the computation, so that those of the result do not appear.</summary>
    private static OpResult Raise(LogicalProcessor p, CpuState* c, uint raised, uint unmasked)
    {
        const uint Operands = Invalid | Denormal | ZeroDivide;
        if ((raised & unmasked & Operands) != 0)
            raised &= Operands;
        c->Mxcsr |= raised;
        return p.Raise(c, (c->Cr4 & Cr4.OSXMMEXCPT) != 0 ? Arch.Vector.XM : Arch.Vector.UD);
    }
}
