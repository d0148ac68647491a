using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu.Tests.Vec;

/// <summary>Runs against the same instructions one by one: results, flags, MXCSR, memory, and the place of a fault.</summary>
public unsafe class VectorRunTests
{
    private readonly VectorMachine _m = new();
    private readonly Random _random = new(99);
    private readonly NativeState* _before, _one, _run;
    private readonly List<Code> _codes = [];

    public VectorRunTests()
    {
        byte* b = HostMemory.Map(3 * 4096);
        _before = (NativeState*)b;
        _one = (NativeState*)(b + 4096);
        _run = (NativeState*)(b + 8192);
        foreach (Code code in Enum.GetValues<Code>())
            if (VectorTableTests.IsVectorCode(code) && Fusable(code))
                _codes.Add(code);
    }

    private static readonly Code[] s_integer =
    [
        Code.Mov_r64_rm64, Code.Mov_r32_rm32, Code.Mov_rm64_r64, Code.Mov_rm32_r32, Code.Mov_rm16_r16, Code.Mov_rm8_r8, Code.Movzx_r32_rm8, Code.Movzx_r32_rm16,
            Code.Movsxd_r64_rm32, Code.Lea_r64_m,
        Code.Lea_r32_m, Code.Add_rm64_r64, Code.Sub_rm32_r32, Code.Xor_rm64_r64, Code.And_rm32_r32, Code.Or_rm64_r64, Code.Add_rm64_imm8, Code.Sub_rm64_imm32,
            Code.Add_rm32_imm8, Code.And_rm32_imm32,
        Code.Shl_rm64_imm8, Code.Shr_rm32_imm8, Code.Shl_rm32_imm8, Code.Mov_r64_imm64, Code.Mov_r32_imm32, Code.Nopd,
    ];

    private static bool IsAlu(Code code)
        => code.Mnemonic() is Mnemonic.Add or Mnemonic.Sub or Mnemonic.Xor or Mnemonic.Or or Mnemonic.And or Mnemonic.Shl or Mnemonic.Shr;

    private static bool Fusable(Code code)
    {
        Op op = default;
        op.Code = (ushort)code;
        OpCodeInfo info = code.ToOpCode();
        for (int i = 0; i < info.OpCount; i++)
            if (info.GetOpKind(i).ToString().StartsWith("mm", StringComparison.Ordinal))
                return false;
        return VectorHandlers.CanFuse(&op);
    }

    /// <summary>Executes ops 0..count-1 as the loop does. Returns the index of the op that faulted, or count.</summary>
    private int Loop(Op* ops, int count)
    {
        int i = 0;
        while (i < count)
        {
            OpResult r = ops[i].Handler(_m.P, _m.C, ops + i);
            if (r == OpResult.Skip)
                i += (int)_m.C->SkipOps;
            else if (r == OpResult.Next)
                i++;
            else
                return i;
        }
        return i;
    }

    private Instruction Compose(Code code)
    {
        OpCodeInfo info = code.ToOpCode();
        Instruction instruction = new() { Code = code };
        bool memory = _random.Next(2) == 0;
        for (int i = 0; i < info.OpCount; i++)
        {
            string name = info.GetOpKind(i).ToString();
            int n = _random.Next(4) == 0 ? _random.Next(16) : _random.Next(4);
            if (name.StartsWith("imm", StringComparison.Ordinal))
            {
                instruction.SetOpKind(i, info.GetOpKind(i) switch
                {
                    OpCodeOperandKind.imm8 => Iced.Intel.OpKind.Immediate8,
                    OpCodeOperandKind.imm8sex32 => Iced.Intel.OpKind.Immediate8to32,
                    OpCodeOperandKind.imm8sex64 => Iced.Intel.OpKind.Immediate8to64,
                    OpCodeOperandKind.imm32sex64 => Iced.Intel.OpKind.Immediate32to64,
                    OpCodeOperandKind.imm64 => Iced.Intel.OpKind.Immediate64,
                    _ => Iced.Intel.OpKind.Immediate32,
                });
                instruction.SetImmediate(i, name == "imm64" ? (ulong)_random.NextInt64() : (ulong)_random.Next(16));
            }
            else if (name == "mem" || (memory && !IsAlu(code) && name.EndsWith("_or_mem", StringComparison.Ordinal)))
            {
                instruction.SetOpKind(i, Iced.Intel.OpKind.Memory);
                instruction.MemoryBase = _random.Next(3) switch { 0 => Register.RDI, 1 => Register.R8, _ => Register.RSI };
                instruction.MemoryDisplacement64 = (ulong)(long)(_random.Next(-8, 8) * 16);
                instruction.MemoryDisplSize = 8;
                if (_random.Next(3) == 0)
                {
                    instruction.MemoryIndex = Register.RCX;
                    instruction.MemoryIndexScale = 1 << _random.Next(4);
                }
            }
            else
            {
                instruction.SetOpKind(i, Iced.Intel.OpKind.Register);
                instruction.SetOpRegister(i, name[..3] switch
                {
                    "xmm" => Register.XMM0 + n,
                    "ymm" => Register.YMM0 + n,
                    "r8_" => Register.R9L + (n & 3),
                    "r16" => Register.R9W + (n & 3),
                    "r32" => Register.R9D + (n & 3),
                    _ => Register.R9 + (n & 3),
                });
            }
        }
        return instruction;
    }

    private void Randomize()
    {
        for (int i = 0; i < 64; i++)
            ((ulong*)_before->Ymm)[i] = _random.Next(3) switch { 0 => BitConverter.DoubleToUInt64Bits((_random.NextDouble() - 0.5) * 1000), 1 =>
                (ulong)_random.NextInt64(), _ => BitConverter.SingleToUInt32Bits(_random.NextSingle()) * 0x1_0000_0001UL };
        for (int i = 0; i < 16; i++)
            _before->Gpr[i] = (ulong)_random.NextInt64();
        _before->Gpr[7] = (ulong)(_m.Window + 4096 + _random.Next(16) * 32);
        _before->Gpr[8] = (ulong)(_m.Window + 6000 / 32 * 32);
        _before->Gpr[6] = (ulong)(_m.Window + 8192 - _random.Next(4) * 32);
        _before->Gpr[1] = (ulong)_random.Next(8) * 16;
        _before->Flags = 0x202 | ((ulong)_random.Next() & Rflags.Status);
        _before->Mxcsr = 0x1f80 | (uint)_random.Next(64) | (_random.Next(4) != 0 ? 0x20u : 0) | (_random.Next(8) == 0 ? 0x2000u : 0);
        new Span<byte>(_before->Fx, 512).Clear();
        *(ushort*)_before->Fx = 0x37f;
    }

    /// <summary>Another processor may store to the same place behind the run's own store: that must not come a second time.</summary>
    [Theory]
    [InlineData(Code.Movdqu_xmmm128_xmm, 0)]
    [InlineData(Code.Movdqu_xmmm128_xmm, 1)]
    [InlineData(Code.VEX_Vmovdqu_ymmm256_ymm, 1)]
    [InlineData(Code.Mov_rm64_r64, 1)]
    [InlineData(Code.Mov_rm8_r8, 2)]
    public void StoreThatMeetsCode_IsMadeOnce(Code store, int at)
    {
        Op* ops = (Op*)HostMemory.Map(4096);
        Instruction Store()
        {
            Instruction i = new() { Code = store, MemoryBase = Register.RDI, MemoryDisplSize = 8 };
            i.SetOpKind(0, Iced.Intel.OpKind.Memory);
            i.SetOpKind(1, Iced.Intel.OpKind.Register);
            i.SetOpRegister(1, store switch { Code.Mov_rm64_r64 => Register.R9, Code.Mov_rm8_r8 => Register.R9L, Code.Movdqu_xmmm128_xmm => Register.XMM1, _ =>
                Register.YMM1 });
            return i;
        }
        for (int i = 0; i < 4; i++)
        {
            ops[i] = _m.Decode(i == at ? Store() : Instruction.Create(Code.Pxor_xmm_xmmm128, Register.XMM2, Register.XMM3));
            ops[i].Offset = (ushort)(i * 8);
        }
        for (int i = 0; i < 30; i++)
        {
            Randomize();
            _m.LoadFrom(_before);
            Assert.Equal(4, Loop(ops, 4));
        }
        Randomize();
        _m.LoadFrom(_before);
        _m.MarkCode(ulong.MaxValue);
        Assert.Equal(OpResult.Skip, ops[0].Handler(_m.P, _m.C, ops));
        Assert.Equal(at + 1, _m.C->SkipOps);
        Assert.Equal(0, _m.C->OverwrittenBytes);
        Assert.Equal(store == Code.Mov_rm8_r8 ? (byte)_before->Gpr[9] : *(byte*)(store == Code.Mov_rm64_r64 ? (byte*)&_before->Gpr[9] : _before->Ymm + 32),
            *(byte*)_before->Gpr[7]);
        _m.MarkCode(0);
    }

    [Fact]
    public void RandomRuns_EqualSingleExecution()
    {
        Op* ops = (Op*)HostMemory.Map(64 * 1024);
        Op* single = ops + 64;
        Span<byte> window = new(_m.Window, VectorMachine.WindowBytes);
        int runs = 0, skipped = 0, faults = 0;
        for (int trial = 0; trial < 1500; trial++)
        {
            int count = 2 + _random.Next(8);
            List<Instruction> text = [];
            bool ignoreFlags = false;
            for (int i = 0; i < count; i++)
            {
                bool integer = _random.Next(3) == 0;
                text.Add(Compose(integer ? s_integer[_random.Next(s_integer.Length)] : _codes[_random.Next(_codes.Count)]));
                ops[i] = _m.Decode(text[i]);
                ops[i].Offset = (ushort)(i * 8);
                if (trial % 2 == 0 && Enum.TryParse(((OpKind)ops[i].Kind).ToString() + "Nf", out OpKind flagless))
                {
                    ops[i].Kind = (ushort)flagless;
                    ignoreFlags = true;
                }
                single[i] = ops[i];
                if (integer)
                    continue;
                VectorHandlers.Resolve(single + i);
                single[i].Handler = VectorForms.At(single[i].Aux)->Single;
            }
            ops[count] = default;
            // Warm up until the heads have tried to become runs.
            for (int i = 0; i < 30; i++)
            {
                Randomize();
                _m.LoadFrom(_before);
                for (int at = 0; at < count;)
                    at = Loop(ops + at, count - at) + at is var next && next == at ? at + 1 : next;
            }
            for (int i = 0; i < 4; i++)
            {
                Randomize();
                _random.NextBytes(window);
                bool unmapped = _random.Next(4) == 0;
                if (unmapped)
                {
                    ulong page = (ulong)_m.Window + 8192;
                    TlbEntry* e = _m.P.Paging.Level1 + Tlb.Index(page);
                    e->TagRead = e->TagWrite = Tlb.Invalid;
                }
                byte[] initial = window.ToArray();
                _m.LoadFrom(_before);
                int endOne = Loop(single, count);
                *_one = *_before;
                _m.StoreTo(_one);
                byte[] windowOne = window.ToArray();

                initial.CopyTo(window);
                _m.LoadFrom(_before);
                _m.C->SkipOps = 0;
                int endRun = Loop(ops, count);
                skipped += (int)_m.C->SkipOps;
                runs++;
                *_run = *_before;
                _m.StoreTo(_run);
                if (endOne != count)
                    faults++;
                string what = $"trial {trial}: {string.Join("; ", text)} mxcsr {_before->Mxcsr:x} unmapped {unmapped}";
                Assert.True(endOne == endRun, $"{what}: ended at {endOne} and {endRun}");
                Assert.True(window.SequenceEqual(windowOne), $"{what}: memory");
                for (int n = 0; n < 16; n++)
                {
                    Assert.True(new ReadOnlySpan<byte>(_one->Ymm + 32 * n, 32).SequenceEqual(new ReadOnlySpan<byte>(_run->Ymm + 32 * n, 32)),
                        $"{what}: ymm{n}");
                    Assert.True(_one->Gpr[n] == _run->Gpr[n], $"{what}: gpr{n}");
                }
                Assert.True(ignoreFlags || ((_one->Flags ^ _run->Flags) & Rflags.Status) == 0, $"{what}: flags");
                Assert.True(_one->Mxcsr == _run->Mxcsr, $"{what}: mxcsr {_one->Mxcsr:x} {_run->Mxcsr:x}");
                _m.MapWindow();
            }
        }
        Assert.True(skipped > runs, $"runs hardly happened: {skipped} ops skipped in {runs} executions, {faults} faults");
        Assert.True(faults > 100, "no faults were seen");
    }
}
