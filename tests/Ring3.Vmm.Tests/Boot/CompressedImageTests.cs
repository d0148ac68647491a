using System.Diagnostics;
using Ring3.Vmm.Tests.Firmware;

namespace Ring3.Vmm.Tests.Boot;

/// <summary>The packers themselves are the oracle, with the options that kernels are packed with.</summary>
public class CompressedImageTests
{
    private const int MaxBytes = 64 << 20;

    public static TheoryData<string, string> Packers => new()
    {
        { "gzip", "-9 -n" }, { "bzip2", "-9" }, { "xz", "--format=lzma -9" }, { "zstd", "-q -19" }, { "lz4", "-l -9 -q" },
        { "xz", "--check=crc32 --x86 --lzma2=preset=6" }, { "xz", "-9e" }, { "xz", "-0 --check=none" }, { "xz", "--check=sha256 --block-size=65536" },
    };

    [Theory, MemberData(nameof(Packers))]
    public void Packed_IsUnpacked_AndWhatFollowsIsIgnored(string packer, string options)
    {
        byte[] sample = Sample(), packed = Pack(packer, options, sample);
        Assert.True(CompressedImage.IsKnown(packed));
        Assert.Equal(sample, CompressedImage.TryUnpack(packed, MaxBytes));
        Assert.Equal(sample, CompressedImage.TryUnpack(packed, MaxBytes, sample.Length));
        Assert.Equal(sample[..12345], CompressedImage.TryUnpack(packed, 12345));
    }

    [Theory, MemberData(nameof(Packers))]
    public void Damaged_IsRefusedOrAnotherImage(string packer, string options)
    {
        byte[] sample = Sample(), packed = Pack(packer, options, sample);
        var random = new Random(7);
        for (int i = 0; i < 40; i++)
        {
            byte[] damaged = [.. packed];
            damaged[i < 20 ? random.Next(64) : random.Next(damaged.Length)] ^= (byte)random.Next(1, 256);
            Assert.InRange(CompressedImage.TryUnpack(damaged, MaxBytes)?.Length ?? 0, 0, MaxBytes);
        }
        for (int i = 0; i < 10; i++)
            Assert.NotEqual(sample, CompressedImage.TryUnpack(packed.AsSpan(0, random.Next(packed.Length - 64)), MaxBytes));
    }

    [Fact]
    public void Unknown_IsNull()
    {
        Assert.Null(CompressedImage.TryUnpack(new byte[64], MaxBytes));
        Assert.Null(CompressedImage.TryUnpack([], MaxBytes));
        Assert.False(CompressedImage.IsKnown(File.ReadAllBytes("/bin/sh").AsSpan(0, 64)));
    }

    /// <summary>Machine code, so that xz's branch filter has work; 0xe8 bytes in a row; zeros.</summary>
    private static byte[] Sample() =>
        [.. File.ReadAllBytes(typeof(object).Assembly.Location)[..200_000], .. File.ReadAllBytes("/bin/sh"), .. Enumerable.Repeat((byte)0xe8, 500),
            .. new byte[100_000]];

    private static byte[] Pack(string packer, string options, byte[] sample)
    {
        string? path = Tools.Find(packer);
        Assert.SkipWhen(path is null, $"no {packer} on this machine");
        using Process p = Process.Start(new ProcessStartInfo(path!, ["-c", .. options.Split(' ')]) { RedirectStandardInput = true,
            RedirectStandardOutput = true })!;
        Task write = Task.Run(() => { p.StandardInput.BaseStream.Write(sample); p.StandardInput.Close(); });
        var packed = new MemoryStream();
        p.StandardOutput.BaseStream.CopyTo(packed);
        write.Wait();
        return packed.ToArray();
    }
}
