using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu.Tests.Vec;

/// <summary>FXSAVE and XSAVE families against the host, and the rules whose violation is #GP.</summary>
public unsafe class StateImageTests
{
    private readonly VectorMachine _m = new();
    private readonly NativeRun _native = new();
    private readonly Random _random = new(4242);
    private readonly NativeState* _before, _host, _guest;
    private readonly byte* _area;

    public StateImageTests()
    {
        byte* b = HostMemory.Map(3 * 4096);
        _before = (NativeState*)b;
        _host = (NativeState*)(b + 4096);
        _guest = (NativeState*)(b + 8192);
        // Across a page boundary.
        _area = _m.Window + 8192 - 576;
    }

    private static Instruction Memory(Code code) => new() { Code = code, MemoryBase = Register.RDI, Op0Kind = Iced.Intel.OpKind.Memory };

    private void Randomize(ulong components)
    {
        _random.NextBytes(new Span<byte>(_before->Ymm, 512));
        for (int i = 0; i < 16; i++)
            _before->Gpr[i] = (ulong)_random.NextInt64();
        _before->Gpr[0] = components;
        _before->Gpr[2] = 0;
        _before->Gpr[7] = (ulong)_area;
        _before->Flags = 0x202;
        _before->Mxcsr = 0x1f80u | (uint)_random.Next(64) | (uint)_random.Next(4) << 13;
        new Span<byte>(_before->Fx, 512).Clear();
        *(ushort*)_before->Fx = 0x37f;
        *(ushort*)(_before->Fx + 2) = (ushort)(_random.Next(8) << 11 | 1 + _random.Next(0x3e));
        _before->Fx[4] = (byte)_random.Next(256);
        *(uint*)(_before->Fx + 24) = 0x1f80;
        for (int i = 0; i < 8; i++)
            _random.NextBytes(new Span<byte>(_before->Fx + 32 + 16 * i, 10));
    }

    private void RunBoth(Code code)
    {
        Span<byte> all = new(_m.Window, VectorMachine.WindowBytes);
        byte[] initial = all.ToArray();
        *_host = *_before;
        _native.Execute(Memory(code), _host);
        byte[] hostWindow = all.ToArray();
        initial.CopyTo(all);
        _m.LoadFrom(_before);
        Op op = _m.Decode(Memory(code));
        Assert.Equal(OpResult.Next, _m.Run(ref op));
        *_guest = *_before;
        _m.StoreTo(_guest);
        int at = (int)(_area - _m.Window);
        // MXCSR_MASK is a constant of the processor.
        hostWindow.AsSpan(at + 28, 4).Clear();
        all.Slice(at + 28, 4).Clear();
        for (int i = 0; i < all.Length; i++)
            Assert.True(hostWindow[i] == all[i], $"{code} components {_before->Gpr[0]:x}: area byte {i - at}: host {hostWindow[i]:x} guest {all[i]:x}");
        Assert.True(new ReadOnlySpan<byte>(_host->Ymm, 512).SequenceEqual(new ReadOnlySpan<byte>(_guest->Ymm, 512)),
            $"{code} {_before->Gpr[0]:x}: vector registers");
        Assert.Equal(_host->Mxcsr, _guest->Mxcsr);
        for (int i = 0; i < 160; i++)
            if (i is not (>= 5 and < 32) && (i < 32 || (i & 15) < 10))
                Assert.True(_host->Fx[i] == _guest->Fx[i], $"{code} {_before->Gpr[0]:x}: x87 byte {i}: host {_host->Fx[i]:x} guest {_guest->Fx[i]:x}");
    }

    [Theory]
    [InlineData(Code.Fxsave64_m512byte)]
    [InlineData(Code.Fxsave_m512byte)]
    [InlineData(Code.Xsave64_mem)]
    [InlineData(Code.Xsave_mem)]
    [InlineData(Code.Xsaveopt64_mem)]
    [InlineData(Code.Xsavec64_mem)]
    public void Save_RandomState_EqualsHost(Code code)
    {
        for (int i = 0; i < 40; i++)
        {
            Randomize((ulong)_random.Next(8));
            _random.NextBytes(new Span<byte>(_m.Window, VectorMachine.WindowBytes));
            *(ulong*)(_area + 512) = 0;
            RunBoth(code);
        }
    }

    [Theory]
    [InlineData(Code.Fxrstor64_m512byte)]
    [InlineData(Code.Fxrstor_m512byte)]
    [InlineData(Code.Xrstor64_mem)]
    [InlineData(Code.Xrstor_mem)]
    public void Restore_RandomImage_EqualsHost(Code code)
    {
        for (int i = 0; i < 60; i++)
        {
            bool compacted = i % 2 == 1 && code is Code.Xrstor64_mem or Code.Xrstor_mem;
            Randomize(7);
            new Span<byte>(_m.Window, VectorMachine.WindowBytes).Clear();
            *_host = *_before;
            _native.Execute(Memory(compacted ? Code.Xsavec64_mem : Code.Xsave64_mem), _host);
            *(ulong*)(_area + 512) &= (ulong)_random.Next(8);
            *(ulong*)(_area + 8) = *(ulong*)(_area + 16) = 0;
            Randomize((ulong)_random.Next(8));
            RunBoth(code);
        }
    }

    private OpResult Run(Code code, ulong components = 7, int offset = 0)
    {
        Randomize(components);
        _before->Gpr[7] = (ulong)(_area + offset);
        _m.LoadFrom(_before);
        Op op = _m.Decode(Memory(code));
        return _m.Run(ref op);
    }

    [Theory]
    [InlineData(Code.Xsave64_mem, 16)]
    [InlineData(Code.Xrstor64_mem, 32)]
    [InlineData(Code.Xsavec64_mem, 8)]
    [InlineData(Code.Fxsave64_m512byte, 8)]
    [InlineData(Code.Fxrstor64_m512byte, 8)]
    public void Misaligned_IsGeneralProtection(Code code, int offset)
    {
        Assert.Equal(OpResult.Fault, Run(code, 7, offset));
        Assert.Equal(Arch.Vector.GP, _m.C->PendingVector);
    }

    [Theory]
    [InlineData(512, 8UL)]
    [InlineData(520, 1UL)]
    [InlineData(520, 0x8000000000000010UL)]
    [InlineData(528, 1UL)]
    [InlineData(24, 0x10000UL)]
    public void Xrstor_BadImage_IsGeneralProtection(int offset, ulong value)
    {
        new Span<byte>(_m.Window, VectorMachine.WindowBytes).Clear();
        *(ulong*)(_area + 512) = 7;
        *(uint*)(_area + 24) = 0x1f80;
        *(ulong*)(_area + offset) = value;
        Assert.Equal(OpResult.Fault, Run(Code.Xrstor64_mem));
        Assert.Equal(Arch.Vector.GP, _m.C->PendingVector);
    }

    [Fact]
    public void XsaveImage_StoreLoad_RoundTrips()
    {
        Randomize(7);
        _m.LoadFrom(_before);
        byte[] area = new byte[4096];
        XsaveImage.Store(_m.C, area);
        Randomize(7);
        _m.LoadFrom(_before);
        Assert.True(XsaveImage.Load(_m.C, area));
        byte[] again = new byte[4096];
        XsaveImage.Store(_m.C, again);
        Assert.Equal(area, again);
        BitConverter.TryWriteBytes(area.AsSpan(24), 0x10000);
        Assert.False(XsaveImage.Load(_m.C, area));
    }

    [Fact]
    public void Gates_DisabledUnits_RaiseInOrder()
    {
        void Expect(Code code, byte vector)
        {
            Assert.Equal(OpResult.Fault, Run(code));
            Assert.Equal(vector, _m.C->PendingVector);
        }
        ulong cr0 = _m.C->Cr0, cr4 = _m.C->Cr4;
        _m.C->Cr0 = cr0 | Cr0.TS;
        Expect(Code.Xsave64_mem, Arch.Vector.NM);
        Expect(Code.Fxsave64_m512byte, Arch.Vector.NM);
        Expect(Code.Ldmxcsr_m32, Arch.Vector.NM);
        Expect(Code.Fld_m64fp, Arch.Vector.NM);
        _m.C->Cr4 = cr4 & ~(Cr4.OSXSAVE | Cr4.OSFXSR);
        Expect(Code.Xsave64_mem, Arch.Vector.UD);
        Expect(Code.VEX_Vldmxcsr_m32, Arch.Vector.UD);
        Expect(Code.Ldmxcsr_m32, Arch.Vector.UD);
        _m.C->Cr0 = cr0 | Cr0.EM;
        _m.C->Cr4 = cr4;
        Expect(Code.Ldmxcsr_m32, Arch.Vector.UD);
        Expect(Code.Fld_m64fp, Arch.Vector.NM);
    }
}
