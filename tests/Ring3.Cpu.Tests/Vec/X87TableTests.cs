using System.Text;
using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu.Tests.Vec;

/// <summary>
/// Every x87 form against the host: random stacks with empty registers and special values, all rounding and precision modes, masked and unmasked
/// exceptions.
/// </summary>
public unsafe class X87TableTests
{
    private readonly VectorMachine _m = new();
    private readonly NativeRun _native = new();
    private readonly Random _random = new(777);
    private readonly NativeState* _before, _host, _guest;

    private static readonly (ulong Significand, ushort Exponent)[] s_special =
    [
        (0, 0), (0, 0x8000), (1UL << 63, 0x3fff), (1UL << 63, 0xbfff), (1UL << 63, 0x7fff), (1UL << 63, 0xffff), (0xc000000000000000, 0x7fff),
            (0xa000000000000001, 0x7fff), (0x8000000000000001, 0xffff),
        (1, 0), (0x7fffffffffffffff, 0), (1UL << 63, 0), (1UL << 63, 1), (ulong.MaxValue, 0x7ffe), (0x4000000000000000, 0x4000), (0xc90fdaa22168c235, 0x4000),
            (0x8000000000000000, 0x403e), (0xffffffff00000000, 0xc01d),
    ];

    public X87TableTests()
    {
        byte* b = HostMemory.Map(3 * 4096);
        _before = (NativeState*)b;
        _host = (NativeState*)(b + 4096);
        _guest = (NativeState*)(b + 8192);
    }

    private static bool IsX87(Code code)
        => HandlerTable.Get(code) != null && Array.Exists(code.CpuidFeatures(), f => f is CpuidFeature.FPU or CpuidFeature.FPU287 or CpuidFeature.FPU387)
            // Assembled as WAIT and another instruction; the decoder never makes them. On the host the reserved three do nothing.
            && !IsComposite(code);

    private static bool IsComposite(Code code)
        => code is Code.Fstenv_m14byte or Code.Fstenv_m28byte or Code.Fstcw_m2byte or Code.Feni or Code.Fdisi or Code.Fclex or Code.Finit
            or Code.Fsetpm or Code.Fsave_m94byte or Code.Fsave_m108byte
            or Code.Fstsw_m2byte or Code.Fstsw_AX or Code.Frstpm or Code.Fstdw_AX or Code.Fstsg_AX;

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void EveryX87Form_RandomStack_EqualsHost(bool unmasked)
    {
        StringBuilder failures = new();
        int codes = 0, failed = 0;
        foreach (Code code in Enum.GetValues<Code>())
        {
            if (!IsX87(code))
                continue;
            codes++;
            for (int i = 0; i < 60; i++)
            {
                if (One(code, unmasked) is not { } mismatch)
                    continue;
                failed++;
                failures.AppendLine(mismatch);
                break;
            }
        }
        Assert.True(codes > 140, $"only {codes} codes are registered");
        Assert.True(failed == 0, $"{failed} of {codes} codes differ:\n{failures}");
    }

    private string? One(Code code, bool unmasked)
    {
        OpCodeInfo info = code.ToOpCode();
        Instruction instruction = new() { Code = code };
        for (int i = 0; i < info.OpCount; i++)
        {
            OpCodeOperandKind kind = info.GetOpKind(i);
            if (kind == OpCodeOperandKind.mem)
            {
                instruction.SetOpKind(i, Iced.Intel.OpKind.Memory);
                instruction.MemoryBase = Register.RDI;
                continue;
            }
            instruction.SetOpKind(i, Iced.Intel.OpKind.Register);
            instruction.SetOpRegister(i, kind switch { OpCodeOperandKind.st0 => Register.ST0, OpCodeOperandKind.ax => Register.AX, _ => Register.ST0
                + _random.Next(8) });
        }
        Randomize(unmasked);
        ulong address = (ulong)_m.Window + 4096 + (ulong)_random.Next(1000);
        _before->Gpr[7] = address;
        Span<byte> all = new(_m.Window, VectorMachine.WindowBytes);
        _random.NextBytes(all);
        FillMemory(info, (byte*)address);
        byte[] initial = all.ToArray();

        *_host = *_before;
        _native.Execute(instruction, _host);
        byte[] hostWindow = all.ToArray();

        initial.CopyTo(all);
        _m.LoadFrom(_before);
        Op op = _m.Decode(instruction);
        OpResult r = _m.Run(ref op);
        *_guest = *_before;
        _m.StoreTo(_guest);

        string where = $"{instruction} [{code}] fcw {*(ushort*)_before->Fx:x} fsw {*(ushort*)(_before->Fx + 2):x} ftw {_before->Fx[4]:x}";
        if (r != OpResult.Next)
            return $"{where}: result {r}, vector {_m.C->PendingVector}";
        for (int i = 0; i < all.Length; i++)
            if (hostWindow[i] != all[i])
                return $"{where}: memory+{i - (int)(address - (ulong)_m.Window)} host {hostWindow[i]:x} guest {all[i]:x}";
        if (_host->Gpr[0] != _guest->Gpr[0])
            return $"{where}: rax host {_host->Gpr[0]:x} guest {_guest->Gpr[0]:x}";
        if (((_host->Flags ^ _guest->Flags) & Rflags.Status) != 0)
            return $"{where}: flags host {_host->Flags & Rflags.Status:x} guest {_guest->Flags & Rflags.Status:x}";
        for (int i = 0; i < 160; i++)
            if (i is not (>= 5 and < 32) && (i < 32 || (i & 15) < 10) && _host->Fx[i] != _guest->Fx[i])
                return $"{where}: image byte {i}: host {Convert.ToHexString(new ReadOnlySpan<byte>(_host->Fx, 160))}"
                    + $"\n guest {Convert.ToHexString(new ReadOnlySpan<byte>(_guest->Fx, 160))}"
                    + $"\n before {Convert.ToHexString(new ReadOnlySpan<byte>(_before->Fx, 160))}";
        return null;
    }

    private void FillMemory(OpCodeInfo info, byte* at)
    {
        switch (_random.Next(3))
        {
            case 0:
                *(double*)at = (_random.NextDouble() - 0.5) * Math.Pow(2, _random.Next(-20, 20));
                break;
            case 1:
                *(float*)at = (float)((_random.NextDouble() - 0.5) * Math.Pow(2, _random.Next(-20, 20)));
                break;
        }
        if (info.MemorySize == MemorySize.Float80)
        {
            (ulong s, ushort e) = Value();
            *(ulong*)at = s;
            *(ushort*)(at + 8) = e;
        }
        else if (info.MemorySize == MemorySize.Bcd)
        {
            for (int i = 0; i < 9; i++)
                at[i] = (byte)(_random.Next(10) << 4 | _random.Next(10));
            at[9] = (byte)(_random.Next(2) << 7);
        }
    }

    private (ulong Significand, ushort Exponent) Value()
        => _random.Next(3) == 0 ? s_special[_random.Next(s_special.Length)] : ((ulong)_random.NextInt64() | 1UL << 63, (ushort)(0x3fff + _random.Next(-70, 70)
            | _random.Next(2) << 15));

    private void Randomize(bool unmasked)
    {
        new Span<byte>(_before->Ymm, 512).Clear();
        for (int i = 0; i < 16; i++)
            _before->Gpr[i] = (ulong)_random.NextInt64();
        _before->Flags = 0x202 | ((ulong)_random.Next() & Rflags.Status);
        _before->Mxcsr = 0x1f80;
        new Span<byte>(_before->Fx, 512).Clear();
        int precision = _random.Next(3) switch { 0 => 0, 1 => 2, _ => 3 };
        int fcw = 0x40 | (unmasked ? _random.Next(64) : 0x3f) | precision << 8 | _random.Next(4) << 10;
        int fsw = _random.Next(8) << 11 | (_random.Next(0x80) & fcw & 0x3f) | (_random.Next(16) is var cc ? (cc & 7) << 8 | (cc >> 3) << 14 : 0);
        *(ushort*)_before->Fx = (ushort)fcw;
        *(ushort*)(_before->Fx + 2) = (ushort)fsw;
        _before->Fx[4] = (byte)(_random.Next(3) switch { 0 => 0xff, 1 => _random.Next(256), _ => _random.Next(256) | _random.Next(256) });
        *(uint*)(_before->Fx + 24) = 0x1f80;
        for (int i = 0; i < 8; i++)
        {
            (ulong s, ushort e) = Value();
            *(ulong*)(_before->Fx + 32 + 16 * i) = s;
            *(ushort*)(_before->Fx + 32 + 16 * i + 8) = e;
        }
    }
}
