using Iced.Intel;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>The same program in two machines: one translates everything before it first runs, the other executes instruction by instruction.</summary>
internal sealed unsafe class RegionMachine : IDisposable
{
    public const ulong Data = CpuHarness.DataAddress;
    private const int DataBytes = 0x4_0000;

    public readonly CpuHarness Fast, Slow;

    /// <summary>Flags that are compared: those that the program leaves defined.</summary>
    public ulong FlagMask = ulong.MaxValue;

    /// <summary>The second machine runs whole blocks, for programs in which a single step would be seen.</summary>
    public bool InBlocks;

    public RegionMachine(byte[] code, Action<CpuHarness>? prepare = null, int cpl = 0, ProcessorModel? model = null)
    {
        Fast = CpuHarness.Long(code, cpl, model: model, translate: true);
        Slow = CpuHarness.Long(code, cpl, model: model);
        Slow.Machine.TranslationThreshold = int.MaxValue;
        prepare?.Invoke(Fast);
        prepare?.Invoke(Slow);
    }

    public RegionMachine(Action<Assembler> program, Action<CpuHarness>? prepare = null, int cpl = 0) : this(CoreSmokeTests.Assemble(64, program), prepare,
        cpl) { }

    /// <summary>Random registers but RSP, and random data.</summary>
    public static void Fill(CpuHarness h, Random r)
    {
        for (int i = 0; i < 16; i++)
            h.State->Gpr[i] = (ulong)r.NextInt64() << 1;
        h.State->Gpr[4] = CpuHarness.StackTop;
        for (ulong i = 0; i < DataBytes; i += 8)
            h.Word(Data + i) = (ulong)r.NextInt64();
    }

    public ulong Translated => Fast.Cpu.Translator.Counters.Translated;

    /// <summary>Runs both to an exit, which must be the same, and compares everything.</summary>
    public ExitReason Run(string what)
    {
        ExitReason reason = Fast.Run(), singly = InBlocks ? Slow.Run() : Step(ulong.MaxValue);
        Assert.True(reason == singly, $"{what}: {reason} at {Fast.State->Rip:x}, singly {singly} at {Slow.State->Rip:x}");
        if (reason is ExitReason.Exception)
            Assert.Equal((Slow.Exit->Vector, Slow.Exit->ErrorCode, Slow.Exit->Payload), (Fast.Exit->Vector, Fast.Exit->ErrorCode, Fast.Exit->Payload));
        if (reason is ExitReason.NestedFault)
            Assert.Equal((Slow.Exit->Gpa, Slow.Exit->Gva, Slow.Exit->Access), (Fast.Exit->Gpa, Fast.Exit->Gva, Fast.Exit->Access));
        Compare(what);
        return reason;
    }

    /// <summary>
    /// Runs the translating machine to the first poll at which so many instructions have retired, brings the other there and compares. False: the
    /// program has ended before.
    /// </summary>
    public bool RunTo(ulong instructions, string what)
    {
        Fast.State->TimerDeadline = 1;
        Fast.Cpu.FirstTimerLook = instructions;
        ExitReason reason = Fast.Run();
        Fast.State->TimerDeadline = 0;
        ExitReason singly = Step(reason == ExitReason.Timer ? Fast.State->InstructionsRetired : ulong.MaxValue);
        Assert.True(reason == ExitReason.Timer ? singly == ExitReason.SingleStep : singly == reason, $"{what}: {reason}, singly {singly}");
        Compare(what);
        return reason == ExitReason.Timer;
    }

    private ExitReason Step(ulong until)
    {
        Slow.State->HostSingleStep = 1;
        ExitReason reason = ExitReason.SingleStep;
        while (Slow.State->InstructionsRetired < until && reason == ExitReason.SingleStep)
            reason = Slow.Run();
        return reason;
    }

    public void Compare(string what)
    {
        CpuState* f = Fast.State, s = Slow.State;
        Assert.True(f->Rip == s->Rip, $"{what}: RIP is {f->Rip:x}, singly {s->Rip:x}");
        for (int i = 0; i < 16; i++)
            Assert.True(f->Gpr[i] == s->Gpr[i], $"{what}: register {i} is {f->Gpr[i]:x}, singly {s->Gpr[i]:x}, at {f->Rip:x}");
        Assert.True(((Fast.RflagsValue ^ Slow.RflagsValue) & FlagMask) == 0,
            $"{what}: flags are {Fast.RflagsValue:x}, singly {Slow.RflagsValue:x}, at {f->Rip:x}");
        Assert.True(f->InstructionsRetired == s->InstructionsRetired,
            $"{what}: {f->InstructionsRetired} instructions, singly {s->InstructionsRetired}, at {f->Rip:x}");
        Assert.True(f->InterruptShadow == s->InterruptShadow, $"{what}: shadow {f->InterruptShadow}, singly {s->InterruptShadow}");
        Assert.True(new Span<byte>(f->Ymm, 512).SequenceEqual(new Span<byte>(s->Ymm, 512)), $"{what}: vector registers");
        Assert.True(Fast.Data(Data, DataBytes).SequenceEqual(Slow.Data(Data, DataBytes)), $"{what}: memory");
    }

    public void Dispose()
    {
        Fast.Dispose();
        Slow.Dispose();
    }
}
