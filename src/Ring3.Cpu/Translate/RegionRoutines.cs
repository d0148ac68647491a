using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>The two routines around translated code: entry from managed code, and the call back from a site.</summary>
/// <remarks>SAFETY: the routines save what the System V convention asks for and move guest registers between their homes and the state.</remarks>
internal static unsafe class RegionRoutines
{
    private static readonly ExecutableMemory s_memory = new(4096);

    /// <summary>enter(rdi = <see cref="HostRegisters.Base"/>, rsi = code). Returns when a call back said so; the state is complete.</summary>
    public static readonly delegate* unmanaged<byte*, nint, void> Enter;

    /// <summary>
    /// Jumped to with the site in <see cref="HostRegisters.Entry"/>: saves the guest's registers, calls CpuState.SlowCallback(state, site, address register),
    /// goes on where it says or returns from <see cref="Enter"/>.
    /// </summary>
    public static readonly nint Slow;

    private static readonly Register[] s_saved = [Register.RBX, Register.RBP, Register.R12, Register.R13, Register.R14, Register.R15];

    static RegionRoutines()
    {
        RegionAssembler a = new();
        foreach (Register r in s_saved)
            a.Add(Instruction.Create(Code.Push_r64, r));
        a.Move(HostRegisters.Base, Register.RDI);
        // A frame that no return is from.
        a.Add(Instruction.Create(Code.Pushq_imm8, -1));
        a.Immediate(Register.RAX, ReturnFrame.NoAddress);
        a.Add(Instruction.Create(Code.Push_r64, Register.RAX));
        a.Add(Instruction.Create(Code.Push_r64, Register.RAX));
        a.Store(StateLayout.FirstReturn, Register.RSP);
        a.Lea(Register.RAX, Register.RSP, -ReturnFrame.MaxCount * ReturnFrame.Bytes);
        a.Store(StateLayout.LastReturn, Register.RAX);
        a.Move(HostRegisters.Entry, Register.RSI);
        LoadGuest(a);
        a.Add(Instruction.Create(Code.Jmp_rm64, HostRegisters.Entry));
        Enter = (delegate* unmanaged<byte*, nint, void>)s_memory.Add(a.Bytes);
        a.Clear();
        for (int n = 0; n < 16; n++)
            if (HostRegisters.HomeOf(n) is var home && home != Register.None)
                a.Store(StateLayout.Gpr(n), home);
        SaveUnits(a);
        a.Lea(Register.RDI, HostRegisters.Base, -ProcessorMemory.StateBytes);
        a.Move(Register.RSI, HostRegisters.Entry);
        a.Move(Register.RDX, HostRegisters.Address);
        // The guest's RBX is in the state, and the callback keeps the register.
        a.Move(Register.RBX, Register.RSP);
        a.And64(Register.RSP, -16);
        a.Add(Instruction.Create(Code.Call_rm64, RegionAssembler.State(StateLayout.SlowCallback)));
        a.Move(Register.RSP, Register.RBX);
        a.Add(Instruction.Create(Code.Test_rm64_r64, Register.RAX, Register.RAX));
        int leave = a.Jump(4);
        a.Move(HostRegisters.Entry, Register.RAX);
        LoadUnits(a);
        LoadGuest(a);
        a.Add(Instruction.Create(Code.Jmp_rm64, HostRegisters.Entry));
        a.Bind(leave);
        a.Load(Register.RSP, StateLayout.FirstReturn);
        a.Lea(Register.RSP, Register.RSP, ReturnFrame.Bytes);
        for (int i = s_saved.Length - 1; i >= 0; i--)
            a.Add(Instruction.Create(Code.Pop_r64, s_saved[i]));
        a.Add(Instruction.Create(Code.Retnq));
        Slow = s_memory.Add(a.Bytes);
    }

    private const byte Zero = 4;

    /// <summary>Brings the state up to date with the units that <see cref="CpuState.Units"/> names, and gives the host's MXCSR back.</summary>
    private static void SaveUnits(RegionAssembler a)
    {
        int none = SkipUnless(a, Units.Sse | Units.Avx | Units.Mxcsr);
        int narrow = SkipUnless(a, Units.Avx);
        for (int n = 0; n < 16; n++)
            a.Add(Instruction.Create(Code.VEX_Vmovups_ymmm256_ymm, RegionAssembler.State(StateLayout.Ymm + 32 * n), Register.YMM0 + n));
        a.Add(Instruction.Create(Code.VEX_Vzeroupper));
        int wide = a.Jump();
        a.Bind(narrow);
        int untouched = SkipUnless(a, Units.Sse);
        for (int n = 0; n < 16; n++)
            a.Add(Instruction.Create(Code.Movups_xmmm128_xmm, RegionAssembler.State(StateLayout.Ymm + 32 * n), Register.XMM0 + n));
        a.Bind(untouched);
        a.Bind(wide);
        int masked = SkipUnless(a, Units.Mxcsr);
        a.Add(Instruction.Create(Code.Stmxcsr_m32, RegionAssembler.State(StateLayout.Mxcsr)));
        a.Add(Instruction.Create(Code.Ldmxcsr_m32, RegionAssembler.State(StateLayout.HostMxcsr)));
        a.Bind(masked);
        a.Bind(none);
    }

    /// <summary>
    /// Loads the units that <see cref="CpuState.Units"/> names. Where all upper halves are zero only the lower ones are loaded, so that legacy instructions
    /// have no upper halves to merge.
    /// </summary>
    private static void LoadUnits(RegionAssembler a)
    {
        int none = SkipUnless(a, Units.Sse | Units.Avx | Units.Mxcsr);
        int narrow = SkipUnless(a, Units.Avx);
        a.Add(Instruction.Create(Code.VEX_Vmovups_xmm_xmmm128, Register.XMM0, RegionAssembler.State(StateLayout.Ymm + 16)));
        for (int n = 1; n < 16; n++)
            a.Add(Instruction.Create(Code.VEX_Vorps_xmm_xmm_xmmm128, Register.XMM0, Register.XMM0, RegionAssembler.State(StateLayout.Ymm + 32 * n + 16)));
        a.Add(Instruction.Create(Code.VEX_Vptest_xmm_xmmm128, Register.XMM0, Register.XMM0));
        int clean = a.Jump(Zero);
        for (int n = 0; n < 16; n++)
            a.Add(Instruction.Create(Code.VEX_Vmovups_ymm_ymmm256, Register.YMM0 + n, RegionAssembler.State(StateLayout.Ymm + 32 * n)));
        int wide = a.Jump();
        a.Bind(narrow);
        int untouched = SkipUnless(a, Units.Sse);
        a.Bind(clean);
        for (int n = 0; n < 16; n++)
            a.Add(Instruction.Create(Code.VEX_Vmovups_xmm_xmmm128, Register.XMM0 + n, RegionAssembler.State(StateLayout.Ymm + 32 * n)));
        a.Bind(untouched);
        a.Bind(wide);
        int masked = SkipUnless(a, Units.Mxcsr);
        a.Add(Instruction.Create(Code.Ldmxcsr_m32, RegionAssembler.State(StateLayout.Mxcsr)));
        a.Bind(masked);
        a.Bind(none);
    }

    /// <summary>A jump that is taken when none of the units is the guest's.</summary>
    private static int SkipUnless(RegionAssembler a, Units units)
    {
        a.Add(Instruction.Create(Code.Test_rm8_imm8, RegionAssembler.State(StateLayout.Units), (uint)units));
        return a.Jump(Zero);
    }

    private static void LoadGuest(RegionAssembler a)
    {
        for (int n = 0; n < 16; n++)
            if (HostRegisters.HomeOf(n) is var home && home != Register.None)
                a.Load(home, StateLayout.Gpr(n));
    }
}
