using Ring3.Kvm;

namespace Ring3.Vmm.Tests.Devices;

public class DeviceRobustnessTests
{
    /// <summary>Random accesses of every width to every device: nothing throws, whatever the guest does.</summary>
    [Fact]
    public void RandomAccesses_NeverThrow()
    {
        var random = new Random(11);
        var timers = new FakeTimers();
        var machine = new FakeMachine();
        var pci = new PciHost();
        var cfg = new FwCfg(new FakeMemory(0x1000));
        _ = cfg.AddFile("opt/rw", new byte[100], () => { });
        var keyboard = new KeyboardController(machine);
        (IBusDevice Device, int Ports)[] devices =
        [
            (new SerialPort(new FakeLine(), new FakeSerial()), SerialPort.Ports), (new CmosRtc(new FakeLine(), timers, 1_700_000_000_000_000_000, e => throw e),
                CmosRtc.Ports), (pci.Address, 1), (pci.Data, PciHost.DataPorts),
            (cfg.Selector, FwCfg.SelectorPorts), (cfg.Dma, FwCfg.DmaPorts), (keyboard.Data, 1), (keyboard.Command, 1), (new Port92(machine), 1),
                (new ResetControl(machine), 1), (new DebugExit(machine), 4),
            (new PostCode(), 1), (new AcpiPm(machine, new FakeLine()), AcpiPm.Ports),
        ];
        var data = new byte[64];
        int[] sizes = [1, 1, 1, 2, 4, 8, 64];
        for (int i = 0; i < 200_000; i++)
        {
            (IBusDevice device, int ports) = devices[random.Next(devices.Length)];
            ulong offset = (ulong)random.Next(ports);
            Span<byte> bytes = data.AsSpan(0, sizes[random.Next(sizes.Length)]);
            random.NextBytes(bytes);
            if (random.Next(2) == 0)
                device.Read(offset, bytes);
            else
                device.Write(offset, bytes);
            if (random.Next(100) == 0)
                timers.Advance(random.Next(2_000_000_000));
        }
    }

    /// <summary>The clock keeps any date that the guest writes, even one that does not exist.</summary>
    [Fact]
    public void Clock_TakesAnyDate()
    {
        var random = new Random(5);
        var timers = new FakeTimers();
        var rtc = new CmosRtc(new FakeLine(), timers, 0, e => throw e);
        byte[] registers = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0x32];
        for (int i = 0; i < 20_000; i++)
        {
            rtc.Out8(0, registers[random.Next(registers.Length)]);
            if (random.Next(3) == 0)
                rtc.Out8(1, (byte)random.Next(256));
            else
                _ = rtc.In8(1);
            if (i % 100 == 0)
                timers.Advance(1_000_000_000L * random.Next(100));
        }
    }
}
