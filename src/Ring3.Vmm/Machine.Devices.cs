using System.Buffers.Binary;
using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Vmm;

// The devices and how they are wired.
public sealed partial class Machine
{
    private static readonly (ushort Port, int Irq)[] s_serialPorts = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
    private readonly SerialPort?[] _serial = new SerialPort?[4];
    private readonly IInterruptLine[] _serialLines = new IInterruptLine[4];
    private Bios? _bios;
    private KeyboardController? _keyboard;
    private Port92? _port92;
    private AcpiPm? _pm;
    private CmosRtc? _rtc;
    private FwCfg? _firmwareConfig;

    /// <summary>Bytes of input go to the port even when the guest polls for them.</summary>
    private bool PolledSerial => _options.Kernel is not null && _options.Exec is null;

    private void AddDevices()
    {
        var irq3 = new SharedLine(new GsiLine(this, 3));
        var irq4 = new SharedLine(new GsiLine(this, 4));
        for (int i = 0; i < s_serialPorts.Length; i++)
            _serialLines[i] = (s_serialPorts[i].Irq == 4 ? irq4 : irq3).AddInput();
        _keyboard = new KeyboardController(this);
        Ports.Add(KeyboardController.DataPort, 1, _keyboard.Data);
        Ports.Add(KeyboardController.CommandPort, 1, _keyboard.Command);
        Ports.Add(0x80, 1, new PostCode());
        _port92 = new Port92(this);
        Ports.Add(0x92, 1, _port92);
        Ports.Add(DebugExit.Port, 4, new DebugExit(this));
        _pm = new AcpiPm(this, new GsiLine(this, AcpiTables.SciIrq));
        Ports.Add(AcpiPm.Base, AcpiPm.Ports, _pm);
        AddHotplug();
        Ports.Add(ResetControl.Port, 1, new ResetControl(this));
        Ports.Add(PciHost.AddressPort, 1, Pci.Address);
        Ports.Add(PciHost.DataPort, PciHost.DataPorts, Pci.Data);
        var clock = _rtc = new CmosRtc(new GsiLine(this, CmosRtc.Irq), EventLoop.Shared, HostClock.RealtimeNs(),
            e => End(MachineEnd.Failure, detail: $"{e.GetType().Name}: {e.Message}"));
        clock.SetMachine(Ram.LowRamEnd, Ram.HighRamEnd - MemoryLayout.FourGiB, _options.Cpus);
        Ports.Add(CmosRtc.Base, CmosRtc.Ports, clock);
        var firmwareConfig = _firmwareConfig = new FwCfg(new DmaMemory(_vm.Memory));
        Span<byte> number = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(number, Ram.Bytes);
        firmwareConfig.AddItem(FwCfg.KeyRamSize, number);
        BinaryPrimitives.WriteUInt64LittleEndian(number, (ulong)_options.Cpus);
        firmwareConfig.AddItem(FwCfg.KeyCpuCount, number[..2]);
        firmwareConfig.AddItem(FwCfg.KeyMaxCpus, number[..2]);
        Ports.Add(FwCfg.SelectorPort, FwCfg.SelectorPorts, firmwareConfig.Selector);
        Ports.Add(FwCfg.DmaPort, FwCfg.DmaPorts, firmwareConfig.Dma);
    }

    /// <summary>PCI bus 0.</summary>
    public PciHost Pci { get; } = new();

    /// <summary>Gives a serial port (0 = COM1) its output; the port exists only then.</summary>
    public void AttachSerial(int index, ISerialSink sink)
    {
        var port = new SerialPort(_serialLines[index], sink) { PolledInput = _options.PolledSerial ?? PolledSerial };
        _serial[index] = port;
        if (index == 0 && _xen is not null)
            _xen.Console.Sink = sink;
        Ports.Add(s_serialPorts[index].Port, SerialPort.Ports, port);
    }

    /// <summary>Gives the guest serial input; returns the bytes taken.</summary>
    public int SerialInput(int index, ReadOnlySpan<byte> data) =>
        _held ? 0 : index == 0 && _xen is not null ? _xen.ConsoleInput(data) : _serial[index]?.Receive(data) ?? data.Length;

    /// <summary>BIOS services on COM1; <paramref name="disk"/> (may be empty) is drive 0x80.</summary>
    private Bios CreateBios(byte[] disk)
    {
        const int KeyWaitMs = 10;
        var screen = new BiosScreen(b => _serial[0]?.Write(0, [b]));
        var keyboard = new BiosKeyboard(at => _serial[0]?.Peek(at) ?? -1, n => _serial[0]?.Discard(n));
        return new Bios(Ram, disk, screen, keyboard, () => _serial[0]?.WaitForInput(KeyWaitMs));
    }

    /// <summary>Interrupt controllers and timer as firmware leaves them for 16-bit programs: the tick of 18.2 Hz and nothing else.</summary>
    private void StartBiosTick()
    {
        const byte AllButTimerAndCascade = 0xfa, SquareWave = 3, LowThenHighByte = 3;
        var chip = new kvm_irqchip { chip_id = KvmApi.KVM_IRQCHIP_PIC_MASTER };
        Check(_vm.GetIrqchip(ref chip), "read the interrupt controller");
        chip.pic.irq_base = BiosArea.MasterBase;
        chip.pic.imr = AllButTimerAndCascade;
        Check(_vm.SetIrqchip(chip), "set the interrupt controller");
        chip = new kvm_irqchip { chip_id = KvmApi.KVM_IRQCHIP_PIC_SLAVE };
        Check(_vm.GetIrqchip(ref chip), "read the interrupt controller");
        chip.pic.irq_base = BiosArea.SlaveBase;
        chip.pic.imr = 0xff;
        Check(_vm.SetIrqchip(chip), "set the interrupt controller");
        Check(_vm.GetPit2(out kvm_pit_state2 pit), "read the interval timer");
        ref kvm_pit_channel_state channel = ref pit.channels[0];
        channel.count = 0x1_0000;
        channel.mode = SquareWave;
        channel.rw_mode = LowThenHighByte;
        channel.gate = 1;
        Check(_vm.SetPit2(pit), "set the interval timer");
    }

    /// <summary>Guest memory for bus masters.</summary>
    private sealed class DmaMemory(GuestMemory memory) : IDmaMemory
    {
        public bool TryRead(ulong gpa, Span<byte> data) => memory.Read(gpa, data);
        public bool TryWrite(ulong gpa, ReadOnlySpan<byte> data) => memory.Write(gpa, data);
    }

    /// <summary>One GSI of the virtual machine.</summary>
    private sealed class GsiLine(Machine machine, int gsi) : IInterruptLine
    {
        public void Set(bool level)
        {
            if (machine._xen is { } xen)
                xen.SetGsi(gsi, level);
            else
                _ = machine._vm.IrqLine((uint)gsi, level);
        }
    }
}
