using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Vec;

/// <summary>
/// FIP, FOP and FDP with their selectors, as the models differ: on Intel's, FIP follows every instruction that is not one of control, FOP and FDP those
/// that raise an unmasked exception, and there are no selectors (as family 6 model 207 runs the same cases natively); on AMD's all of them follow every
/// instruction (SPEC: APM volume 1, "Pointers and Opcode State").
/// </summary>
public unsafe class X87PointerTests
{
    private const ulong Code = CpuHarness.CodeAddress, Data = CpuHarness.DataAddress;

    public static TheoryData<string, bool> Machines => new() { { "intel", false }, { "intel", true }, { "amd", false }, { "amd", true } };

    private static CpuHarness Run(string model, bool wide, Action<Assembler> program, ushort control = 0x37f)
    {
        Assert.True(ProcessorModel.TryParse(model, out ProcessorModel found));
        byte[] code = SysLongHarness.Assemble(wide ? 64 : 32, Code, a => { program(a); a.hlt(); });
        CpuHarness h = wide ? CpuHarness.Long(code, model: found) : CpuHarness.Protected32(code, model: found);
        CpuState* c = h.State;
        c->Fcw = control;
        c->Fip = 0x1111;
        c->Fdp = 0x2222;
        c->Fop = 0x333;
        h.Rbx = Data;
        h.RunToHlt();
        return h;
    }

    private static AssemblerMemoryOperand At(bool wide, int offset = 0) => wide ? __[rbx + offset] : __[ebx + offset];
    private static AssemblerMemoryOperand Word(bool wide) => wide ? __word_ptr[rbx] : __word_ptr[ebx];
    private static AssemblerMemoryOperand Dword(bool wide, int offset) => wide ? __dword_ptr[rbx + offset] : __dword_ptr[ebx + offset];
    private static AssemblerMemoryOperand Qword(bool wide) => wide ? __qword_ptr[rbx] : __qword_ptr[ebx];

    private static void Check(CpuHarness h, ulong fip, uint fop, ulong fdp) => Assert.Equal((fip, fop, fdp), (h.State->Fip, h.State->Fop, h.State->Fdp));

    [Theory]
    [MemberData(nameof(Machines))]
    public void Masked(string model, bool wide)
    {
        bool all = model == "amd";
        using CpuHarness registers = Run(model, wide, a => { a.fld1(); a.fldz(); });
        Check(registers, Code + 2, all ? 0x1eeu : 0x333, 0x2222);
        // FADD with an offset in the instruction: ModRM is part of the opcode.
        using CpuHarness memory = Run(model, wide, a => { a.fld1(); a.fadd(Dword(wide, 4)); });
        Check(memory, Code + 2, all ? 0x043u : 0x333, all ? Data + 4 : 0x2222);
        Assert.Equal(all && !wide ? (0x08, 0x10) : (0, 0), (memory.State->FipSelector, memory.State->FdpSelector));
    }

    /// <summary>1 / 0, unmasked: the pointers are the division's, whatever looks at them before WAIT.</summary>
    [Theory]
    [MemberData(nameof(Machines))]
    public void Unmasked(string model, bool wide)
    {
        using CpuHarness h = Run(model, wide, a => { a.fld1(); a.fdiv(Qword(wide)); a.fnstsw(ax); }, 0x37b);
        Check(h, Code + 2, 0x433, Data);
        Assert.Equal(model == "amd" && !wide ? (0x08, 0x10) : (0, 0), (h.State->FipSelector, h.State->FdpSelector));
    }

    /// <summary>Control, MMX and WAIT leave them alone; FNINIT clears them.</summary>
    [Theory]
    [MemberData(nameof(Machines))]
    public void OfControlInstructions(string model, bool wide)
    {
        using CpuHarness h = Run(model, wide, a =>
        {
            a.fnstcw(Word(wide));
            a.fldcw(Word(wide));
            a.fnclex();
            a.fnstsw(ax);
            a.wait();
            a.movd(mm0, eax);
            a.emms();
        });
        Check(h, 0x1111, 0x333, 0x2222);
        using CpuHarness initialised = Run(model, wide, a => { a.fld1(); a.fninit(); });
        Check(initialised, 0, 0, 0);
    }

    /// <summary>Images in memory: what they bring, and what of it the processor keeps.</summary>
    [Theory]
    [MemberData(nameof(Machines))]
    public void OfImages(string model, bool wide)
    {
        using CpuHarness h = Run(model, wide, a =>
        {
            a.mov(Dword(wide, 12), 0x8765_4321);
            a.mov(Dword(wide, 16), 0x0123_0008);
            a.mov(Dword(wide, 20), 0x1234_5678);
            a.mov(Dword(wide, 24), 0x10);
            a.fldenv(At(wide));
            a.fnstenv(At(wide, 32));
        });
        Check(h, 0x8765_4321, 0x123, 0x1234_5678);
        uint* stored = (uint*)(h.Memory + Data + 32);
        Assert.Equal(model == "amd" ? (0x0123_0008u, 0xffff_0010u) : (0x0123_0000u, 0xffff_0000u), (stored[4], stored[6]));
        // The short format has no opcode.
        using CpuHarness narrow = Run(model, wide, a => { a.db(0x66, 0xd9, 0x23); });
        Assert.Equal(0, narrow.State->Fop);
        if (!wide)
            return;
        // FXRSTOR64: Intel's FIP is canonical for 57 bits, FDP is what it is.
        using CpuHarness far = Run(model, wide, a =>
        {
            a.mov(rax, 0x1111_2222_3333_4444);
            a.mov(__qword_ptr[rbx + 8], rax);
            a.mov(__qword_ptr[rbx + 16], rax);
            a.db(0x48, 0x0f, 0xae, 0x0b);
        });
        Check(far, model == "amd" ? 0x1111_2222_3333_4444u : 0xff11_2222_3333_4444, 0, 0x1111_2222_3333_4444);
    }
}
