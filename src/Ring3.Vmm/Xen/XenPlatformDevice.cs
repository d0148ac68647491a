using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>
/// Xen's platform PCI device: by it a guest's drivers find that there is Xen, and a place in the address space for the grant table. SPEC: Xen's
/// docs/misc/hvm-emulated-unplug.pandoc and pci-device-reservations.txt.
/// </summary>
internal static class XenPlatformDevice
{
    private const ulong PortBytes = 256, WindowBytes = 16 << 20;

    /// <summary>The function. Interrupts come by the upcall vector, so it has no pin.</summary>
    public static PciFunction Create()
    {
        var pci = new PciFunction(vendor: 0x5853, device: 0x0001, classCode: 0xff_80_00, revision: 1);
        pci.SetBytes(PciFunction.SubsystemVendor, [0x53, 0x58, 0x01, 0x00]);
        pci.AddBar(0, PortBytes, flags: 1);
        pci.AddBar(1, WindowBytes, flags: 8);
        return pci;
    }

    /// <summary>The ports by which drivers ask whether they are welcome, and tell which emulated devices they replace. There are none to take away.</summary>
    public sealed class UnplugPorts : IBusDevice
    {
        public const ushort Base = 0x10;
        public const int Ports = 4;
        private const ushort Magic = 0x49d2;
        private const byte Protocol = 1;

        public void Read(ulong offset, Span<byte> data)
        {
            data.Fill(0xff);
            if (offset == 0 && data.Length == 2)
                BusData.Set(data, Magic);
            else if (offset == 2 && data.Length == 1)
                data[0] = Protocol;
        }

        public void Write(ulong offset, ReadOnlySpan<byte> data) { }
    }
}
