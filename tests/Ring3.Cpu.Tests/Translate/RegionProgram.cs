using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Random programs in translated code, against the same instruction by instruction.</summary>
internal static unsafe class RegionProgram
{
    /// <summary>A loop of three rounds with a branch over its last instruction, and HLT.</summary>
    /// <param name="count">Instructions before the branch.</param>
    /// <param name="emit">One of them.</param>
    /// <param name="skipped">The one behind the branch.</param>
    public static byte[] Assemble(int count, Action<Assembler> emit, Action<Assembler> skipped) => CoreSmokeTests.Assemble(64, a =>
    {
        Label again = a.CreateLabel(), over = a.CreateLabel();
        a.mov(r15d, 3);
        a.Label(ref again);
        for (int n = count; n > 0; n--)
            emit(a);
        a.ja(over);
        skipped(a);
        a.Label(ref over);
        a.dec(r15d);
        a.jnz(again);
        a.hlt();
    });

    /// <summary>Runs both to their exits, which must be the same.</summary>
    public static ExitReason Run(CpuHarness fast, CpuHarness slow, int seed)
    {
        slow.State->HostSingleStep = 1;
        ExitReason expected, reason = fast.Run();
        while ((expected = slow.Run()) == ExitReason.SingleStep)
        { }
        Assert.True(reason == expected, $"seed {seed}: {reason} at {fast.State->Rip:x}, singly {expected} at {slow.State->Rip:x}");
        if (reason == ExitReason.Exception)
            Assert.Equal((slow.Exit->Vector, slow.Exit->ErrorCode, slow.Exit->Payload), (fast.Exit->Vector, fast.Exit->ErrorCode, fast.Exit->Payload));
        return reason;
    }

    /// <summary>General-purpose registers, flags and the count of instructions.</summary>
    public static void Same(CpuHarness fast, CpuHarness slow, int seed)
    {
        CpuState* f = fast.State, s = slow.State;
        Assert.True(f->Rip == s->Rip, $"seed {seed}: RIP is {f->Rip:x}, singly {s->Rip:x}");
        for (int i = 0; i < 16; i++)
            Assert.True(f->Gpr[i] == s->Gpr[i], $"seed {seed}: register {i} is {f->Gpr[i]:x}, singly {s->Gpr[i]:x}");
        Assert.True(fast.RflagsValue == slow.RflagsValue, $"seed {seed}: flags are {fast.RflagsValue:x}, singly {slow.RflagsValue:x}");
        (ulong got, ulong singly) = (f->InstructionsRetired, s->InstructionsRetired);
        Assert.True(got == singly, $"seed {seed}: {got} instructions, singly {singly}");
    }
}
