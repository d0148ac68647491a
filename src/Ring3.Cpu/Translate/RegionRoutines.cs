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
        a.Lea(Register.RSP, Register.RSP, -8);
        a.Move(HostRegisters.Base, Register.RDI);
        a.Move(HostRegisters.Entry, Register.RSI);
        LoadGuest(a);
        a.Add(Instruction.Create(Code.Jmp_rm64, HostRegisters.Entry));
        Enter = (delegate* unmanaged<byte*, nint, void>)s_memory.Add(a.Bytes);
        a.Clear();
        for (int n = 0; n < 16; n++)
            if (HostRegisters.HomeOf(n) is var home && home != Register.None)
                a.Store(StateLayout.Gpr(n), home);
        a.Lea(Register.RDI, HostRegisters.Base, -ProcessorMemory.StateBytes);
        a.Move(Register.RSI, HostRegisters.Entry);
        a.Move(Register.RDX, HostRegisters.Address);
        a.Add(Instruction.Create(Code.Call_rm64, RegionAssembler.State(StateLayout.SlowCallback)));
        a.Add(Instruction.Create(Code.Test_rm64_r64, Register.RAX, Register.RAX));
        int leave = a.Jump(4);
        a.Move(HostRegisters.Entry, Register.RAX);
        LoadGuest(a);
        a.Add(Instruction.Create(Code.Jmp_rm64, HostRegisters.Entry));
        a.Bind(leave);
        a.Lea(Register.RSP, Register.RSP, 8);
        for (int i = s_saved.Length - 1; i >= 0; i--)
            a.Add(Instruction.Create(Code.Pop_r64, s_saved[i]));
        a.Add(Instruction.Create(Code.Retnq));
        Slow = s_memory.Add(a.Bytes);
    }

    private static void LoadGuest(RegionAssembler a)
    {
        for (int n = 0; n < 16; n++)
            if (HostRegisters.HomeOf(n) is var home && home != Register.None)
                a.Load(home, StateLayout.Gpr(n));
    }
}
