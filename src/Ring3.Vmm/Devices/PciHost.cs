using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>
/// PCI bus 0 behind configuration mechanism 1 (ports 0xcf8 and 0xcfc), with a host bridge and an ISA bridge as in an i440FX machine. Functions that are absent
/// read as all ones.
/// SPEC: PCI Local Bus 3.0, "Software Generation of Configuration Transactions".
/// </summary>
public sealed class PciHost
{
    public const ushort AddressPort = 0xcf8, DataPort = 0xcfc;
    public const int DataPorts = 4;
    private const uint Enable = 1u << 31;

    private readonly PciFunction?[] _functions = new PciFunction?[256];
    private uint _address;

    public PciHost()
    {
        Add(0, 0, new PciFunction(vendor: 0x8086, device: 0x1237, classCode: 0x06_00_00, revision: 2));
        var isa = new PciFunction(vendor: 0x8086, device: 0x7000, classCode: 0x06_01_00, revision: 0);
        // PIRQ routing registers: bit 7 means not routed to the PIC.
        isa.SetBytes(0x60, [0x80, 0x80, 0x80, 0x80]);
        isa.SetWritable(0x60, 0x8f8f_8f8f, 4);
        Add(1, 0, isa);
    }

    /// <summary>Puts a function at a device and function number. Other functions than 0 need the multi-function bit in function 0, which is set here.</summary>
    public void Add(int device, int function, PciFunction pci)
    {
        int slot = device << 3 | function;
        if (_functions[slot] is not null)
            throw new InvalidOperationException($"PCI 00:{device:x2}.{function} is taken");
        Volatile.Write(ref _functions[slot], pci);
        if (function != 0 && _functions[device << 3] is { } first)
            first.SetBytes(PciFunction.HeaderType, [(byte)(first.Peek(PciFunction.HeaderType) >> 16 | 0x80)]);
    }

    /// <summary>Takes a function off the bus; an access that has begun goes on.</summary>
    public void Remove(int device, int function) => Volatile.Write(ref _functions[device << 3 | function], null);

    /// <summary>The functions of a snapshot, which are the same ones.</summary>
    public void Transfer(StateTransfer state)
    {
        state.Section("pci");
        state.Value(ref _address);
        for (int slot = 0; slot < _functions.Length; slot++)
        {
            if (state.Keep(_functions[slot] is not null) != (_functions[slot] is not null))
                throw new InvalidDataException($"another device at PCI 00:{slot >> 3:x2}.{slot & 7}");
            _functions[slot]?.Transfer(state);
        }
    }

    /// <summary>The address register: occupies port 0xcf8 only; 32-bit accesses work, others fall through to what else lives at 0xcf9-0xcfb.</summary>
    public IBusDevice Address => new AddressRegister(this);

    /// <summary>The data window, ports 0xcfc-0xcff.</summary>
    public IBusDevice Data => new DataWindow(this);

    private PciFunction? Selected(uint address) =>
        (address & Enable) != 0 && (address >> 16 & 0xff) == 0 ? Volatile.Read(ref _functions[address >> 8 & 0xff]) : null;

    private sealed class AddressRegister(PciHost host) : IBusDevice
    {
        public void Read(ulong offset, Span<byte> data)
        {
            if (data.Length == 4)
                BusData.Set(data, Volatile.Read(ref host._address));
            else
                data.Fill(0xff);
        }

        public void Write(ulong offset, ReadOnlySpan<byte> data)
        {
            if (data.Length == 4)
                Volatile.Write(ref host._address, (uint)BusData.Get(data) & 0x80ff_fffc);
        }
    }

    private sealed class DataWindow(PciHost host) : IBusDevice
    {
        public void Read(ulong offset, Span<byte> data)
        {
            uint address = Volatile.Read(ref host._address);
            if ((int)offset + data.Length <= DataPorts && host.Selected(address) is { } function)
                function.ReadConfig((int)(address & 0xfc) + (int)offset, data);
            else
                data.Fill(0xff);
        }

        public void Write(ulong offset, ReadOnlySpan<byte> data)
        {
            uint address = Volatile.Read(ref host._address);
            if ((int)offset + data.Length <= DataPorts)
                host.Selected(address)?.WriteConfig((int)(address & 0xfc) + (int)offset, data);
        }
    }
}
