using System.Buffers.Binary;

namespace Ring3.Vmm;

/// <summary>
/// Linux bzImage: 64-bit, 32-bit and 16-bit entry. SPEC: Documentation/arch/x86/boot.rst, protocol 2.00 to 2.15.
/// The protected-mode part is loaded at 1 MiB; a relocatable kernel then moves itself to its preferred address.
/// </summary>
internal static class BzImageLoader
{
    private const ulong Entry64Offset = 0x200;
    private const uint RealModeHeapEnd = 0xe000;
    private const ushort FirstWithCommandLinePointer = 0x202, FirstWithPayload = 0x208, FirstWithXLoadFlags = 0x20c;

    public static EntryState Load(ImageView image, MachineRam ram, BootRequest request)
    {
        Header h = Header.Read(image);
        BootProtocol p = request.Protocol != BootProtocol.Auto ? request.Protocol : h.Preferred;
        if (p == BootProtocol.Linux64 && !h.Is64Bit)
            throw BootException.BadImage($"{image.Name}: this kernel has no 64-bit entry");
        if (request.Protocol == BootProtocol.Auto && p != BootProtocol.Linux16
            && LinuxPayload.TryUnpack(image.Slice(h.SetupBytes + h.PayloadOffset, h.PayloadBytes, "kernel")) is { } unpacked)
            return EnterUnpacked(image, unpacked, ram, request, h);
        CheckMemory(image, ram, h);
        ReadOnlySpan<byte> code = image.Slice(h.SetupBytes, (ulong)image.Length - h.SetupBytes, "protected-mode kernel");
        ram.Write(h.LoadAddress, code, "kernel");
        BootTables.WriteCommandLine(ram, request.CommandLine, h.CommandLineMax + 1);
        (ulong, uint) initrd = BootTables.PlaceInitrd(ram, request.Modules, h.RuntimeEnd, h.InitrdMax);
        if (p == BootProtocol.Linux16)
            return EnterRealMode(image, ram, h, initrd);
        int headerEnd = Math.Min(0x202 + h.HeaderLength, image.Length);
        BootParams.Write(ram, image.Bytes[BootParams.SetupHeader..headerEnd], request, initrd);
        bool is64 = p == BootProtocol.Linux64;
        BootTables.WriteGdt(ram, is64);
        return new EntryState
        {
            Mode = is64 ? EntryMode.Long64 : EntryMode.Protected32,
            Rip = h.LoadAddress + (is64 ? Entry64Offset : 0),
            Rsp = MemoryLayout.BootStack,
            Rsi = MemoryLayout.ZeroPage,
            Cr3 = is64 ? BootTables.WriteIdentityMap(ram) : 0,
            Protocol = $"bzImage {h.Version >> 8}.{h.Version & 0xff:d2}, {(is64 ? "64" : "32")}-bit entry",
        };
    }

    /// <summary>Whether the kernel is 32-bit. Before protocol 2.12 the header does not say so; then the ELF image inside does.</summary>
    public static bool IsI386(ImageView image)
    {
        Header h = Header.Read(image);
        if (h.Is64Bit || h.Version >= FirstWithXLoadFlags)
            return !h.Is64Bit;
        byte[]? unpacked = LinuxPayload.TryUnpack(image.Slice(h.SetupBytes + h.PayloadOffset, h.PayloadBytes, "kernel"));
        return unpacked is null || !ElfImage.Parse(new ImageView(unpacked, image.Name)).IsX64;
    }

    /// <summary>Whether the image's version string is of Linux's form, "RELEASE (USER@HOST) #BUILD ...". Linux has one in every protocol; an image without one
    /// is taken for Linux when it names a payload.</summary>
    public static bool IsLinux(ImageView image)
    {
        const int VersionMax = 512;
        ulong at = image.U16(BootParams.KernelVersion, "setup header");
        if (at == 0 || !image.Has(at + 0x200, 1))
            return image.U16(BootParams.Version, "setup header") >= FirstWithPayload;
        ReadOnlySpan<byte> text = image.Bytes[(int)(at + 0x200)..];
        int length = text[..Math.Min(text.Length, VersionMax)].IndexOf((byte)0);
        return length < 0 || text[..length].IndexOf(") #"u8) > text.IndexOf(" ("u8) && text.IndexOf(" ("u8) > 0;
    }

    /// <summary>Enters the unpacked kernel where its own unpacker would: at its ELF entry, with boot_params in RSI and the first 4 GiB mapped.</summary>
    private static EntryState EnterUnpacked(ImageView image, byte[] unpacked, MachineRam ram, BootRequest request, Header h)
    {
        var view = new ImageView(unpacked, image.Name);
        ElfImage elf = ElfImage.Parse(view);
        CheckMemory(image, ram, h);
        ulong end = Math.Max(ElfLoader.LoadSegmentsHigh(view, elf, ram), h.RuntimeEnd);
        BootTables.WriteCommandLine(ram, request.CommandLine, h.CommandLineMax + 1);
        (ulong, uint) initrd = BootTables.PlaceInitrd(ram, request.Modules, end, h.InitrdMax);
        BootParams.Write(ram, image.Bytes[BootParams.SetupHeader..Math.Min(0x202 + h.HeaderLength, image.Length)], request, initrd);
        BootTables.WriteGdt(ram, elf.Is64);
        return new EntryState
        {
            Mode = elf.Is64 ? EntryMode.Long64 : EntryMode.Protected32,
            Rip = elf.Entry,
            Rsp = MemoryLayout.BootStack,
            Rsi = MemoryLayout.ZeroPage,
            Cr3 = elf.Is64 ? BootTables.WriteIdentityMap(ram) : 0,
            Protocol = $"bzImage {h.Version >> 8}.{h.Version & 0xff:d2}, unpacked, {(elf.Is64 ? "64" : "32")}-bit entry",
        };
    }

    /// <summary>Loads the setup part at 64 KiB and enters it at its second sector, as a boot loader of a PC would.</summary>
    private static EntryState EnterRealMode(ImageView image, MachineRam ram, Header h, (ulong Address, uint Bytes) initrd)
    {
        const ulong Base = MemoryLayout.RealModeKernel;
        const ushort Segment = (ushort)(Base >> 4);
        if (h.Version < FirstWithCommandLinePointer)
            throw BootException.BadImage(
                $"{image.Name}: boot protocol {h.Version >> 8}.{h.Version & 0xff:d2} is too old for a 16-bit entry; 2.02 is the first");
        if (h.SetupBytes > RealModeHeapEnd - 0x1000)
            throw BootException.BadImage($"{image.Name}: setup part of {h.SetupBytes} bytes is too large for a real-mode entry");
        ram.Clear(Base, 0x1_0000, "real-mode kernel");
        ram.Write(Base, image.Slice(0, h.SetupBytes, "setup part"), "real-mode kernel");
        Span<byte> s = ram.Span(Base, 0x1000, "real-mode kernel");
        s[BootParams.TypeOfLoader] = BootParams.UnregisteredLoader;
        s[BootParams.LoadFlags] |= BootParams.CanUseHeap;
        BinaryPrimitives.WriteUInt16LittleEndian(s[BootParams.HeapEndPtr..], (ushort)(RealModeHeapEnd - 0x200));
        BinaryPrimitives.WriteUInt16LittleEndian(s[BootParams.VidMode..], 0xffff); // "normal"
        BinaryPrimitives.WriteUInt32LittleEndian(s[BootParams.CmdLinePtr..], (uint)MemoryLayout.CommandLine);
        BinaryPrimitives.WriteUInt32LittleEndian(s[BootParams.RamdiskImage..], (uint)initrd.Address);
        BinaryPrimitives.WriteUInt32LittleEndian(s[BootParams.RamdiskSize..], initrd.Bytes);
        return new EntryState
        {
            Mode = EntryMode.Real16,
            Rip = 0,
            Rsp = RealModeHeapEnd,
            Cs = Segment + 0x20,
            Ds = Segment,
            Protocol = $"bzImage {h.Version >> 8}.{h.Version & 0xff:d2}, 16-bit entry",
            IsBootDisk = true,
        };
    }

    private static void CheckMemory(ImageView image, MachineRam ram, Header h)
    {
        ulong end = Math.Max(h.RuntimeEnd, h.LoadAddress + (ulong)image.Length - h.SetupBytes);
        if (end > ram.LowRamEnd)
            throw new BootException(ExitStatus.Resources,
                $"too little memory: {image.Name} needs {BootTables.MiB(end)} MiB to start; use --memory {BootTables.MiB(end) + 32}M or more");
    }

    /// <summary>The setup header's fields, validated.</summary>
    private readonly record struct Header(ushort Version, ulong SetupBytes, int HeaderLength, bool Is64Bit, ulong LoadAddress, ulong RuntimeEnd,
        ulong InitrdMax, int CommandLineMax, ulong PayloadOffset, ulong PayloadBytes)
    {
        /// <summary>
        /// The entry that this image is sure to have. Images of boot protocol 2.02 to 2.07 are loaded by their real-mode part: of those only Linux has a 32-bit
        /// entry at the start of its protected-mode part, and others that borrow the format to be loaded like Linux (iPXE, memdisk, GRUB's lnxboot) have
        /// something else there. 2.08 names the payload, and with it what that part is.
        /// </summary>
        public BootProtocol Preferred => Is64Bit ? BootProtocol.Linux64
            : Version is >= FirstWithCommandLinePointer and < FirstWithPayload ? BootProtocol.Linux16
            : BootProtocol.Linux32;

        public static Header Read(ImageView image)
        {
            ushort version = image.U16(BootParams.Version, "setup header");
            if (version < 0x200)
                throw BootException.BadImage($"{image.Name}: boot protocol {version >> 8}.{version & 0xff:d2} is too old; 2.00 is the first with this header");
            byte flags = image.U8(BootParams.LoadFlags, "setup header");
            if ((flags & BootParams.LoadedHigh) == 0)
                throw BootException.BadImage($"{image.Name}: a zImage that loads low (below 1 MiB) is not supported");
            int sects = image.U8(BootParams.SetupSects, "setup header");
            ulong setup = (ulong)((sects == 0 ? 4 : sects) + 1) * 512;
            if (setup >= (ulong)image.Length)
                throw BootException.BadImage($"{image.Name}: truncated bzImage: the setup part takes {setup} bytes, the file has {image.Length}");
            int length = image.U8(BootParams.JumpLength, "setup header");
            bool is64 = version >= FirstWithXLoadFlags && (image.U16(BootParams.XLoadFlags, "setup header") & BootParams.Kernel64) != 0;
            uint initrdMax = version >= 0x203 ? image.U32(BootParams.InitrdAddrMax, "setup header") : 0x37ff_ffff;
            uint cmdline = version >= 0x206 ? image.U32(BootParams.CmdlineSize, "setup header") : 255;
            (ulong payload, ulong payloadBytes) = Payload(image, version, setup);
            return new Header(version, setup, length, is64, MemoryLayout.OneMiB, End(image, version, setup),
                initrdMax == 0 ? 0x37ff_ffff : initrdMax, (int)Math.Min(cmdline, MemoryLayout.CommandLineMax - 1), payload, payloadBytes);
        }

        /// <summary>First byte that the kernel does not use before it knows the memory map.</summary>
        private static ulong End(ImageView image, ushort version, ulong setup)
        {
            ulong loadedEnd = MemoryLayout.OneMiB + (ulong)image.Length - setup;
            if (version < 0x20a)
                return loadedEnd + (16 << 20);
            ulong preferred = image.U64(BootParams.PrefAddress, "setup header"), size = image.U32(BootParams.InitSize, "setup header");
            if (preferred > MemoryLayout.PciHole || size > MemoryLayout.PciHole)
                throw BootException.BadImage($"{image.Name}: setup header asks for address 0x{preferred:x}, {size} bytes");
            return Math.Max(loadedEnd, Math.Max(preferred, MemoryLayout.OneMiB) + size);
        }

        /// <summary>Where the compressed kernel is, from the start of the protected-mode part.
        /// A file that ends before it does would fail late and obscurely.</summary>
        private static (ulong Offset, ulong Bytes) Payload(ImageView image, ushort version, ulong setup)
        {
            if (version < FirstWithPayload)
                return default;
            ulong offset = image.U32(BootParams.PayloadOffset, "setup header"), length = image.U32(BootParams.PayloadLength, "setup header");
            if (!image.Has(setup + offset, length))
                throw BootException.BadImage(
                    $"{image.Name}: truncated bzImage: the kernel ends at byte {setup + offset + length}, the file has {image.Length}");
            return (offset, length);
        }
    }
}
