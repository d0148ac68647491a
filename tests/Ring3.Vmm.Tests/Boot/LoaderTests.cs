using System.Buffers.Binary;
using System.Text;

namespace Ring3.Vmm.Tests.Boot;

public class LoaderTests : IDisposable
{
    private readonly MachineRam _ram = new(128 << 20);

    public void Dispose() => _ram.Dispose();

    private EntryState Load(byte[] image, BootRequest? request = null) => KernelLoader.Load(image, "kernel", _ram, request ?? new BootRequest());

    private string Refused(byte[] image, BootRequest? request = null)
    {
        var e = Assert.Throws<BootException>(() => Load(image, request));
        Assert.DoesNotContain('\n', e.Message);
        return e.Message;
    }

    private static void U16(byte[] b, int at, int v) => BinaryPrimitives.WriteUInt16LittleEndian(b.AsSpan(at), (ushort)v);
    private static void U32(byte[] b, int at, long v) => BinaryPrimitives.WriteUInt32LittleEndian(b.AsSpan(at), (uint)v);
    private static void U64(byte[] b, int at, long v) => BinaryPrimitives.WriteInt64LittleEndian(b.AsSpan(at), v);

    internal static byte[] BzImage(int version = 0x20f, int xloadflags = 1, int codeBytes = 4096)
    {
        const int Setup = 5 * 512;
        var b = new byte[Setup + codeBytes];
        b[0x1f1] = 4;
        U16(b, 0x1fe, 0xaa55);
        b[0x201] = 0x6a;
        "HdrS"u8.CopyTo(b.AsSpan(0x202));
        U16(b, 0x206, version);
        b[0x211] = 1;
        U32(b, 0x22c, 0x7fff_ffff);
        U16(b, 0x236, xloadflags);
        U32(b, 0x238, 2047);
        U64(b, 0x258, 0x100_0000);
        U32(b, 0x260, 0x100_0000);
        for (int i = 0; i < codeBytes; i++)
            b[Setup + i] = (byte)i;
        return b;
    }

    internal static byte[] Elf64(ulong entry, ulong paddr, byte[] code, byte[]? note = null, int bss = 0)
    {
        var b = new byte[0x1000 + code.Length];
        ElfImage.Magic.CopyTo(b);
        b[4] = 2;
        b[5] = b[6] = 1;
        U16(b, 16, 2);
        U16(b, 18, 62);
        U64(b, 24, (long)entry);
        U64(b, 32, 64);
        U16(b, 54, 56);
        U16(b, 56, note is null ? 1 : 2);
        U32(b, 64, 1);
        U64(b, 72, 0x1000);
        U64(b, 88, (long)paddr);
        U64(b, 96, code.Length);
        U64(b, 104, code.Length + bss);
        code.CopyTo(b, 0x1000);
        if (note is not null)
        {
            U32(b, 120, 4);
            U64(b, 128, 0x800);
            U64(b, 152, note.Length);
            note.CopyTo(b, 0x800);
        }
        return b;
    }

    [Fact]
    public void BzImage64()
    {
        var request = new BootRequest { CommandLine = "console=ttyS0 x", Modules = [new("a", new byte[] { 1, 2, 3 }), new("b", new byte[] { 4, 5 })],
            Rsdp = 0xe0000, RandomSeed = new byte[32] };
        EntryState e = Load(BzImage(), request);
        Assert.Equal((EntryMode.Long64, 0x100200UL, MemoryLayout.ZeroPage), (e.Mode, e.Rip, e.Rsi));
        Assert.Equal(0xff, _ram.Span(0x1000ff, 1, "")[0]);
        Span<byte> zp = _ram.Span(MemoryLayout.ZeroPage, 4096, "");
        Assert.Equal("HdrS", Encoding.ASCII.GetString(zp.Slice(0x202, 4)));
        Assert.Equal(0xff, zp[0x210]);
        Assert.Equal(0xe0000UL, BinaryPrimitives.ReadUInt64LittleEndian(zp[0x70..]));
        uint cmdline = BinaryPrimitives.ReadUInt32LittleEndian(zp[0x228..]);
        Assert.Equal("console=ttyS0 x\0", Encoding.ASCII.GetString(_ram.Span(cmdline, 16, "")));
        uint initrd = BinaryPrimitives.ReadUInt32LittleEndian(zp[0x218..]), size = BinaryPrimitives.ReadUInt32LittleEndian(zp[0x21c..]);
        Assert.Equal(6u, size);
        Assert.Equal(0u, initrd % 4096);
        Assert.Equal([1, 2, 3, 0, 4, 5], _ram.Span(initrd, 6, "").ToArray());
        Assert.Equal(E820.Build(_ram).Length, zp[0x1e8]);
        ulong seed = BinaryPrimitives.ReadUInt64LittleEndian(zp[0x250..]);
        Assert.Equal(9u, BinaryPrimitives.ReadUInt32LittleEndian(_ram.Span(seed, 16, "")[8..]));
        // The identity map covers the kernel, its data and 4 GiB.
        Span<byte> pd = _ram.Span(e.Cr3 + 0x2000, 8, "");
        Assert.Equal(0x83UL, BinaryPrimitives.ReadUInt64LittleEndian(pd));
    }

    [Fact]
    public void BzImage32AndReal()
    {
        Assert.Equal((EntryMode.Protected32, 0x100000UL), (Load(BzImage(xloadflags: 0)).Mode, Load(BzImage(xloadflags: 0)).Rip));
        EntryState real = Load(BzImage(), new BootRequest { Protocol = BootProtocol.Linux16, CommandLine = "x" });
        Assert.Equal((EntryMode.Real16, (ushort)0x1020, (ushort)0x1000), (real.Mode, real.Cs, real.Ds));
        Assert.True(real.IsBootDisk);
        Assert.Contains("no 64-bit entry", Refused(BzImage(xloadflags: 0), new BootRequest { Protocol = BootProtocol.Linux64 }));
    }

    [Fact]
    public void BadBzImages()
    {
        Assert.Contains("truncated", Refused(BzImage()[..2000]));
        byte[] low = BzImage();
        low[0x211] = 0;
        Assert.Contains("zImage", Refused(low));
        byte[] old = BzImage();
        U16(old, 0x206, 0x1ff);
        Assert.Contains("too old", Refused(old));
        byte[] payload = BzImage();
        U32(payload, 0x24c, 1 << 20);
        Assert.Contains("truncated", Refused(payload));
        byte[] big = BzImage();
        U32(big, 0x260, 0x1000_0000);
        Assert.Contains("too little memory", Refused(big));
        Assert.Contains("command line is too long", Refused(BzImage(), new BootRequest { CommandLine = new string('x', 3000) }));
        Assert.Contains("initrd", Refused(BzImage(), new BootRequest { Modules = [new("i", new byte[110 << 20])] }));
    }

    [Fact]
    public void ElfByPvhAndBy64BitEntry()
    {
        byte[] note = [4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, (byte)'X', (byte)'e', (byte)'n', 0, 0x10, 0, 0x20, 0];
        EntryState pvh = Load(Elf64(0x20_0000, 0x20_0000, [1, 2, 3, 4], note, bss: 100), new BootRequest { Rsdp = 0xe0000 });
        Assert.Equal((EntryMode.Protected32, 0x20_0010UL), (pvh.Mode, pvh.Rip));
        Assert.Equal(0x336ec578u, BinaryPrimitives.ReadUInt32LittleEndian(_ram.Span(pvh.Rbx, 4, "")));
        EntryState e = Load(Elf64(0x20_0000, 0x20_0000, [1, 2, 3, 4]));
        Assert.Equal((EntryMode.Long64, 0x20_0000UL), (e.Mode, e.Rip));
        Assert.Contains("no PVH entry", Refused(Elf64(0x20_0000, 0x20_0000, [1]), new BootRequest { Protocol = BootProtocol.Pvh }));
        Assert.Contains("below", Refused(Elf64(0x1000, 0x1000, [1])));
        Assert.Contains("too little memory", Refused(Elf64(0, 0x4000_0000, [1])));
        byte[] arm = Elf64(0, 0x20_0000, [1]);
        U16(arm, 18, 183);
        Assert.Contains("not x86", Refused(arm));
    }

    internal static byte[] MultibootKludge(uint load, uint entry)
    {
        var b = new byte[512];
        U32(b, 16, 0x1bad_b002);
        U32(b, 20, 0x10003);
        U32(b, 24, -(0x1bad_b002L + 0x10003));
        U32(b, 28, load + 16);
        U32(b, 32, load);
        U32(b, 36, load + 512);
        U32(b, 40, load + 4096);
        U32(b, 44, entry);
        return b;
    }

    [Fact]
    public void MultibootByAddresses()
    {
        EntryState e = Load(MultibootKludge(0x10_0000, 0x10_0040), new BootRequest { CommandLine = "a b", Modules = [new("mod one", new byte[5000])] });
        Assert.Equal((EntryMode.Protected32, 0x10_0040UL, 0x2bad_b002UL), (e.Mode, e.Rip, e.Rax));
        Span<byte> info = _ram.Span(e.Rbx, 88, "");
        uint U(int at, Span<byte> s) => BinaryPrimitives.ReadUInt32LittleEndian(s[at..]);
        Assert.Equal(1u | 4 | 8 | 64 | 512, U(0, info));
        Assert.Equal("kernel a b\0", Encoding.ASCII.GetString(_ram.Span(U(16, info), 11, "")));
        Span<byte> mod = _ram.Span(U(24, info), 16, "");
        Assert.Equal(5000u, U(4, mod) - U(0, mod));
        Assert.True(U(0, mod) >= 0x10_1000);
        Assert.Equal("mod one\0", Encoding.ASCII.GetString(_ram.Span(U(8, mod), 8, "")));
    }

    /// <summary>An image may lie anywhere in conventional memory; what the loader adds then lies elsewhere.</summary>
    [Theory]
    [InlineData(0x600)]
    [InlineData(0x1000)]
    [InlineData(0x8000)]
    [InlineData(0x1_f000)]
    [InlineData(0x9_ec00)]
    public void MultibootBelowOneMiB(uint load)
    {
        byte[] image = MultibootKludge(load, load + 0x40);
        for (int i = 0x40; i < image.Length; i++)
            image[i] = (byte)i;
        EntryState e = Load(image, new BootRequest { CommandLine = "a b", Modules = [new("m", new byte[] { 7 })] });
        Assert.Equal(load + 0x40UL, e.Rip);
        Assert.Equal(image, _ram.Span(load, image.Length, "").ToArray());
        Assert.Equal(new byte[4096 - 512], _ram.Span(load + 512, 4096 - 512, "").ToArray());
        Span<byte> info = _ram.Span(e.Rbx, 88, "");
        Assert.Equal("kernel a b\0", Encoding.ASCII.GetString(_ram.Span(BinaryPrimitives.ReadUInt32LittleEndian(info[16..]), 11, "")));
        Span<byte> mod = _ram.Span(BinaryPrimitives.ReadUInt32LittleEndian(info[24..]), 16, "");
        Assert.Equal(7, _ram.Span(BinaryPrimitives.ReadUInt32LittleEndian(mod), 1, "")[0]);
    }

    /// <summary>All of conventional memory may be the image's: then the information lies behind it, above 1 MiB.</summary>
    [Fact]
    public void MultibootThatFillsLowMemory()
    {
        byte[] image = MultibootKludge(0x600, 0x640);
        U32(image, 40, (long)MemoryLayout.Ebda);
        Assert.True(Load(image).Rbx >= MemoryLayout.OneMiB);
    }

    [Theory]
    [InlineData(0u)]
    [InlineData(0x5ffu)]
    [InlineData(0x9_ec01u)]
    [InlineData(0xf_f000u)]
    [InlineData(0xa_0000u)]
    public void MultibootOverTheFirmware(uint load) => Assert.Contains("firmware's memory", Refused(MultibootKludge(load, load)));

    [Fact]
    public void MultibootBeyondMemory() => Assert.Contains("too little memory", Refused(MultibootKludge(0x7ff_f800, 0x7ff_f800)));

    /// <summary>Class 32 for an x86-64 processor: PVH kernels that change to long mode themselves.</summary>
    [Fact]
    public void Elf32ForX64()
    {
        byte[] note = [4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, (byte)'X', (byte)'e', (byte)'n', 0, 0x10, 0, 0x20, 0];
        byte[] image = Elf32(0x20_0000, [1, 2, 3, 4], note);
        Assert.Equal((EntryMode.Protected32, 0x20_0010UL), (Load(image).Mode, Load(image).Rip));
        Assert.Equal([1, 2, 3, 4], _ram.Span(0x20_0000, 4, "").ToArray());
        Assert.False(KernelLoader.IsI386(image, "kernel"));
        U16(image, 18, 3);
        Assert.Equal(0x20_0010UL, Load(image).Rip);
        Assert.True(KernelLoader.IsI386(image, "kernel"));
    }

    private static byte[] Elf32(uint paddr, byte[] code, byte[] note)
    {
        var b = new byte[0x1000 + code.Length];
        ElfImage.Magic.CopyTo(b);
        b[4] = b[5] = b[6] = 1;
        U16(b, 16, 2);
        U16(b, 18, 62);
        U32(b, 24, paddr);
        U32(b, 28, 52);
        U16(b, 42, 32);
        U16(b, 44, 2);
        U32(b, 52, 1);
        U32(b, 56, 0x1000);
        U32(b, 64, paddr);
        U32(b, 68, code.Length);
        U32(b, 72, code.Length);
        code.CopyTo(b, 0x1000);
        U32(b, 84, 4);
        U32(b, 88, 0x800);
        U32(b, 100, note.Length);
        note.CopyTo(b, 0x800);
        return b;
    }

    /// <summary>Before 2.08 only the real-mode part is sure to be what the protocol says.</summary>
    [Theory]
    [InlineData(0x201, EntryMode.Protected32)]
    [InlineData(0x202, EntryMode.Real16)]
    [InlineData(0x207, EntryMode.Real16)]
    [InlineData(0x208, EntryMode.Protected32)]
    public void EntryByProtocolVersion(int version, EntryMode mode)
    {
        Assert.Equal(mode, Load(BzImage(version, xloadflags: 0)).Mode);
        Assert.Equal(EntryMode.Protected32, Load(BzImage(version, xloadflags: 0), new BootRequest { Protocol = BootProtocol.Linux32 }).Mode);
    }

    [Fact]
    public void WhatABzImageIs()
    {
        byte[] image = BzImage();
        Assert.False(KernelLoader.IsI386(image, "k"));
        Assert.True(KernelLoader.IsI386(BzImage(xloadflags: 0), "k"));
        Assert.True(KernelLoader.IsI386(BzImage(0x208, xloadflags: 0), "k"));
        Assert.True(KernelLoader.IsLinux(image, "k"));
        void Version(string text)
        {
            U16(image, 0x20e, 0x300);
            Encoding.ASCII.GetBytes(text + "\0").CopyTo(image, 0x500);
        }
        Version("6.1.0-50-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-02)");
        Assert.True(KernelLoader.IsLinux(image, "k"));
        Version("Memtest86+ v6.10");
        Assert.False(KernelLoader.IsLinux(image, "k"));
        Version("1.0.0+git-20190125.36a4c85-5.1");
        Assert.False(KernelLoader.IsLinux(image, "k"));
        U16(image, 0x20e, 0xffff);
        Assert.True(KernelLoader.IsLinux(image, "k"));
        Assert.False(KernelLoader.IsLinux(BzImage(0x203), "k"));
    }

    [Fact]
    public void CompressedKernelFiles()
    {
        byte[] kernel = MultibootKludge(0x10_0000, 0x10_0040), packed = Ring3.Vmm.Initramfs.Gzip(kernel);
        Assert.Equal(kernel, KernelLoader.Unpack(packed, "xen.gz"));
        Assert.Same(kernel, KernelLoader.Unpack(kernel, "xen"));
        var e = Assert.Throws<BootException>(() => KernelLoader.Unpack([0x1f, 0x8b, 8, 0, .. new byte[30].Select(_ => (byte)0xff)], "xen.gz"));
        Assert.Contains("damaged", e.Message);
        Assert.Contains("not a kernel", Refused(KernelLoader.Unpack(Ring3.Vmm.Initramfs.Gzip("just text"u8), "text.gz")));
    }

    [Fact]
    public void BootSectorAndStrangers()
    {
        var sector = new byte[1024];
        sector[0] = 0xeb;
        U16(sector, 510, 0xaa55);
        EntryState e = Load(sector);
        Assert.Equal((EntryMode.Real16, 0x7c00UL, (ushort)0, 0x80UL), (e.Mode, e.Rip, e.Cs, e.Rdx));
        // GRUB's disks have a Multiboot header as well; they are disks, unless asked for otherwise.
        byte[] both = [.. sector[..512], .. MultibootKludge(0x10_0000, 0x10_0040)];
        Assert.True(Load(both).IsBootDisk);
        Assert.Equal(0x10_0040UL, Load(both, new BootRequest { Protocol = BootProtocol.Multiboot }).Rip);
        Assert.Contains("empty", Refused([]));
        Assert.Contains("gzip", Refused([0x1f, 0x8b, 8, 0]));
        Assert.Contains("not a kernel", Refused(new byte[100]));
    }

    /// <summary>Damaged images must be refused or load; nothing else. Seeded, so a failure repeats.</summary>
    [Fact]
    public void MutatedImagesNeverThrowAnythingElse()
    {
        byte[] note = [4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, (byte)'X', (byte)'e', (byte)'n', 0, 0x10, 0, 0x20, 0];
        byte[][] seeds = [BzImage(), Elf64(0x20_0000, 0x20_0000, new byte[64], note), MultibootKludge(0x10_0000, 0x10_0040)];
        var random = new Random(20260101);
        for (int i = 0; i < 20_000; i++)
        {
            byte[] image = [.. seeds[i % seeds.Length]];
            for (int n = random.Next(1, 6); n > 0; n--)
            {
                int at = random.Next(Math.Min(image.Length, i % 3 == 0 ? 0x270 : 0x100));
                image[at] = random.Next(3) switch { 0 => 0xff, 1 => (byte)random.Next(256), _ => 0 };
            }
            if (random.Next(8) == 0)
                image = image[..random.Next(image.Length)];
            try { Load(image, new BootRequest { CommandLine = "x" }); }
            catch (BootException) { }
        }
    }
}
