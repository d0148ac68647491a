using System.Buffers.Binary;

namespace Ring3.Vmm;

/// <summary>
/// The machine's ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, MADT and a hand-assembled DSDT. Built at one physical address; every pointer in them is absolute.
/// SPEC: ACPI 6.4, "ACPI Software Programming Model".
/// </summary>
public static class AcpiTables
{
    /// <summary>Interrupt of the SCI: ISA 9, level-triggered, active high.</summary>
    public const int SciIrq = 9;
    /// <summary>PCI interrupt pins are wired to GSIs 16 to 23: (device + pin) mod 8.</summary>
    public const int PciGsiBase = 16, PciGsis = 8;

    private const int HeaderBytes = 36;
    /// <summary>First CPU number whose APIC id needs an x2APIC entry.</summary>
    private const int X2ApicFirst = 255;

    /// <summary>Offsets within the image, for tests and diagnosis.</summary>
    public readonly record struct Image(byte[] Bytes, IReadOnlyDictionary<string, int> Offsets);

    /// <summary>Builds all tables for <paramref name="cpus"/> processors, to be placed at <paramref name="address"/> (16-byte aligned). The RSDP is
    /// first.</summary>
    public static Image Build(int cpus, ulong address)
    {
        var image = new List<byte>();
        var offsets = new Dictionary<string, int>();
        ulong Place(string name, byte[] table, int align = 16)
        {
            while (image.Count % align != 0)
                image.Add(0);
            offsets[name] = image.Count;
            image.AddRange(table);
            return address + (ulong)offsets[name];
        }

        Place("RSDP", new byte[36]);
        ulong facs = Place("FACS", Facs(), 64);
        ulong dsdt = Place("DSDT", Dsdt(cpus));
        ulong fadt = Place("FACP", Fadt(dsdt, facs));
        ulong madt = Place("APIC", Madt(cpus));
        byte[] pointers32 = new byte[8], pointers64 = new byte[16];
        BinaryPrimitives.WriteUInt32LittleEndian(pointers32, (uint)fadt);
        BinaryPrimitives.WriteUInt32LittleEndian(pointers32.AsSpan(4), (uint)madt);
        BinaryPrimitives.WriteUInt64LittleEndian(pointers64, fadt);
        BinaryPrimitives.WriteUInt64LittleEndian(pointers64.AsSpan(8), madt);
        ulong rsdt = Place("RSDT", Table("RSDT", 1, pointers32));
        ulong xsdt = Place("XSDT", Table("XSDT", 1, pointers64));
        byte[] bytes = [.. image];
        Rsdp(rsdt, xsdt).CopyTo(bytes, 0);
        return new Image(bytes, offsets);
    }

    private static byte[] Rsdp(ulong rsdt, ulong xsdt)
    {
        var r = new byte[36];
        "RSD PTR "u8.CopyTo(r);
        "RING3 "u8.CopyTo(r.AsSpan(9));
        r[15] = 2;
        BinaryPrimitives.WriteUInt32LittleEndian(r.AsSpan(16), (uint)rsdt);
        BinaryPrimitives.WriteUInt32LittleEndian(r.AsSpan(20), 36);
        BinaryPrimitives.WriteUInt64LittleEndian(r.AsSpan(24), xsdt);
        r[8] = Checksum(r.AsSpan(0, 20));
        r[32] = Checksum(r);
        return r;
    }

    private static byte[] Facs()
    {
        var f = new byte[64];
        "FACS"u8.CopyTo(f);
        BinaryPrimitives.WriteUInt32LittleEndian(f.AsSpan(4), 64);
        f[32] = 2;
        return f;
    }

    private static byte[] Fadt(ulong dsdt, ulong facs)
    {
        const int Bytes = 276;
        const ushort LegacyDevices = 1, NoVga = 4; // no 8042 bit: keyboards are not probed for
        const uint Wbinvd = 1, C1 = 1 << 2, SleepButton = 1 << 5, ResetSupported = 1 << 10, PowerButtonFixed = 0;
        var body = new byte[Bytes - HeaderBytes];
        Span<byte> Field(int offset) => body.AsSpan(offset - HeaderBytes);
        void U32(int offset, uint v) => BinaryPrimitives.WriteUInt32LittleEndian(Field(offset), v);
        void Gas(int offset, uint port, byte bits)
        {
            Field(offset)[0] = 1; // system I/O
            Field(offset)[1] = bits;
            Field(offset)[3] = (byte)(bits switch { 8 => 1, 16 => 2, _ => 3 });
            BinaryPrimitives.WriteUInt64LittleEndian(Field(offset + 4), port);
        }

        U32(36, (uint)facs);
        U32(40, (uint)dsdt);
        BinaryPrimitives.WriteUInt16LittleEndian(Field(46), SciIrq);
        U32(56, AcpiPm.Base);
        U32(64, AcpiPm.Base + AcpiPm.ControlOffset);
        U32(76, AcpiPm.Base + AcpiPm.TimerOffset);
        U32(80, AcpiPm.Base + AcpiPm.GpeOffset);
        Field(88)[0] = 4;
        Field(89)[0] = 2;
        Field(91)[0] = 4;
        Field(92)[0] = 4;
        BinaryPrimitives.WriteUInt16LittleEndian(Field(96), 0xfff); // C2 and C3 latencies: "not supported"
        BinaryPrimitives.WriteUInt16LittleEndian(Field(98), 0xfff);
        Field(108)[0] = 0x32; // century byte of the RTC
        BinaryPrimitives.WriteUInt16LittleEndian(Field(109), LegacyDevices | NoVga);
        U32(112, Wbinvd | C1 | SleepButton | ResetSupported | PowerButtonFixed);
        Gas(116, ResetControl.Port, 8);
        Field(128)[0] = ResetControl.ResetValue;
        Field(131)[0] = 3; // minor version
        BinaryPrimitives.WriteUInt64LittleEndian(Field(132), facs);
        BinaryPrimitives.WriteUInt64LittleEndian(Field(140), dsdt);
        Gas(148, AcpiPm.Base, 32);
        Gas(172, AcpiPm.Base + AcpiPm.ControlOffset, 16);
        Gas(208, AcpiPm.Base + AcpiPm.TimerOffset, 32);
        Gas(220, AcpiPm.Base + AcpiPm.GpeOffset, 32);
        return Table("FACP", 6, body);
    }

    private static byte[] Madt(int cpus)
    {
        var b = new List<byte>();
        void U32(ulong v) => b.AddRange([(byte)v, (byte)(v >> 8), (byte)(v >> 16), (byte)(v >> 24)]);
        U32(MemoryLayout.Lapic);
        U32(1); // a PC/AT PIC pair is present
        for (int i = 0; i < cpus; i++)
        {
            if (i < X2ApicFirst)
            {
                b.AddRange([0, 8, (byte)i, (byte)i]);
                U32(1);
            }
            else
            {
                b.AddRange([9, 16, 0, 0]);
                U32((uint)i);
                U32(1);
                U32((uint)i);
            }
        }
        b.AddRange([1, 12, 0, 0]);
        U32(MemoryLayout.Ioapic);
        U32(0);
        b.AddRange([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);          // ISA 0 is IOAPIC pin 2
        b.AddRange([2, 10, 0, SciIrq, SciIrq, 0, 0, 0, 0xd, 0]); // SCI: level, active high
        b.AddRange([4, 6, 0xff, 0, 0, 1]);                    // NMI on LINT1 of all
        if (cpus > X2ApicFirst)
        {
            b.AddRange([10, 12, 0, 0]);
            U32(0xffff_ffff);
            b.AddRange([1, 0, 0, 0]);
        }
        return Table("APIC", 5, [.. b]);
    }

    private static byte[] Dsdt(int cpus)
    {
        var system = new List<byte[]>();
        for (int i = 0; i < cpus; i++)
            system.Add(Aml.Device($"C{i:X3}", Aml.Name("_HID", Aml.String("ACPI0007")), Aml.Name("_UID", Aml.Integer((ulong)i))));
        system.Add(PciRoot());
        ReadOnlySpan<(ushort Port, int Irq)> serial = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
        for (int i = 0; i < serial.Length; i++)
            system.Add(Aml.Device($"COM{i + 1}", Aml.Name("_HID", Aml.EisaId("PNP0501")), Aml.Name("_UID", Aml.Integer((ulong)i + 1)),
                Aml.Name("_CRS", Aml.Resources(Aml.Io(serial[i].Port, 8), Aml.Irq(serial[i].Irq)))));
        system.Add(Aml.Device("RTC", Aml.Name("_HID", Aml.EisaId("PNP0B00")), Aml.Name("_CRS", Aml.Resources(Aml.Io(0x70, 2), Aml.Irq(8)))));
        system.Add(Generation());
        byte[] s5 = Aml.Name("\\_S5_", Aml.Package(Aml.Integer(AcpiPm.S5Type), Aml.Integer(AcpiPm.S5Type), Aml.Integer(0), Aml.Integer(0)));
        byte[] events = Aml.Scope("\\_GPE", Aml.Method($"_E{AcpiPm.GenerationEvent:X2}", Aml.Notify("\\_SB_.VGEN", StatusChange)),
            Aml.Method($"_E{AcpiPm.HotplugEvent:X2}", HotplugEvent()));
        return Table("DSDT", 2, [.. Aml.Scope("\\_SB_", [.. system]), .. s5, .. events]);
    }

    /// <summary>The notification of a device that its status has changed.</summary>
    private const byte StatusChange = 0x80;

    /// <summary>Where the identifier is that is another one for each copy of a machine. SPEC: Microsoft, "Virtual Machine Generation ID".</summary>
    private static byte[] Generation() =>
        Aml.Device("VGEN", Aml.Name("_HID", Aml.String("RNG30001")), Aml.Name("_CID", Aml.String("VM_Gen_Counter")),
            Aml.Name("_DDN", Aml.String("VM_Gen_Counter")),
            Aml.Name("ADDR", Aml.Package(Aml.Integer((uint)FirmwareTables.Generation), Aml.Integer(FirmwareTables.Generation >> 32))));

    private static byte[] PciRoot()
    {
        const int Pins = 4;
        var routes = new byte[PciDevices * Pins][];
        for (int d = 0; d < PciDevices; d++)
        {
            for (int pin = 0; pin < Pins; pin++)
                routes[d * Pins + pin] = Aml.Package(Aml.Integer((ulong)d << 16 | 0xffff), Aml.Integer((ulong)pin), Aml.Integer(0),
                    Aml.Integer((ulong)(PciGsiBase + (d + pin) % PciGsis)));
        }
        byte[] crs = Aml.Resources(
            Aml.WordSpace(2, 0, 0, 0xff),
            Aml.Io(0xcf8, 8),
            Aml.WordSpace(1, 3, 0, 0xcf7),
            Aml.WordSpace(1, 3, 0xd00, 0xffff),
            Aml.DwordMemory((uint)MemoryLayout.PciHole, (uint)MemoryLayout.Ioapic - 1));
        return Aml.Device("PCI0", Aml.Name("_HID", Aml.EisaId("PNP0A03")), Aml.Name("_UID", Aml.Integer(0)), Aml.Name("_BBN", Aml.Integer(0)),
            Aml.Name("_CRS", crs), Aml.Name("_PRT", Aml.Package(routes)), PciSlots());
    }

    private static string SlotName(int device) => $"S{device:X2}_";

    /// <summary>The slots, whose devices can be ejected, and the registers for that.</summary>
    private static byte[] PciSlots()
    {
        byte[] terms = Aml.PortFields("PHPR", PciHotplug.Base, PciHotplug.Ports, "PADD", "PREM", "PEJ_");
        for (int d = FirstHotplugDevice; d < PciDevices; d++)
        {
            byte[] eject = Aml.Store(Aml.Integer(1u << d), Aml.Reference("\\_SB_.PCI0.PEJ_"));
            terms = [.. terms, .. Aml.Device(SlotName(d), Aml.Name("_ADR", Aml.Integer((ulong)d << 16)), Aml.Name("_SUN", Aml.Integer((ulong)d)),
                Aml.Method("_EJ0", 1, eject))];
        }
        return terms;
    }

    private const int PciDevices = 32, FirstHotplugDevice = 3;

    /// <summary>Takes what has changed, and tells of each slot whose device has come, or is to go.</summary>
    private static byte[] HotplugEvent()
    {
        const byte DeviceCheck = 1, EjectRequest = 3;
        byte[] terms = [];
        foreach ((string name, byte what) in (ReadOnlySpan<(string, byte)>)[("PADD", DeviceCheck), ("PREM", EjectRequest)])
        {
            byte[] register = Aml.Reference($"\\_SB_.PCI0.{name}"), bits = Aml.Local(0);
            terms = [.. terms, .. Aml.Store(register, bits), .. Aml.Store(bits, register)];
            for (int d = FirstHotplugDevice; d < PciDevices; d++)
                terms = [.. terms, .. Aml.IfAny(bits, Aml.Integer(1u << d), Aml.Notify($"\\_SB_.PCI0.{SlotName(d)}", what))];
        }
        return terms;
    }

    /// <summary>Adds the common header and its checksum.</summary>
    private static byte[] Table(string signature, byte revision, byte[] body)
    {
        var t = new byte[HeaderBytes + body.Length];
        System.Text.Encoding.ASCII.GetBytes(signature).CopyTo(t, 0);
        BinaryPrimitives.WriteUInt32LittleEndian(t.AsSpan(4), (uint)t.Length);
        t[8] = revision;
        "RING3 RING3TBL"u8.CopyTo(t.AsSpan(10));
        BinaryPrimitives.WriteUInt32LittleEndian(t.AsSpan(24), 1);
        "RNG3"u8.CopyTo(t.AsSpan(28));
        BinaryPrimitives.WriteUInt32LittleEndian(t.AsSpan(32), 1);
        body.CopyTo(t, HeaderBytes);
        t[9] = Checksum(t);
        return t;
    }

    /// <summary>Byte that makes the sum of all bytes 0 modulo 256.</summary>
    internal static byte Checksum(ReadOnlySpan<byte> bytes)
    {
        int sum = 0;
        foreach (byte b in bytes)
            sum += b;
        return (byte)-sum;
    }
}
