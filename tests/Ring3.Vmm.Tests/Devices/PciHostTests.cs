namespace Ring3.Vmm.Tests.Devices;

public class PciHostTests
{
    private readonly PciHost _host = new();

    private static uint AddressOf(int bus, int device, int function, int register) => 1u << 31 | (uint)(bus << 16 | device << 11 | function << 8 | register);

    private uint Get(int device, int register, int bytes = 4, int bus = 0, int function = 0)
    {
        _host.Address.Out(0, 4, AddressOf(bus, device, function, register & 0xfc));
        return _host.Data.In((ulong)(register & 3), bytes);
    }

    private void Put(int device, int register, int bytes, uint value)
    {
        _host.Address.Out(0, 4, AddressOf(0, device, 0, register & 0xfc));
        _host.Data.Out((ulong)(register & 3), bytes, value);
    }

    [Fact]
    public void Scan_FindsTheTwoBridgesOnly()
    {
        var found = new List<string>();
        for (int bus = 0; bus < 2; bus++)
            for (int device = 0; device < 32; device++)
                for (int function = 0; function < 8; function++)
                    if (Get(device, 0, 4, bus, function) is var id && id != 0xffff_ffff)
                        found.Add($"{bus}:{device}.{function} {id:x8} {Get(device, 8, 4, bus, function):x8}");
        Assert.Equal(["0:0.0 12378086 06000002", "0:1.0 70008086 06010000"], found);
    }

    [Fact]
    public void Mechanism1_ProbeOfLinux()
    {
        _host.Address.Out(0, 4, 0x8000_0000);
        Assert.Equal(0x8000_0000u, _host.Address.In(0, 4));
        _host.Address.Out(0, 4, 0x7fff_ffff);
        Assert.Equal(0x00ff_fffcu, _host.Address.In(0, 4));
        Assert.Equal(0xffff_ffff, _host.Data.In(0, 4));
        _host.Address.Out(0, 1, 1);
        Assert.Equal(0x00ff_fffcu, _host.Address.In(0, 4));
        Assert.Equal(0xffu, _host.Address.In(0, 1));
    }

    [Theory]
    [InlineData(0, 4, 0x1237_8086)]
    [InlineData(0, 2, 0x8086)]
    [InlineData(2, 2, 0x1237)]
    [InlineData(3, 1, 0x12)]
    [InlineData(0xb, 1, 0x06)]
    [InlineData(3, 2, 0xffff)] // crosses the register
    public void Reads_OfAnyWidth(int register, int bytes, uint value) => Assert.Equal(value, Get(0, register, bytes));

    [Fact]
    public void Writes_KeepReadOnlyBits()
    {
        Put(0, 0, 4, 0);
        Assert.Equal(0x1237_8086u, Get(0, 0));
        Put(0, 4, 2, 0xffff);
        Assert.Equal(0x407u, Get(0, 4, 2));
        Put(0, 0x3c, 1, 11);
        Assert.Equal(11u, Get(0, 0x3c, 1));
        Assert.Equal(0x80u, Get(1, 0x60, 1));
        Put(1, 0x60, 1, 0x0b);
        Assert.Equal(0x8080_800bu, Get(1, 0x60));
    }

    [Fact]
    public void Bars_CanBeSized()
    {
        var function = new PciFunction(0x1af4, 0x1041, 0x02_00_00, 1);
        function.AddBar(0, 0x20, 1);
        function.AddBar(1, 0x1000, 0);
        function.AddBar(4, 1UL << 33, 4 | 8);
        _host.Add(3, 0, function);
        foreach (int register in (int[])[0x10, 0x14, 0x20, 0x24])
            Put(3, register, 4, 0xffff_ffff);
        Assert.Equal([0xffff_ffe1u, 0xffff_f000u, 0x0000_000cu, 0xffff_fffeu], ((int[])[0x10, 0x14, 0x20, 0x24]).Select(r => Get(3, r)));
    }

    [Fact]
    public void Functions_MakeTheDeviceMultiFunction()
    {
        _host.Add(1, 3, new PciFunction(0x8086, 0x7113, 0x06_80_00, 3));
        Assert.Equal(0x80u, Get(1, 0xe, 1));
        Assert.Equal(0x7113_8086u, Get(1, 0, 4, 0, 3));
        Assert.Throws<InvalidOperationException>(() => _host.Add(1, 3, new PciFunction(1, 1, 0, 0)));
    }
}
