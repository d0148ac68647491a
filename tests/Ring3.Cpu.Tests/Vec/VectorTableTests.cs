using System.Text;
using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu.Tests.Vec;

/// <summary>
/// Every registered vector form against the host: random operands with special floating-point values, all rounding modes, FTZ and DAZ; results, flags,
/// MXCSR and x87 state must agree bit for bit.
/// </summary>
public unsafe class VectorTableTests
{
    private readonly VectorMachine _m = new();
    private readonly NativeRun _native = new();
    private readonly Random _random = new(12345);
    private readonly NativeState* _before, _host, _guest;

    private static readonly ulong[] s_doubles =
        [0, 1UL << 63, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000001, 0x7ff0000000000001,
            0xfff4000000000000,
         1, 0x8000000000000001, 0x000fffffffffffff, 0x0010000000000000, 0x7fefffffffffffff, 0x43e0000000000000, 0x41dfffffffc00000, 0xc3e0000000000000,
             0x3fe0000000000000, 0x36a0000000000000];
    private static readonly uint[] s_singles =
        [0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00001, 0x7f800001, 0xffa00000, 1, 0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff,
            0x4f000000, 0x5f000000, 0x3f000000, 0xcf000001, 0x33800000];

    public VectorTableTests()
    {
        byte* b = HostMemory.Map(3 * 4096);
        _before = (NativeState*)b;
        _host = (NativeState*)(b + 4096);
        _guest = (NativeState*)(b + 8192);
    }

    internal static bool IsVectorCode(Code code)
        => code.Encoding() is EncodingKind.Legacy or EncodingKind.VEX && HandlerTable.Get(code) != null
            && HasVectorOperand(code.ToOpCode()) && (s_hostHasSse4a || !code.CpuidFeatures().Contains(CpuidFeature.SSE4A));

    private static readonly bool s_hostHasSse4a =
        (System.Runtime.Intrinsics.X86.X86Base.CpuId(unchecked((int)0x8000_0001), 0).Ecx & 1 << 6) != 0;

    private static bool HasVectorOperand(OpCodeInfo info)
    {
        for (int i = 0; i < info.OpCount; i++)
            if (info.GetOpKind(i).ToString() is var k && (k.StartsWith("xmm", StringComparison.Ordinal) || k.StartsWith("ymm", StringComparison.Ordinal)
                || k.StartsWith("mm", StringComparison.Ordinal)))
                return true;
        return false;
    }

    [Fact]
    public void EveryVectorForm_RandomOperands_EqualsHost()
    {
        StringBuilder failures = new();
        int codes = 0, failed = 0;
        foreach (Code code in Enum.GetValues<Code>())
        {
            if (!IsVectorCode(code))
                continue;
            codes++;
            bool bad = false;
            for (int i = 0; i < 24 && !bad; i++)
            {
                if (TryOne(code, i, out string? mismatch) || mismatch is null)
                    continue;
                bad = true;
                failed++;
                if (failed < 60)
                    failures.AppendLine(mismatch);
            }
        }
        Assert.True(codes > 1000, $"only {codes} codes are registered");
        Assert.True(failed == 0, $"{failed} of {codes} codes differ:\n{failures}");
    }

    private bool TryOne(Code code, int round, out string? mismatch)
    {
        mismatch = null;
        bool memory = (round & 1) != 0;
        OpCodeInfo info = code.ToOpCode();
        if (!Compose(info, ref memory, out Instruction instruction, out bool vsib))
            return true;
        Randomize(_before, vsib ? instruction.MemoryIndex.GetNumber() : -1, round);
        ulong address = (ulong)_m.Window + 4096 + (ulong)(_random.Next(20) * 64 + (round % 6 == 5 && !NeedsAlignment(code, info) ? _random.Next(64) : 0));
        _before->Gpr[7] = address;
        byte[] window = new byte[512];
        FillFp(window);
        byte[] nativeWindow = new byte[VectorMachine.WindowBytes], guestWindow = new byte[VectorMachine.WindowBytes];
        Span<byte> all = new(_m.Window, VectorMachine.WindowBytes);

        _random.NextBytes(all);
        byte[] initial = all.ToArray();
        window.AsSpan(0, 64).CopyTo(initial.AsSpan((int)(address - (ulong)_m.Window)));
        initial.CopyTo(all);
        *_host = *_before;
        _native.Execute(instruction, _host);
        all.CopyTo(nativeWindow);

        initial.CopyTo(all);
        _m.LoadFrom(_before);
        Op op = _m.Decode(instruction);
        OpResult r = _m.Run(ref op);
        *_guest = *_before;
        _m.StoreTo(_guest);
        all.CopyTo(guestWindow);

        string where = $"{instruction} [{code}] mxcsr {_before->Mxcsr:x}";
        if (r != OpResult.Next)
            mismatch = $"{where}: result {r}, vector {_m.C->PendingVector}";
        else if (!nativeWindow.AsSpan().SequenceEqual(guestWindow))
            mismatch = $"{where}: memory differs";
        else
            mismatch = Compare(where, code);
        return mismatch is null;
    }

    private static bool NeedsAlignment(Code code, OpCodeInfo info)
        => VectorFacts.MustBeAligned(code, info.Encoding == EncodingKind.VEX);

    private string? Compare(string where, Code code)
    {
        for (int i = 0; i < 16; i++)
        {
            ReadOnlySpan<byte> n = new(_host->Ymm + 32 * i, 32), g = new(_guest->Ymm + 32 * i, 32), b = new(_before->Ymm + 32 * i, 32);
            if (!n.SequenceEqual(g))
                return $"{where}: ymm{i} host {Convert.ToHexString(n)} guest {Convert.ToHexString(g)} before {Convert.ToHexString(b)}";
        }
        for (int i = 0; i < 16; i++)
            if (i is not (4 or 5) && _host->Gpr[i] != _guest->Gpr[i])
                return $"{where}: gpr{i} host {_host->Gpr[i]:x} guest {_guest->Gpr[i]:x}";
        if (((_host->Flags ^ _guest->Flags) & Rflags.Status) != 0)
            return $"{where}: flags host {_host->Flags & Rflags.Status:x} guest {_guest->Flags & Rflags.Status:x}";
        if (_host->Mxcsr != _guest->Mxcsr)
            return $"{where}: mxcsr host {_host->Mxcsr:x} guest {_guest->Mxcsr:x}";
        for (int i = 0; i < 160; i++)
            if (i is not (>= 5 and < 32) && (i < 32 || (i & 15) < 10) && _host->Fx[i] != _guest->Fx[i])
                return $"{where}: x87 image byte {i} host {_host->Fx[i]:x} guest {_guest->Fx[i]:x}";
        return null;
    }

    private bool Compose(OpCodeInfo info, ref bool memory, out Instruction instruction, out bool vsib)
    {
        instruction = new() { Code = info.Code };
        vsib = false;
        bool hasMemory = false;
        Span<int> used = stackalloc int[4];
        for (int i = 0; i < info.OpCount; i++)
        {
            OpCodeOperandKind kind = info.GetOpKind(i);
            string name = kind.ToString();
            int n = _random.Next(16);
            if (name.Contains("vsib", StringComparison.Ordinal))
            {
                vsib = hasMemory = true;
                instruction.SetOpKind(i, Iced.Intel.OpKind.Memory);
                instruction.MemoryBase = Register.RDI;
                instruction.MemoryIndex = (name.EndsWith('y') ? Register.YMM0 : Register.XMM0) + 5;
                instruction.MemoryIndexScale = 1 << _random.Next(4);
                continue;
            }
            if (name == "seg_rDI")
            {
                hasMemory = true;
                instruction.SetOpKind(i, Iced.Intel.OpKind.MemorySegRDI);
                continue;
            }
            if (name == "imm8")
            {
                byte immediate = (byte)_random.Next(_random.Next(2) == 0 ? 8 : 256);
                bool second = i > 0 && instruction.GetOpKind(i - 1) == Iced.Intel.OpKind.Immediate8;
                instruction.SetOpKind(i, second ? Iced.Intel.OpKind.Immediate8_2nd : Iced.Intel.OpKind.Immediate8);
                if (second)
                    instruction.Immediate8_2nd = immediate;
                else
                    instruction.Immediate8 = immediate;
                continue;
            }
            if (name == "mem" || (name.EndsWith("_or_mem", StringComparison.Ordinal) && memory))
            {
                hasMemory = true;
                instruction.SetOpKind(i, Iced.Intel.OpKind.Memory);
                instruction.MemoryBase = Register.RDI;
                continue;
            }
            instruction.SetOpKind(i, Iced.Intel.OpKind.Register);
            // Gathers need three different registers: 5 is the index.
            if (info.Mnemonic.ToString().Contains("gather", StringComparison.OrdinalIgnoreCase))
                n = i == 0 ? 2 : 9;
            Register r = name[..3] switch
            {
                "xmm" => Register.XMM0 + n,
                "ymm" => Register.YMM0 + n,
                "mm_" => Register.MM0 + (n & 7),
                "r32" => Register.R8D + (n & 7),
                _ => Register.R8 + (n & 7),
            };
            instruction.SetOpRegister(i, r);
        }
        memory = hasMemory;
        return true;
    }

    private void Randomize(NativeState* s, int indexRegister, int round)
    {
        Span<byte> ymm = new(s->Ymm, 512);
        FillFp(ymm);
        if (indexRegister >= 0)
        {
            // Small indices, whatever the element size.
            for (int i = 0; i < 4; i++)
                *(long*)(s->Ymm + 32 * indexRegister + 8 * i) = round % 3 == 0 ? _random.Next(60) : (long)_random.Next(60) << 32 | (uint)_random.Next(60);
            for (int i = 0; i < 4; i++)
                *(long*)(s->Ymm + 32 * indexRegister + 8 * i) &= 0x3f;
        }
        for (int i = 0; i < 16; i++)
            s->Gpr[i] = _random.Next(4) == 0 ? (ulong)_random.Next(20) : (ulong)_random.NextInt64();
        s->Flags = 0x202 | ((ulong)_random.Next() & Rflags.Status);
        uint control = round < 8 ? 0 : (uint)_random.Next(8) switch { < 4 and var rc => (uint)rc << 13, 4 => 0x8000, 5 => 0x40, 6 => 0x8040, _ => 0xe040 };
        s->Mxcsr = 0x1f80 | control | (uint)(_random.Next(3) == 0 ? _random.Next(64) : 0);
        new Span<byte>(s->Fx, 512).Clear();
        *(ushort*)s->Fx = 0x37f;
        *(ushort*)(s->Fx + 2) = (ushort)(_random.Next(8) << 11 | _random.Next(2) << 8);
        s->Fx[4] = (byte)_random.Next(256);
        *(uint*)(s->Fx + 24) = 0x1f80;
        for (int i = 0; i < 8; i++)
        {
            *(ulong*)(s->Fx + 32 + 16 * i) = (ulong)_random.NextInt64() | 1UL << 63;
            *(ushort*)(s->Fx + 32 + 16 * i + 8) = (ushort)(0x3fff + _random.Next(-40, 40) | _random.Next(2) << 15);
        }
    }

    private void FillFp(Span<byte> to)
    {
        for (int i = 0; i < to.Length; i += 8)
        {
            Span<byte> at = to[i..];
            switch (_random.Next(4))
            {
                case 0: BitConverter.TryWriteBytes(at, s_doubles[_random.Next(s_doubles.Length)]); break;
                case 1:
                    BitConverter.TryWriteBytes(at, s_singles[_random.Next(s_singles.Length)]);
                    BitConverter.TryWriteBytes(at[4..], s_singles[_random.Next(s_singles.Length)]);
                    break;
                case 2: BitConverter.TryWriteBytes(at, (_random.NextDouble() - 0.5) * Math.Pow(2, _random.Next(-60, 60))); break;
                default: BitConverter.TryWriteBytes(at, _random.NextInt64() ^ (_random.Next(2) == 0 ? 0L : long.MinValue)); break;
            }
        }
    }
}
