using System.Diagnostics;
using Ring3.Vmm.Boot;
using Ring3.Vmm.Tests.Firmware;

namespace Ring3.Vmm.Tests.Boot;

public class XzDecoderTests
{
    /// <summary>xz itself is the oracle, with the options that kernels are packed with; the sample is machine code, so that the branch filter has work.</summary>
    [Theory, InlineData("--check=crc32 --x86 --lzma2=preset=6"), InlineData("-9e"), InlineData("-0 --check=none"), InlineData("--check=sha256 --block-size=65536")]
    public void UnpacksWhatXzPacks(string options)
    {
        string? xz = Tools.Find("xz");
        if (xz is null)
            return;
        byte[] sample = [.. File.ReadAllBytes(typeof(object).Assembly.Location)[..200_000], .. File.ReadAllBytes("/bin/sh"), .. Enumerable.Repeat((byte)0xe8, 500), .. new byte[100_000]];
        byte[] packed = Pack(xz, options, sample);
        var back = new byte[sample.Length];
        Assert.True(XzDecoder.TryUnpack(packed, back));
        Assert.Equal(sample, back);
        Assert.False(XzDecoder.TryUnpack(packed, new byte[sample.Length - 1]));
        Assert.False(XzDecoder.TryUnpack(packed.AsSpan(0, packed.Length / 2), back));
        var random = new Random(7);
        for (int i = 0; i < 6; i++)
        {
            byte[] damaged = [.. packed];
            damaged[random.Next(damaged.Length)] ^= (byte)random.Next(1, 256);
            XzDecoder.TryUnpack(damaged, back);
        }
    }

    private static byte[] Pack(string xz, string options, byte[] sample)
    {
        using Process p = Process.Start(new ProcessStartInfo(xz, ["-c", .. options.Split(' ')]) { RedirectStandardInput = true, RedirectStandardOutput = true })!;
        Task write = Task.Run(() => { p.StandardInput.BaseStream.Write(sample); p.StandardInput.Close(); });
        var packed = new MemoryStream();
        p.StandardOutput.BaseStream.CopyTo(packed);
        write.Wait();
        return packed.ToArray();
    }
}
