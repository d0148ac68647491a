using System.Buffers.Binary;
using System.Text;

namespace Ring3.Vmm;

/// <summary>Multiboot 1 kernels: ELF, or any file with load addresses in its header. SPEC: Multiboot Specification 0.6.96.</summary>
internal static class MultibootLoader
{
    private const uint HeaderMagic = 0x1bad_b002, LoaderMagic = 0x2bad_b002;
    private const uint WantPageAlign = 1, WantMemory = 2, WantVideo = 4, HasAddresses = 1 << 16;
    private const int SearchBytes = 8192, InfoBytes = 0x6000;
    private const uint InfoMemory = 1, InfoCommandLine = 4, InfoModules = 8, InfoMap = 64, InfoLoaderName = 512;

    /// <summary>Offset of a valid header in the first 8 KiB, or -1.</summary>
    public static int FindHeader(ReadOnlySpan<byte> image)
    {
        ReadOnlySpan<byte> head = image[..Math.Min(image.Length, SearchBytes)];
        for (int at = 0; at + 12 <= head.Length; at += 4)
        {
            uint magic = BinaryPrimitives.ReadUInt32LittleEndian(head[at..]);
            if (magic == HeaderMagic
                && magic + BinaryPrimitives.ReadUInt32LittleEndian(head[(at + 4)..]) + BinaryPrimitives.ReadUInt32LittleEndian(head[(at + 8)..]) == 0)
                return at;
        }
        return -1;
    }

    public static EntryState Load(ImageView image, MachineRam ram, BootRequest request)
    {
        int header = FindHeader(image.Bytes);
        uint flags = image.U32((ulong)header + 4, "Multiboot header");
        if ((flags & 0xffff & ~(WantPageAlign | WantMemory | WantVideo)) != 0)
            throw BootException.BadImage($"{image.Name}: Multiboot header requires features 0x{flags & 0xffff:x} that are not offered");
        var (entry, loaded) = (flags & HasAddresses) != 0 ? LoadByAddresses(image, ram, header) : LoadElf(image, ram);
        ulong commandLine = loaded.Reserve(MemoryLayout.CommandLineMax), info = loaded.Reserve(InfoBytes);
        BootTables.WriteCommandLine(ram, Path.GetFileName(image.Name) + (request.CommandLine.Length == 0 ? "" : " " + request.CommandLine),
            MemoryLayout.CommandLineMax, commandLine);
        WriteInfo(ram, request, (uint)info, (uint)commandLine, loaded.End);
        BootTables.WriteGdt(ram, longMode: false);
        return new EntryState { Mode = EntryMode.Protected32, Rip = entry, Rax = LoaderMagic, Rbx = info, Protocol = "Multiboot 1" };
    }

    /// <summary>The "a.out kludge": header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr follow the header's checksum.</summary>
    private static (uint Entry, LoadedImage Loaded) LoadByAddresses(ImageView image, MachineRam ram, int header)
    {
        const string Part = "Multiboot header";
        ulong h = (ulong)header;
        uint headerAddr = image.U32(h + 12, Part), load = image.U32(h + 16, Part), loadEnd = image.U32(h + 20, Part), bssEnd = image.U32(h + 24, Part),
            entry = image.U32(h + 28, Part);
        if (load > headerAddr || headerAddr - load > h)
            throw BootException.BadImage($"{image.Name}: Multiboot load address 0x{load:x} does not match header address 0x{headerAddr:x}");
        ulong offset = h - (headerAddr - load);
        ulong bytes = loadEnd != 0 ? loadEnd - (ulong)load : (ulong)image.Length - offset;
        if (loadEnd != 0 && loadEnd < load || bssEnd != 0 && bssEnd < load + bytes)
            throw BootException.BadImage($"{image.Name}: Multiboot addresses are not in order (load 0x{load:x}, end 0x{loadEnd:x}, bss end 0x{bssEnd:x})");
        ulong end = Math.Max(load + bytes, bssEnd);
        var loaded = new LoadedImage(image.Name, ram);
        loaded.Add(load, end - load);
        ram.Write(load, image.Slice(offset, bytes, "Multiboot load area"), "kernel");
        ram.Clear(load + bytes, end - (load + bytes), "kernel");
        return (entry, loaded);
    }

    private static (uint Entry, LoadedImage Loaded) LoadElf(ImageView image, MachineRam ram)
    {
        if (!image.Bytes.StartsWith(ElfImage.Magic))
            throw BootException.BadImage($"{image.Name}: Multiboot header without load addresses in a file that is not ELF");
        ElfImage elf = ElfImage.Parse(image);
        if (elf.Entry > uint.MaxValue)
            throw BootException.BadImage($"{image.Name}: Multiboot entry 0x{elf.Entry:x} is above 4 GiB");
        return ((uint)elf.Entry, ElfLoader.LoadSegments(image, elf, ram));
    }

    /// <summary>Boot information at <paramref name="info"/>: structure, memory map, module list and strings, in that order; the modules from
    /// <paramref name="floor"/> on.</summary>
    private static void WriteInfo(MachineRam ram, BootRequest request, uint info, uint commandLine, ulong floor)
    {
        uint mapAt = info + 0x80, mods = info + 0x200, strings = info + 0x400;
        const int MaxModules = 32;
        ram.Clear(info, InfoBytes, "Multiboot information");
        Span<byte> i = ram.Span(info, InfoBytes, "Multiboot information");
        E820Entry[] map = E820.Build(ram);
        if (request.Modules.Count > MaxModules)
            throw new BootException(ExitStatus.Usage, $"too many modules: {request.Modules.Count}, at most {MaxModules}");
        void Put(uint at, ulong value) => BinaryPrimitives.WriteUInt32LittleEndian(ram.Span(at, 4, "Multiboot information"), (uint)value);
        Put(info, InfoMemory | InfoCommandLine | InfoMap | InfoLoaderName | (request.Modules.Count == 0 ? 0 : InfoModules));
        Put(info + 4, BiosArea.LowMemoryKiB);
        Put(info + 8, (ram.LowRamEnd - Math.Min(ram.LowRamEnd, MemoryLayout.OneMiB)) >> 10);
        Put(info + 16, commandLine);
        Put(info + 20, (uint)request.Modules.Count);
        Put(info + 24, mods);
        Put(info + 44, 24 * (uint)map.Length);
        Put(info + 48, mapAt);
        for (int n = 0; n < map.Length; n++)
        {
            Span<byte> e = i[(int)(mapAt - info + 24 * (uint)n)..];
            BinaryPrimitives.WriteUInt32LittleEndian(e, 20);
            BinaryPrimitives.WriteUInt64LittleEndian(e[4..], map[n].Start);
            BinaryPrimitives.WriteUInt64LittleEndian(e[12..], map[n].Bytes);
            BinaryPrimitives.WriteUInt32LittleEndian(e[20..], (uint)map[n].Kind);
        }
        uint text = strings;
        uint PutString(string s)
        {
            byte[] b = Encoding.UTF8.GetBytes(s + "\0");
            if (text + b.Length > info + InfoBytes)
                throw new BootException(ExitStatus.Usage, "module strings are too long");
            ram.Write(text, b, "Multiboot information");
            uint at = text;
            text += (uint)b.Length;
            return at;
        }
        Put(info + 64, PutString("ring3"));
        ulong place = floor;
        for (int n = 0; n < request.Modules.Count; n++)
        {
            BootModule m = request.Modules[n];
            uint at = mods + 16 * (uint)n;
            ram.Write(place, m.Data.Span, $"module {m.Name}");
            Put(at, place);
            Put(at + 4, place + (ulong)m.Data.Length);
            Put(at + 8, PutString(m.Name));
            place = place + (ulong)m.Data.Length + 0xfff & ~0xfffUL;
        }
    }
}
