using System.Buffers.Binary;

namespace Ring3.Vmm;

/// <summary>ELF kernels: by PVH (hvm_start_info, 32-bit entry) when the image has the note, else as a 64-bit Linux vmlinux (boot_params).</summary>
internal static class ElfLoader
{
    private const uint PvhMagic = 0x336e_c578;
    private const ulong InitrdMax = 0x7fff_ffff;

    public static EntryState Load(ImageView image, MachineRam ram, BootRequest request)
    {
        ElfImage elf = ElfImage.Parse(image);
        bool pvh = request.Protocol == BootProtocol.Pvh || request.Protocol == BootProtocol.Auto && elf.PvhEntry != 0;
        if (pvh && elf.PvhEntry == 0)
            throw BootException.BadImage($"{image.Name}: ELF image has no PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY)");
        if (!pvh && !elf.Is64)
            throw BootException.BadImage($"{image.Name}: a 32-bit ELF image needs a PVH note or a Multiboot header");
        if (pvh)
            return LoadPvh(image, elf, ram, request);
        ulong end = LoadSegmentsHigh(image, elf, ram);
        BootTables.WriteCommandLine(ram, request.CommandLine, MemoryLayout.CommandLineMax);
        (ulong, uint) initrd = BootTables.PlaceInitrd(ram, request.Modules, end, InitrdMax);
        BootTables.WriteGdt(ram, longMode: true);
        return EnterLinux64(elf, ram, request, initrd);
    }

    /// <summary>Copies the segments of an image that must lie above 1 MiB; returns the page-aligned end of the highest.</summary>
    internal static ulong LoadSegmentsHigh(ImageView image, ElfImage elf, MachineRam ram)
    {
        foreach (ElfSegment s in elf.Segments)
        {
            if (s.PhysicalAddress < MemoryLayout.OneMiB)
                throw BootException.BadImage($"{image.Name}: ELF segment at 0x{s.PhysicalAddress:x} is below 1 MiB");
        }
        return LoadSegments(image, elf, ram).End;
    }

    /// <summary>Copies the segments and zeroes their tails.</summary>
    internal static LoadedImage LoadSegments(ImageView image, ElfImage elf, MachineRam ram)
    {
        var loaded = new LoadedImage(image.Name, ram);
        foreach (ElfSegment s in elf.Segments)
        {
            loaded.Add(s.PhysicalAddress, s.MemoryBytes);
            ram.Write(s.PhysicalAddress, image.Slice(s.Offset, s.FileBytes, "ELF segment"), "kernel");
            ram.Clear(s.PhysicalAddress + s.FileBytes, s.MemoryBytes - s.FileBytes, "kernel");
        }
        return loaded;
    }

    private static EntryState EnterLinux64(ElfImage elf, MachineRam ram, BootRequest request, (ulong, uint) initrd)
    {
        // A vmlinux carries no setup header: these are the fields that a 2.12 kernel reads.
        Span<byte> header = stackalloc byte[0x268 - BootParams.SetupHeader];
        header.Clear();
        BinaryPrimitives.WriteUInt16LittleEndian(header[(BootParams.BootFlag - BootParams.SetupHeader)..], 0xaa55);
        "HdrS"u8.CopyTo(header[(BootParams.HeaderMagic - BootParams.SetupHeader)..]);
        BinaryPrimitives.WriteUInt16LittleEndian(header[(BootParams.Version - BootParams.SetupHeader)..], 0x20c);
        header[BootParams.LoadFlags - BootParams.SetupHeader] = BootParams.LoadedHigh;
        BinaryPrimitives.WriteUInt32LittleEndian(header[(BootParams.KernelAlignment - BootParams.SetupHeader)..], 0x20_0000);
        BinaryPrimitives.WriteUInt32LittleEndian(header[(BootParams.CmdlineSize - BootParams.SetupHeader)..], MemoryLayout.CommandLineMax - 1);
        BootParams.Write(ram, header, request, initrd);
        return new EntryState
        {
            Mode = EntryMode.Long64,
            Rip = elf.Entry,
            Rsp = MemoryLayout.BootStack,
            Rsi = MemoryLayout.ZeroPage,
            Cr3 = BootTables.WriteIdentityMap(ram),
            Protocol = "vmlinux, 64-bit entry",
        };
    }

    /// <summary>SPEC: Xen public headers, arch-x86/hvm/start_info.h (version 1).</summary>
    private static EntryState LoadPvh(ImageView image, ElfImage elf, MachineRam ram, BootRequest request)
    {
        const ulong InfoBytes = 0x1000, ModulesOffset = 0x40, MapOffset = 0x80;
        LoadedImage loaded = LoadSegments(image, elf, ram);
        ulong info = loaded.Reserve(InfoBytes), commandLine = loaded.Reserve(MemoryLayout.CommandLineMax);
        BootTables.WriteCommandLine(ram, request.CommandLine, MemoryLayout.CommandLineMax, commandLine);
        (ulong Address, uint Bytes) initrd = BootTables.PlaceInitrd(ram, request.Modules, loaded.End, InitrdMax);
        BootTables.WriteGdt(ram, longMode: false);
        ram.Clear(info, InfoBytes, "hvm_start_info");
        Span<byte> i = ram.Span(info, (int)InfoBytes, "hvm_start_info");
        E820Entry[] map = E820.Build(ram);
        BinaryPrimitives.WriteUInt32LittleEndian(i, PvhMagic);
        BinaryPrimitives.WriteUInt32LittleEndian(i[4..], 1);
        BinaryPrimitives.WriteUInt32LittleEndian(i[12..], initrd.Bytes == 0 ? 0u : 1u);
        BinaryPrimitives.WriteUInt64LittleEndian(i[16..], initrd.Bytes == 0 ? 0 : info + ModulesOffset);
        BinaryPrimitives.WriteUInt64LittleEndian(i[24..], commandLine);
        BinaryPrimitives.WriteUInt64LittleEndian(i[32..], request.Rsdp);
        BinaryPrimitives.WriteUInt64LittleEndian(i[40..], info + MapOffset);
        BinaryPrimitives.WriteUInt32LittleEndian(i[48..], (uint)map.Length);
        BinaryPrimitives.WriteUInt64LittleEndian(i[0x40..], initrd.Address);
        BinaryPrimitives.WriteUInt64LittleEndian(i[0x48..], initrd.Bytes);
        for (int n = 0; n < map.Length; n++)
        {
            Span<byte> e = i[((int)MapOffset + 24 * n)..];
            BinaryPrimitives.WriteUInt64LittleEndian(e, map[n].Start);
            BinaryPrimitives.WriteUInt64LittleEndian(e[8..], map[n].Bytes);
            BinaryPrimitives.WriteUInt32LittleEndian(e[16..], (uint)map[n].Kind);
        }
        return new EntryState { Mode = EntryMode.Protected32, Rip = elf.PvhEntry, Rbx = info, Protocol = "ELF, PVH entry" };
    }
}
