using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu.Tests.Vec;

/// <summary>Unmasked floating-point exceptions: nothing is written, the status flags say what happened, and the right vector is raised.</summary>
public unsafe class UnmaskedTests
{
    private readonly VectorMachine _m = new();

    private OpResult RunScalar(Code code, double a, double b, uint mxcsr)
    {
        Instruction i = Instruction.Create(code, Register.XMM1, Register.XMM2);
        *(double*)(_m.C->Ymm + 32) = a;
        *(double*)(_m.C->Ymm + 64) = b;
        VectorUnit.Park(_m.C);
        _m.C->Mxcsr = mxcsr;
        Op op = _m.Decode(i);
        OpResult r = _m.Run(ref op);
        VectorUnit.Park(_m.C);
        return r;
    }

    [Theory]
    [InlineData(Code.Divsd_xmm_xmmm64, 1.0, 0.0, 4u)]
    [InlineData(Code.Divsd_xmm_xmmm64, 0.0, 0.0, 1u)]
    [InlineData(Code.Divsd_xmm_xmmm64, 1.0, 3.0, 32u)]
    [InlineData(Code.Mulsd_xmm_xmmm64, 1e300, 1e300, 8u | 32u)]
    [InlineData(Code.Mulsd_xmm_xmmm64, 1e-300, 1e-300, 16u | 32u)]
    [InlineData(Code.Mulsd_xmm_xmmm64, 2.2250738585072014E-308, 0.5, 16u)]
    [InlineData(Code.Addsd_xmm_xmmm64, 4.9e-324, 1.0, 2u)]
    public void Scalar_AllUnmasked_RaisesAndKeepsDestination(Code code, double a, double b, uint flags)
    {
        Assert.Equal(OpResult.Fault, RunScalar(code, a, b, 0));
        Assert.Equal(Arch.Vector.XM, _m.C->PendingVector);
        Assert.Equal(flags, _m.C->Mxcsr & 0x3f);
        Assert.Equal(a, *(double*)(_m.C->Ymm + 32));
    }

    [Fact]
    public void Scalar_OtherExceptionMasked_Completes()
    {
        Assert.Equal(OpResult.Next, RunScalar(Code.Divsd_xmm_xmmm64, 1.0, 3.0, 0x1f80 & ~(4u << 7)));
        Assert.Equal(1.0 / 3.0, *(double*)(_m.C->Ymm + 32));
        Assert.Equal(32u, _m.C->Mxcsr & 0x3f);
    }

    [Fact]
    public void Scalar_WithoutOsxmmexcpt_IsUndefinedOpcode()
    {
        _m.C->Cr4 &= ~Cr4.OSXMMEXCPT;
        Assert.Equal(OpResult.Fault, RunScalar(Code.Divsd_xmm_xmmm64, 1.0, 0.0, 0));
        Assert.Equal(Arch.Vector.UD, _m.C->PendingVector);
    }

    [Fact]
    public void X87_PendingException_IsRaisedByTheNextWaitingInstruction()
    {
        OpResult Run(Instruction i)
        {
            Op op = _m.Decode(i);
            return _m.Run(ref op);
        }
        *(ushort*)_m.Window = 0x340;
        _m.C->Gpr[7] = (ulong)_m.Window;
        Instruction fldcw = new() { Code = Code.Fldcw_m2byte, Op0Kind = Iced.Intel.OpKind.Memory, MemoryBase = Register.RDI };
        Assert.Equal(OpResult.Next, Run(Instruction.Create(Code.Fninit)));
        Assert.Equal(OpResult.Next, Run(fldcw));
        Assert.Equal(OpResult.Next, Run(Instruction.Create(Code.Fldz)));
        Assert.Equal(OpResult.Next, Run(Instruction.Create(Code.Fld1)));
        Assert.Equal(OpResult.Next, Run(Instruction.Create(Code.Fdiv_st0_sti, Register.ST0, Register.ST1)));
        Assert.NotEqual(0, _m.C->Fsw & X87Status.ES);
        Assert.Equal(0x0f1, _m.C->Fop);
        // Non-waiting instructions pass.
        Assert.Equal(OpResult.Next, Run(Instruction.Create(Code.Fnstsw_AX, Register.AX)));
        Assert.Equal(OpResult.Fault, Run(Instruction.Create(Code.Wait)));
        Assert.Equal(Arch.Vector.MF, _m.C->PendingVector);
        Assert.Equal(OpResult.Fault, Run(Instruction.Create(Code.Fld1)));
        Assert.Equal(OpResult.Fault, Run(Instruction.Create(Code.Emms)));
        Assert.Equal(Arch.Vector.MF, _m.C->PendingVector);
        Assert.Equal(OpResult.Next, Run(Instruction.Create(Code.Fnclex)));
        Assert.Equal(OpResult.Next, Run(Instruction.Create(Code.Wait)));
    }

    [Fact]
    public void MaskedStore_OverUnmappedPage_TouchesOnlySetElements()
    {
        // Window ends at an unmapped page: elements there are masked off.
        byte* end = _m.Window + VectorMachine.WindowBytes;
        _m.C->Gpr[7] = (ulong)(end - 8);
        for (int i = 0; i < 8; i++)
            ((uint*)(_m.C->Ymm + 96))[i] = i < 2 ? 0x80000000u : 0;
        Instruction store = new() { Code = Code.VEX_Vpmaskmovd_m256_ymm_ymm, Op0Kind = Iced.Intel.OpKind.Memory, MemoryBase = Register.RDI,
            Op1Register = Register.YMM3, Op2Register = Register.YMM4 };
        new Span<byte>(_m.C->Ymm + 128, 32).Fill(0x5a);
        Op op = _m.Decode(store);
        Assert.Equal(OpResult.Next, _m.Run(ref op));
        Assert.Equal(0x5a5a5a5a5a5a5a5aUL, *(ulong*)(end - 8));
    }

    [Fact]
    public void AlignedForm_Misaligned_IsGeneralProtection()
    {
        _m.C->Gpr[7] = (ulong)(_m.Window + 8);
        foreach (Code code in (Code[])[Code.Movaps_xmm_xmmm128, Code.Addps_xmm_xmmm128, Code.Pxor_xmm_xmmm128, Code.VEX_Vmovdqa_xmm_xmmm128])
        {
            Instruction load = new() { Code = code, Op0Register = Register.XMM3, Op1Kind = Iced.Intel.OpKind.Memory, MemoryBase = Register.RDI };
            Op op = _m.Decode(load);
            Assert.Equal(OpResult.Fault, _m.Run(ref op));
            Assert.Equal(Arch.Vector.GP, _m.C->PendingVector);
        }
        Instruction vex = new() { Code = Code.VEX_Vaddps_xmm_xmm_xmmm128, Op0Register = Register.XMM3, Op1Register = Register.XMM4,
            Op2Kind = Iced.Intel.OpKind.Memory, MemoryBase = Register.RDI };
        Op ok = _m.Decode(vex);
        Assert.Equal(OpResult.Next, _m.Run(ref ok));
    }
}
