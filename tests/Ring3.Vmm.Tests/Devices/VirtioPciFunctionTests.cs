using System.Buffers.Binary;
using Ring3.Kvm;
using Ring3.Memory;
using Ring3.Virtio;

namespace Ring3.Vmm.Tests.Devices;

/// <summary>A virtio device as its driver finds it on the bus.</summary>
public sealed class VirtioPciFunctionTests : IPciInterrupts, IDisposable
{
    private const ulong Firmware = 0xfe00_0000, MaxBar = VirtioTransport.BarBytes;
    private readonly IoBus _mmio = new();
    private readonly VirtioPciFunction _function;

    public VirtioPciFunctionTests()
    {
        var device = new EntropyDevice(new GuestMemory(new MemorySlots()), seed: 1);
        var transport = new VirtioTransport(device, this, VirtioFeature.OfTransport, _ => { }, e => throw e);
        _function = new VirtioPciFunction(transport, 0xff_00_00, _mmio, Firmware);
    }

    void IPciInterrupts.SetLine(bool level) { }

    void IPciInterrupts.Send(ulong address, uint data) { }

    public void Dispose() => _function.Dispose();

    private uint Get(int at, int bytes)
    {
        Span<byte> data = stackalloc byte[4];
        _function.ReadConfig(at, data[..bytes]);
        return BinaryPrimitives.ReadUInt32LittleEndian(data);
    }

    private void Set(int at, int bytes, uint value)
    {
        Span<byte> data = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(data, value);
        _function.WriteConfig(at, data[..bytes]);
    }

    /// <summary>Number of queues, read from the common configuration at an address; null: nobody is there.</summary>
    private ushort? QueuesAt(ulong bar)
    {
        Span<byte> data = stackalloc byte[2];
        return _mmio.Read(bar + 18, data) ? BinaryPrimitives.ReadUInt16LittleEndian(data) : null;
    }

    [Fact]
    public void Identity_IsAModernDevices()
    {
        Assert.Equal(0x1044_1af4u, Get(0, 4));
        Assert.Equal(0xff00_0001u, Get(8, 4));
        Assert.Equal(1u, Get(0x3d, 1));
        Assert.Equal(0x10u, Get(6, 2) & 0x10);
    }

    [Fact]
    public void Capabilities_AreAList_WithWhatADriverNeeds()
    {
        var types = new List<uint>();
        bool msix = false;
        int steps = 0;
        for (uint at = Get(0x34, 1); at != 0; at = Get((int)at + 1, 1), Assert.True(++steps < 16))
        {
            if (Get((int)at, 1) == 0x11)
            {
                msix = true;
                Assert.Equal(1u, Get((int)at + 2, 2));
                Assert.Equal((uint)VirtioTransport.TableAt, Get((int)at + 4, 4));
                continue;
            }
            Assert.Equal(9u, Get((int)at, 1));
            types.Add(Get((int)at + 3, 1));
            Assert.True(Get((int)at + 8, 4) + Get((int)at + 12, 4) <= MaxBar);
        }
        Assert.True(msix);
        // Without a configuration of its own the device shows none.
        Assert.Equal([1u, 2, 3, 5], types);
    }

    [Fact]
    public void TheBar_IsSizedAndMoves()
    {
        Assert.Null(QueuesAt(Firmware));
        Set(PciFunction.Command, 2, PciFunction.CommandMemory);
        Assert.Equal((ushort?)1, QueuesAt(Firmware));

        Set(PciFunction.Command, 2, 0);
        Assert.Null(QueuesAt(Firmware));
        Set(PciFunction.Bar0, 4, uint.MaxValue);
        Set(PciFunction.Bar0 + 4, 4, uint.MaxValue);
        Assert.Equal(~((uint)MaxBar - 1) | 4, Get(PciFunction.Bar0, 4));
        Assert.Equal(uint.MaxValue, Get(PciFunction.Bar0 + 4, 4));

        Set(PciFunction.Bar0, 4, 0x1000_0000);
        Set(PciFunction.Bar0 + 4, 4, 0x20);
        Set(PciFunction.Command, 2, PciFunction.CommandMemory);
        Assert.Equal((ushort?)1, QueuesAt(0x20_1000_0000));
        Set(PciFunction.Bar0 + 4, 4, 0x21);
        Assert.Null(QueuesAt(0x20_1000_0000));
        Assert.Equal((ushort?)1, QueuesAt(0x21_1000_0000));
        // At the end of the address space, where it just fits.
        Set(PciFunction.Bar0, 4, uint.MaxValue);
        Set(PciFunction.Bar0 + 4, 4, uint.MaxValue);
        Assert.Equal((ushort?)1, QueuesAt(~(MaxBar - 1)));
    }

    [Fact]
    public void TheBar_IsReachedThroughConfigurationSpace()
    {
        int at = (int)Get(0x34, 1);
        while (Get(at, 1) != 9 || Get(at + 3, 1) != 5)
            at = (int)Get(at + 1, 1);
        Set(at + 8, 4, 20);
        Set(at + 12, 4, 1);
        Assert.Equal(0u, Get(at + 16, 1));
        Set(at + 16, 4, VirtioStatus.Acknowledge);
        Assert.Equal((uint)VirtioStatus.Acknowledge, Get(at + 16, 1));
        // A BAR that is not there, and lengths that are none.
        Set(at + 4, 1, 1);
        Set(at + 16, 4, 0);
        Set(at + 4, 1, 0);
        foreach (uint length in new uint[] { 0, 3, 8, uint.MaxValue })
        {
            Set(at + 12, 4, length);
            Set(at + 16, 4, 0);
        }
        Set(at + 8, 4, uint.MaxValue);
        Set(at + 12, 4, 1);
        Set(at + 16, 4, 0);
        Set(at + 8, 4, 20);
        Assert.Equal((uint)VirtioStatus.Acknowledge, Get(at + 16, 1));
    }
}
