using Iced.Intel;
using Xunit;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>The encoder of host code against Iced's decoder: every code that it takes, with random operands, is decoded as the same instruction.</summary>
public sealed class HostEncoderTests
{
    private static readonly Register[] s_bytes = [.. Enumerable.Range((int)Register.AL, (int)Register.R15L - (int)Register.AL + 1).Select(n => (Register)n)];

    private static bool TryCompose(Random r, Code code, out Instruction i)
    {
        OpCodeInfo info = code.ToOpCode();
        i = new Instruction { Code = code };
        bool memory = r.Next(2) == 0;
        for (int n = 0; n < info.OpCount; n++)
        {
            string name = info.GetOpKind(n).ToString();
            if (name == "mem" || memory && name.EndsWith("_or_mem", StringComparison.Ordinal))
            {
                i.SetOpKind(n, Iced.Intel.OpKind.Memory);
                i.MemoryBase = Register.RAX + r.Next(16);
                if (r.Next(3) == 0 && Register.RAX + r.Next(16) is var index && index != Register.RSP)
                    (i.MemoryIndex, i.MemoryIndexScale) = (index, 1 << r.Next(4));
                int displacement = r.Next(4) switch { 0 => 0, 1 => r.Next(-128, 128), 2 => r.Next(-200, 200), _ => r.Next(int.MinValue, int.MaxValue) };
                i.MemoryDisplacement64 = (ulong)displacement;
                i.MemoryDisplSize = 8;
                continue;
            }
            Iced.Intel.OpKind? immediate = name switch
            {
                "imm8" => Iced.Intel.OpKind.Immediate8,
                "imm8_const_1" => Iced.Intel.OpKind.Immediate8,
                "imm8sex16" => Iced.Intel.OpKind.Immediate8to16,
                "imm8sex32" => Iced.Intel.OpKind.Immediate8to32,
                "imm8sex64" => Iced.Intel.OpKind.Immediate8to64,
                "imm16" => Iced.Intel.OpKind.Immediate16,
                "imm32" => Iced.Intel.OpKind.Immediate32,
                "imm32sex64" => Iced.Intel.OpKind.Immediate32to64,
                "imm64" => Iced.Intel.OpKind.Immediate64,
                _ => null,
            };
            if (immediate is { } kind)
            {
                i.SetOpKind(n, kind);
                long value = r.Next(2) == 0 ? r.Next(-128, 128) : r.NextInt64();
                if (name == "imm8_const_1")
                    i.Immediate8 = 1;
                else if (name == "imm8")
                    i.Immediate8 = (byte)value;
                else if (name is "imm8sex16")
                    i.Immediate8to16 = (sbyte)value;
                else if (name is "imm8sex32")
                    i.Immediate8to32 = (sbyte)value;
                else if (name is "imm8sex64")
                    i.Immediate8to64 = (sbyte)value;
                else if (name == "imm16")
                    i.Immediate16 = (ushort)value;
                else if (name == "imm32")
                    i.Immediate32 = (uint)value;
                else if (name == "imm32sex64")
                    i.Immediate32to64 = (int)value;
                else
                    i.Immediate64 = (ulong)value;
                continue;
            }
            Register? register = name.Split('_')[0] switch
            {
                "r8" => s_bytes[r.Next(s_bytes.Length)],
                "r16" => Register.AX + r.Next(16),
                "r32" => Register.EAX + r.Next(16),
                "r64" => Register.RAX + r.Next(16),
                "xmm" => Register.XMM0 + r.Next(16),
                "ymm" => Register.YMM0 + r.Next(16),
                "mm" => Register.MM0 + r.Next(8),
                "al" => Register.AL,
                "cl" => Register.CL,
                "ax" => Register.AX,
                "dx" => Register.DX,
                "eax" => Register.EAX,
                "rax" => Register.RAX,
                _ => null,
            };
            if (register is not { } x)
                return false;
            i.SetOpKind(n, Iced.Intel.OpKind.Register);
            i.SetOpRegister(n, x);
        }
        return true;
    }

    [Fact]
    public void WhatItEncodes_IsTheInstruction()
    {
        Random r = new(1);
        int taken = 0, compared = 0;
        byte[] bytes = new byte[2 * HostEncoder.MaxBytes];
        List<string> wrong = [];
        foreach (Code code in Enum.GetValues<Code>())
        {
            if (code == Code.INVALID || code.ToOpCode() is { Mode64: false } or { IsInstruction: false }
                || code.Mnemonic() is Mnemonic.Reservednop or Mnemonic.Rdudbg or Mnemonic.Wrudbg
                || code.ToString().StartsWith("VEX_KNC", StringComparison.Ordinal))
                continue;
            bool any = false;
            for (int round = 0; round < 60; round++)
            {
                if (!TryCompose(r, code, out Instruction i))
                    break;
                if (code.ToOpCode().CanUseLockPrefix && i.Op0Kind == Iced.Intel.OpKind.Memory && r.Next(2) == 0)
                    i.HasLockPrefix = true;
                int length = HostEncoder.Encode(i, bytes);
                if (length == 0)
                    continue;
                any = true;
                compared++;
                Decoder decoder = Decoder.Create(64, new ByteArrayCodeReader(bytes, 0, length));
                Instruction back = decoder.Decode();
                if (back.Length == length && back.Code == i.Code && Same(back, i))
                    continue;
                wrong.Add($"{code}: {i} became {back}, {Convert.ToHexString(bytes, 0, length)}");
                break;
            }
            taken += any ? 1 : 0;
        }
        Assert.True(wrong.Count == 0, string.Join('\n', wrong.Take(50)));
        Assert.True(taken > 1000, $"{taken} codes");
        Assert.True(compared > 20_000, $"{compared} instructions");
    }

    private static bool Same(in Instruction a, in Instruction b)
    {
        if (a.HasLockPrefix != b.HasLockPrefix || a.OpCount != b.OpCount)
            return false;
        for (int n = 0; n < a.OpCount; n++)
        {
            if (a.GetOpKind(n) != b.GetOpKind(n))
                return false;
            switch (a.GetOpKind(n))
            {
                case Iced.Intel.OpKind.Register:
                    if (a.GetOpRegister(n) != b.GetOpRegister(n))
                        return false;
                    break;
                case Iced.Intel.OpKind.Memory:
                    if (a.MemoryBase != b.MemoryBase || a.MemoryIndex != b.MemoryIndex || a.MemoryDisplacement64 != b.MemoryDisplacement64
                        || a.MemoryIndex != Register.None && a.MemoryIndexScale != b.MemoryIndexScale)
                        return false;
                    break;
                default:
                    if (a.GetImmediate(n) != b.GetImmediate(n))
                        return false;
                    break;
            }
        }
        return true;
    }

    /// <summary>The registers and forms that translated code is made of are not left to the slower one.</summary>
    [Fact]
    public void WhatTranslatedCodeIsMadeOf_IsEncodedHere()
    {
        byte[] bytes = new byte[2 * HostEncoder.MaxBytes];
        MemoryOperand m = new(Register.R14), s = new(Register.R15, Register.R11, 1, 16, 1);
        Instruction add = Instruction.Create(Code.Add_r64_rm64, Register.R14, s);
        Instruction[] all =
        [
            Instruction.Create(Code.Mov_r64_rm64, Register.R9, m), Instruction.Create(Code.Mov_rm8_r8, m, Register.SIL),
            add,
            Instruction.Create(Code.Jmp_rm64, new MemoryOperand(Register.R11)), Instruction.Create(Code.Mov_r64_imm64, Register.R11, ulong.MaxValue),
            Instruction.Create(Code.Call_rm64, new MemoryOperand(Register.R15, -300, 8)), Instruction.Create(Code.Lahf),
            Instruction.Create(Code.Shl_rm64_1, Register.RAX, 1),
            Instruction.Create(Code.Movups_xmm_xmmm128, Register.XMM9, m),
            Instruction.Create(Code.VEX_Vpaddd_ymm_ymm_ymmm256, Register.YMM9, Register.YMM1, Register.YMM14),
            Instruction.Create(Code.Cmpxchg_rm32_r32, m, Register.R9D), Instruction.Create(Code.Imul_r64_rm64_imm32, Register.RAX, m, 1000),
        ];
        foreach (Instruction i in all)
            Assert.True(HostEncoder.Encode(i, bytes) != 0, $"{i}");
        // ADD of a translation's addend has the length that the fault handler knows.
        Assert.Equal(5, HostEncoder.Encode(add, bytes));
    }
}
