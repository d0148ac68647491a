using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu.Tests.Vec;

/// <summary>
/// Loops of vector instructions in the run loop, against the same program in single steps: final state, memory, and the state at a nested fault in the
/// middle.
/// </summary>
public unsafe class VectorLoopTests
{
    private readonly Random _random = new(2024);
    private readonly Code[] _codes = [.. Enum.GetValues<Code>().Where(c => VectorTableTests.IsVectorCode(c) && IsLoopable(c))];

    private static bool IsLoopable(Code code)
    {
        OpCodeInfo info = code.ToOpCode();
        for (int i = 0; i < info.OpCount; i++)
            if (info.GetOpKind(i).ToString().StartsWith("mm", StringComparison.Ordinal))
                return false;
        // The string compares write RCX, which counts the rounds here.
        return VectorHandlers.HasForm(code) && !info.Mnemonic.ToString().Contains("str", StringComparison.OrdinalIgnoreCase);
    }

    private Instruction Compose(Code code)
    {
        OpCodeInfo info = code.ToOpCode();
        Instruction instruction = new() { Code = code };
        bool memory = _random.Next(2) == 0;
        for (int i = 0; i < info.OpCount; i++)
        {
            string name = info.GetOpKind(i).ToString();
            if (name == "imm8")
            {
                instruction.SetOpKind(i, Iced.Intel.OpKind.Immediate8);
                instruction.Immediate8 = (byte)_random.Next(16);
            }
            else if (name == "mem" || (memory && name.EndsWith("_or_mem", StringComparison.Ordinal)))
            {
                instruction.SetOpKind(i, Iced.Intel.OpKind.Memory);
                instruction.MemoryBase = Register.RSI;
                instruction.MemoryIndex = Register.RCX;
                instruction.MemoryDisplacement64 = (ulong)_random.Next(8) * 32;
                instruction.MemoryDisplSize = 8;
            }
            else
            {
                instruction.SetOpKind(i, Iced.Intel.OpKind.Register);
                int n = _random.Next(5);
                instruction.SetOpRegister(i, name[..3] switch
                {
                    "xmm" => Register.XMM0 + n,
                    "ymm" => Register.YMM0 + n,
                    "r32" => Register.R9D + (n & 3),
                    _ => Register.R9 + (n & 3),
                });
            }
        }
        return instruction;
    }

    private byte[] Program(int rounds, out string text)
    {
        List<byte> code = [];
        List<string> lines = [];
        int body = 1 + _random.Next(6), leading = _random.Next(3);
        for (int i = 0; i < leading; i++)
            code.AddRange(VectorMachine.Encode(Instruction.Create(Code.Mov_r64_rm64, Register.R10, Register.RCX)));
        for (int i = 0; i < body; i++)
        {
            Instruction instruction = Compose(_codes[_random.Next(_codes.Length)]);
            lines.Add(instruction.ToString());
            code.AddRange(VectorMachine.Encode(instruction));
        }
        code.AddRange([0x48, 0x83, 0xc1, 0x20]); // add rcx, 32
        code.AddRange(_random.Next(2) == 0 ? [0x48, 0x81, 0xf9] : (byte[])[0x81, 0xf9]); // cmp rcx or ecx, rounds * 32
        code.AddRange(BitConverter.GetBytes(rounds * 32));
        byte[] conditions = [0x85, 0x82, 0x8c];
        code.AddRange([0x0f, conditions[_random.Next(3)]]);
        code.AddRange(BitConverter.GetBytes(-(code.Count + 4)));
        code.Add(0xf4);
        text = string.Join("; ", lines);
        return [.. code];
    }

    private void Fill(CpuHarness h, int seed)
    {
        Random random = new(seed);
        for (int i = 0; i < 64; i++)
            ((ulong*)h.State->Ymm)[i] = BitConverter.DoubleToUInt64Bits((random.NextDouble() - 0.5) * 100);
        random.NextBytes(h.Data(CpuHarness.DataAddress, 0x20000));
        for (int i = 0; i < 16; i++)
            if (i != 4)
                h.State->Gpr[i] = (ulong)random.NextInt64();
        h.Rsi = CpuHarness.DataAddress + (ulong)random.Next(2) * 32;
        h.Rcx = 0;
        h.State->Mxcsr = 0x1f80u | (uint)random.Next(2) << 5;
    }

    private static ExitReason StepAll(CpuHarness h)
    {
        h.State->HostSingleStep = 1;
        ExitReason reason;
        do
            reason = h.Run();
        while (reason == ExitReason.SingleStep);
        return reason;
    }

    [Fact]
    public void RandomLoops_EqualSingleSteps()
    {
        for (int trial = 0; trial < 60; trial++)
        {
            int rounds = trial % 12 == 0 ? 2600 : 60 + _random.Next(100);
            byte[] program = Program(rounds, out string text);
            int seed = _random.Next();
            using CpuHarness fast = CpuHarness.Long(program), slow = CpuHarness.Long(program);
            // Rounds that warm the block up, then the one that counts from the start again.
            Fill(fast, seed);
            fast.RunToHlt();
            fast.State->Rip = CpuHarness.CodeAddress;
            Fill(fast, seed);
            Fill(slow, seed);
            bool fault = trial % 3 == 1;
            if (fault)
                foreach (CpuHarness h in (CpuHarness[])[fast, slow])
                {
                    h.NestedEntry(CpuHarness.DataAddress + 0x1000) = 0;
                    h.Cpu.FlushAll();
                }
            Flags.SetStatus(fast.State, 0x55);
            Flags.SetStatus(slow.State, 0x55);
            ulong before = fast.State->InstructionsRetired;
            ExitReason reason = fast.Run(), expected = StepAll(slow);
            string what = $"trial {trial}, {rounds} rounds: {text}";
            Assert.True(reason == expected, $"{what}: exit {reason}, in steps {expected}");
            Assert.True(fast.State->Rip == slow.State->Rip, $"{what}: rip");
            for (int i = 0; i < 16; i++)
            {
                Assert.True(fast.State->Gpr[i] == slow.State->Gpr[i], $"{what}: gpr{i} {fast.State->Gpr[i]:x} {slow.State->Gpr[i]:x}");
                Assert.True(new ReadOnlySpan<byte>(fast.State->Ymm + 32 * i, 32).SequenceEqual(new ReadOnlySpan<byte>(slow.State->Ymm + 32 * i, 32)),
                    $"{what}: ymm{i}");
            }
            Assert.True(fast.RflagsValue == slow.RflagsValue, $"{what}: flags {fast.RflagsValue:x} {slow.RflagsValue:x}");
            Assert.True(fast.State->Mxcsr == slow.State->Mxcsr, $"{what}: mxcsr");
            Assert.True(fast.Data(CpuHarness.DataAddress, 0x20000).SequenceEqual(slow.Data(CpuHarness.DataAddress, 0x20000)), $"{what}: memory");
            Assert.True(fast.State->InstructionsRetired - before == slow.State->InstructionsRetired,
                $"{what}: {fast.State->InstructionsRetired - before} retired, in steps {slow.State->InstructionsRetired}");
        }
    }

    [Fact]
    public void EndlessLoop_Kick_Leaves()
    {
        // paddd xmm0, xmm1; cmp rcx, 1; jne: never ends by itself.
        using CpuHarness h = CpuHarness.Long([0x66, 0x0f, 0xfe, 0xc1, 0x48, 0x81, 0xf9, 1, 0, 0, 0, 0x0f, 0x85, 0xef, 0xff, 0xff, 0xff, 0xf4]);
        h.Rcx = 0;
        using Timer timer = new(_ => h.Cpu.RequestExit(), null, 200, Timeout.Infinite);
        Assert.Equal(ExitReason.Request, h.Cpu.Enter());
        Assert.Equal(CpuHarness.CodeAddress, h.State->Rip);
    }
}
