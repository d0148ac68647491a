namespace Ring3.Vmm;

/// <summary>What a kernel file is.</summary>
public enum ImageKind { Unknown, BzImage, Elf, Multiboot, BootSector }

/// <summary>Recognises kernel files by their content and dispatches to the loader.</summary>
public static class KernelLoader
{
    private const int MaxUnpackedBytes = 512 << 20;

    /// <summary>Format of a file.</summary>
    public static ImageKind Sniff(ReadOnlySpan<byte> image)
    {
        bool bootSector = IsBootSector(image);
        if (bootSector && image.Length > 0x206 && image[0x202..0x206].SequenceEqual("HdrS"u8))
            return ImageKind.BzImage;
        // A disk may have a Multiboot header in its first sectors (GRUB's core has one); entered by it, GRUB would not know its disk.
        if (bootSector && !image.StartsWith(ElfImage.Magic))
            return ImageKind.BootSector;
        if (MultibootLoader.FindHeader(image) >= 0)
            return ImageKind.Multiboot;
        if (image.StartsWith(ElfImage.Magic))
            return ImageKind.Elf;
        return ImageKind.Unknown;
    }

    private static bool IsBootSector(ReadOnlySpan<byte> image) => image.Length >= 512 && image[510] == 0x55 && image[511] == 0xaa;

    /// <summary>What is in a compressed kernel file (xen.gz); <paramref name="file"/> itself when it is a kernel as it is, or of no known format.</summary>
    /// <exception cref="BootException">Damaged, or larger than any kernel.</exception>
    public static byte[] Unpack(byte[] file, string name)
    {
        if (Sniff(file) != ImageKind.Unknown || !CompressedImage.IsKnown(file))
            return file;
        byte[] image = CompressedImage.TryUnpack(file, MaxUnpackedBytes) ?? throw BootException.BadImage($"{name}: damaged: {Describe(file)}");
        return image.Length < MaxUnpackedBytes ? image
            : throw BootException.BadImage($"{name}: unpacks to more than {MaxUnpackedBytes >> 20} MiB: no kernel is that large");
    }

    /// <summary>Whether the kernel is for i386: its programs have to be, too.</summary>
    public static bool IsI386(ReadOnlySpan<byte> image, string name) => Sniff(image) switch
    {
        ImageKind.BzImage => BzImageLoader.IsI386(new ImageView(image, name)),
        ImageKind.Elf => !ElfImage.Parse(new ImageView(image, name)).IsX64,
        _ => false,
    };

    /// <summary>Whether the file is a Linux kernel, by what it says; others borrow the bzImage format to be loaded like one (iPXE, memtest86+).</summary>
    public static bool IsLinux(ReadOnlySpan<byte> image, string name) => Sniff(image) switch
    {
        ImageKind.BzImage => BzImageLoader.IsLinux(new ImageView(image, name)),
        ImageKind.Elf => true,
        _ => false,
    };

    /// <summary>
    /// Loads a kernel into RAM, with its command line, RAM disk and memory map, and returns the entry state. Every defect of the image, and a machine too small
    /// for it, is a <see cref="BootException"/>.
    /// </summary>
    /// <param name="image">The file's bytes.</param>
    /// <param name="name">File name for messages.</param>
    public static EntryState Load(ReadOnlySpan<byte> image, string name, MachineRam ram, BootRequest request)
    {
        var view = new ImageView(image, name);
        ImageKind kind = Sniff(image);
        BootProtocol p = request.Protocol;
        return (kind, p) switch
        {
            (ImageKind.BzImage, BootProtocol.Auto or BootProtocol.Linux64 or BootProtocol.Linux32 or BootProtocol.Linux16) =>
                BzImageLoader.Load(view, ram, request),
            (ImageKind.Multiboot, BootProtocol.Auto or BootProtocol.Multiboot) => MultibootLoader.Load(view, ram, request),
            (ImageKind.BootSector, BootProtocol.Multiboot) when MultibootLoader.FindHeader(image) >= 0 => MultibootLoader.Load(view, ram, request),
            (ImageKind.Elf or ImageKind.Multiboot, BootProtocol.Auto or BootProtocol.Pvh or BootProtocol.Linux64) when image.StartsWith(ElfImage.Magic) =>
                ElfLoader.Load(view, ram, request),
            (ImageKind.BootSector or ImageKind.BzImage, BootProtocol.Auto or BootProtocol.BootSector) => BootSectorLoader.Load(view, ram),
            (ImageKind.Unknown, _) => throw BootException.BadImage(image.Length == 0 ? $"{name}: the file is empty"
                : $"{name}: not a kernel: neither bzImage, ELF, Multiboot nor boot sector ({Describe(image)})"),
            _ => throw BootException.BadImage($"{name}: a {NameOf(kind)} cannot be entered by protocol {p.ToString().ToLowerInvariant()}"),
        };
    }

    private static string NameOf(ImageKind kind) => kind switch
    {
        ImageKind.BzImage => "bzImage",
        ImageKind.Elf => "ELF image",
        ImageKind.Multiboot => "Multiboot image",
        _ => "boot sector",
    };

    /// <summary>What an unknown file looks like, to help the user.</summary>
    private static string Describe(ReadOnlySpan<byte> image) => image switch
    {
        [0x1f, 0x8b, ..] => "gzip data",
        [0xfd, (byte)'7', (byte)'z', (byte)'X', (byte)'Z', ..] => "xz data",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd data",
        [(byte)'M', (byte)'Z', ..] => "it is an EFI or DOS program",
        [(byte)'0', (byte)'7', (byte)'0', (byte)'7', ..] => "it is a cpio archive: pass it with --initrd",
        [(byte)'!', (byte)'<', (byte)'a', (byte)'r', (byte)'c', (byte)'h', ..] => "it is a Debian package or library: extract it",
        [(byte)'B', (byte)'Z', (byte)'h', ..] => "bzip2 data",
        _ => $"starts with {Convert.ToHexString(image[..Math.Min(4, image.Length)]).ToLowerInvariant()}",
    };
}
