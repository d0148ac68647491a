namespace Ring3.Vmm;

/// <summary>Memory kinds of the e820 map (also PVH and Multiboot numbers).</summary>
public enum E820Kind : uint { Ram = 1, Reserved = 2, Acpi = 3, Nvs = 4 }

/// <summary>One range of the firmware memory map.</summary>
public readonly record struct E820Entry(ulong Start, ulong Bytes, E820Kind Kind);

/// <summary>The memory map that firmware reports to the guest.</summary>
public static class E820
{
    public static E820Entry[] Build(MachineRam ram)
    {
        var map = new List<E820Entry>
        {
            new(0, MemoryLayout.Ebda, E820Kind.Ram),
            new(MemoryLayout.Ebda, MemoryLayout.LowEnd - MemoryLayout.Ebda, E820Kind.Reserved),
            new(MemoryLayout.Firmware, MemoryLayout.FirmwareEnd - MemoryLayout.Firmware, E820Kind.Reserved),
        };
        if (ram.LowRamEnd > MemoryLayout.OneMiB)
            map.Add(new(MemoryLayout.OneMiB, ram.LowRamEnd - MemoryLayout.OneMiB, E820Kind.Ram));
        map.Add(new(MemoryLayout.IdentityMapPage, 4 * 0x1000, E820Kind.Reserved));
        if (ram.HighRamEnd > MemoryLayout.FourGiB)
            map.Add(new(MemoryLayout.FourGiB, ram.HighRamEnd - MemoryLayout.FourGiB, E820Kind.Ram));
        return [.. map];
    }
}
