using System.Buffers.Binary;

namespace Ring3.Vmm;

/// <summary>Intel MP table, for kernels without ACPI. SPEC: MultiProcessor Specification 1.4.</summary>
public static class MpTable
{
    /// <summary>Processors that 8-bit APIC ids can name, one id being left for the IOAPIC.</summary>
    public const int MaxCpus = 254;

    /// <summary>Floating pointer and configuration table, to be placed at <paramref name="address"/> (16-byte aligned, below 1 MiB).</summary>
    public static byte[] Build(int cpus, ulong address)
    {
        cpus = Math.Min(cpus, MaxCpus);
        byte ioapicId = (byte)cpus;
        var entries = new List<byte[]>();
        for (int i = 0; i < cpus; i++)
            entries.Add([0, (byte)i, 0x14, (byte)(i == 0 ? 3 : 1), 0x00, 0x06, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        entries.Add([1, 0, .. "PCI   "u8]);
        entries.Add([1, 1, .. "ISA   "u8]);
        entries.Add([2, ioapicId, 0x11, 1, 0, 0, 0xc0, 0xfe]);
        for (byte irq = 0; irq < 16; irq++)
        {
            if (irq == 2)
                continue;
            byte flags = (byte)(irq == AcpiTables.SciIrq ? 0xd : 0);
            entries.Add([3, 0, flags, 0, 1, irq, ioapicId, irq == 0 ? (byte)2 : irq]);
        }
        for (int device = 0; device < 32; device++)
        {
            for (int pin = 0; pin < 4; pin++)
                entries.Add([3, 0, 0xf, 0, 0, (byte)(device << 2 | pin), ioapicId, (byte)(AcpiTables.PciGsiBase + (device + pin) % AcpiTables.PciGsis)]);
        }
        entries.Add([4, 3, 0, 0, 1, 0, 0, 0]);    // ExtINT on LINT0 of the first processor
        entries.Add([4, 1, 0, 0, 1, 0, 0xff, 1]); // NMI on LINT1 of all

        byte[] body = [.. entries.SelectMany(e => e)];
        var config = new byte[44 + body.Length];
        "PCMP"u8.CopyTo(config);
        BinaryPrimitives.WriteUInt16LittleEndian(config.AsSpan(4), (ushort)config.Length);
        config[6] = 4;
        "RING3   SOFTWARE PC "u8.CopyTo(config.AsSpan(8));
        BinaryPrimitives.WriteUInt16LittleEndian(config.AsSpan(34), (ushort)entries.Count);
        BinaryPrimitives.WriteUInt32LittleEndian(config.AsSpan(36), (uint)MemoryLayout.Lapic);
        body.CopyTo(config, 44);
        config[7] = AcpiTables.Checksum(config);

        var floating = new byte[16];
        "_MP_"u8.CopyTo(floating);
        BinaryPrimitives.WriteUInt32LittleEndian(floating.AsSpan(4), (uint)address + 16);
        floating[8] = 1;
        floating[9] = 4;
        floating[10] = AcpiTables.Checksum(floating);
        return [.. floating, .. config];
    }
}
