using System.Buffers.Binary;

namespace Ring3.Vmm;

/// <summary>Linux's struct boot_params ("zero page"). SPEC: Documentation/arch/x86/boot.rst and zero-page.rst.</summary>
internal static class BootParams
{
    public const int Bytes = 4096, SetupHeader = 0x1f1, MaxE820 = 128;
    private const int AcpiRsdp = 0x70, ExtRamdiskImage = 0xc0, E820Entries = 0x1e8, E820Table = 0x2d0, AltMemK = 0x1e0, ScreenInfoMode = 0x06;
    public const int TypeOfLoader = 0x210, LoadFlags = 0x211, Code32Start = 0x214, RamdiskImage = 0x218, RamdiskSize = 0x21c, HeapEndPtr = 0x224,
        CmdLinePtr = 0x228, SetupData = 0x250, VidMode = 0x1fa;

    /// <summary>Fields of the setup header that the loader reads.</summary>
    public const int SetupSects = 0x1f1, BootFlag = 0x1fe, JumpLength = 0x201, HeaderMagic = 0x202, Version = 0x206, KernelVersion = 0x20e,
        InitrdAddrMax = 0x22c, KernelAlignment = 0x230, RelocatableKernel = 0x234, XLoadFlags = 0x236, CmdlineSize = 0x238,
        PayloadOffset = 0x248, PayloadLength = 0x24c, PrefAddress = 0x258, InitSize = 0x260;

    public const byte LoadedHigh = 1, CanUseHeap = 0x80;
    public const ushort Kernel64 = 1;
    /// <summary>type_of_loader: "unregistered boot loader".</summary>
    public const byte UnregisteredLoader = 0xff;

    /// <summary>Writes the zero page: the image's setup header with the loader's fields, memory map, RAM disk, command line, RSDP and random seed.</summary>
    public static void Write(MachineRam ram, ReadOnlySpan<byte> setupHeader, BootRequest request, (ulong Address, uint Bytes) initrd)
    {
        ram.Clear(MemoryLayout.ZeroPage, Bytes, "boot_params");
        Span<byte> page = ram.Span(MemoryLayout.ZeroPage, Bytes, "boot_params");
        setupHeader[..Math.Min(setupHeader.Length, E820Table - SetupHeader)].CopyTo(page[SetupHeader..]);
        page[TypeOfLoader] = UnregisteredLoader;
        BinaryPrimitives.WriteUInt32LittleEndian(page[RamdiskImage..], (uint)initrd.Address);
        BinaryPrimitives.WriteUInt32LittleEndian(page[RamdiskSize..], initrd.Bytes);
        BinaryPrimitives.WriteUInt32LittleEndian(page[ExtRamdiskImage..], (uint)(initrd.Address >> 32));
        BinaryPrimitives.WriteUInt32LittleEndian(page[CmdLinePtr..], (uint)MemoryLayout.CommandLine);
        BinaryPrimitives.WriteUInt64LittleEndian(page[AcpiRsdp..], request.Rsdp);
        BinaryPrimitives.WriteUInt64LittleEndian(page[SetupData..], WriteRandomSeed(ram, request));
        BinaryPrimitives.WriteUInt32LittleEndian(page[AltMemK..],
            (uint)Math.Min((ram.LowRamEnd - Math.Min(ram.LowRamEnd, MemoryLayout.OneMiB)) >> 10, uint.MaxValue));
        page[ScreenInfoMode] = 3; // 80x25 text; there is no display behind it
        E820Entry[] map = E820.Build(ram);
        page[E820Entries] = (byte)map.Length;
        for (int i = 0; i < map.Length; i++)
        {
            Span<byte> e = page[(E820Table + 20 * i)..];
            BinaryPrimitives.WriteUInt64LittleEndian(e, map[i].Start);
            BinaryPrimitives.WriteUInt64LittleEndian(e[8..], map[i].Bytes);
            BinaryPrimitives.WriteUInt32LittleEndian(e[16..], (uint)map[i].Kind);
        }
    }

    /// <summary>Writes a setup_data node of type SETUP_RNG_SEED after the command line; returns its address or 0.</summary>
    private static ulong WriteRandomSeed(MachineRam ram, BootRequest request)
    {
        const uint RngSeed = 9;
        if (request.RandomSeed.IsEmpty)
            return 0;
        const ulong At = MemoryLayout.CommandLine + MemoryLayout.CommandLineMax;
        Span<byte> node = ram.Span(At, 16 + request.RandomSeed.Length, "random seed");
        node.Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(node[8..], RngSeed);
        BinaryPrimitives.WriteUInt32LittleEndian(node[12..], (uint)request.RandomSeed.Length);
        request.RandomSeed.Span.CopyTo(node[16..]);
        return At;
    }
}
