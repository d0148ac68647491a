using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>Places every firmware table in the BIOS area.</summary>
public static class FirmwareTables
{
    public const ulong Acpi = MemoryLayout.Firmware, Mp = 0xf_0000, SmbiosAddress = 0xf_4000;

    /// <summary>The identifier of the machine's generation.</summary>
    public const ulong Generation = 0xf_c000;
    private const int GenerationBytes = 16;

    /// <summary>Makes the machine another one than that whose memory it has.</summary>
    public static void RenewGeneration(MachineRam ram)
    {
        Span<byte> id = stackalloc byte[GenerationBytes];
        HostRandom.Fill(id);
        ram.Write(Generation, id, "generation identifier");
    }

    /// <summary>Writes the BIOS's areas, MP table, SMBIOS and, unless <paramref name="acpi"/> is false, ACPI. Returns the RSDP's address or 0.</summary>
    public static ulong Write(MachineRam ram, int cpus, bool acpi)
    {
        ram.Clear(MemoryLayout.Firmware, MemoryLayout.FirmwareEnd - MemoryLayout.Firmware, "firmware tables");
        BiosArea.Write(ram);
        ram.Write(Mp, MpTable.Build(cpus, Mp), "MP table");
        ram.Write(SmbiosAddress, Smbios.Build(cpus, ram.Bytes, SmbiosAddress), "SMBIOS tables");
        RenewGeneration(ram);
        if (!acpi)
            return 0;
        byte[] tables = AcpiTables.Build(cpus, Acpi).Bytes;
        if ((ulong)tables.Length > Mp - Acpi)
            throw new BootException(ExitStatus.Usage, $"{cpus} processors do not fit in the ACPI tables");
        ram.Write(Acpi, tables, "ACPI tables");
        return Acpi;
    }
}
