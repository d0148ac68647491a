using System.Formats.Tar;
using System.IO.Compression;
using System.Text;

namespace Ring3.Vmm.Tests.Guest;

/// <summary>What is taken out of a Debian package.</summary>
public sealed class DebianPackagesTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("ring3-deb").FullName;

    public void Dispose() => Directory.Delete(_folder, true);

    /// <summary>A package of one file, whose archive is filled up with more than a pipe holds.</summary>
    private string Package(string path, string content)
    {
        MemoryStream data = new();
        using (GZipStream zip = new(data, CompressionLevel.Fastest, leaveOpen: true))
        {
            using (TarWriter tar = new(zip, TarEntryFormat.Ustar, leaveOpen: true))
                tar.WriteEntry(new UstarTarEntry(TarEntryType.RegularFile, path) { DataStream = new MemoryStream(Encoding.ASCII.GetBytes(content)) });
            zip.Write(new byte[4 << 20]);
        }
        MemoryStream control = new();
        using (GZipStream zip = new(control, CompressionLevel.Fastest, leaveOpen: true))
        using (TarWriter tar = new(zip, TarEntryFormat.Ustar, leaveOpen: true))
            tar.WriteEntry(new UstarTarEntry(TarEntryType.RegularFile, "./control") { DataStream = new MemoryStream("Package: p\n"u8.ToArray()) });
        string deb = Path.Combine(_folder, "p.deb");
        using FileStream file = File.Create(deb);
        file.Write("!<arch>\n"u8);
        Member(file, "debian-binary", "2.0\n"u8.ToArray());
        Member(file, "control.tar.gz", control.ToArray());
        Member(file, "data.tar.gz", data.ToArray());
        return deb;
    }

    private static void Member(FileStream file, string name, byte[] content)
    {
        file.Write(Encoding.ASCII.GetBytes($"{name,-16}{0,-12}{0,-6}{0,-6}{100644,-8}{content.Length,-10}`\n"));
        file.Write(content);
        if ((content.Length & 1) != 0)
            file.WriteByte((byte)'\n');
    }

    [Fact]
    public void WhatAnArchiveIsFilledUpWith_IsTakenToo()
    {
        Assert.SkipUnless(File.Exists("/usr/bin/dpkg-deb"), "dpkg-deb is not installed");
        string deb = Package("./boot/vmlinuz-1", "kernel"), to = Path.Combine(_folder, "to");
        Directory.CreateDirectory(to);
        DebianPackages.ExtractAll(deb, path => path == "boot/vmlinuz-1" ? "all" : null, to);
        Assert.Equal("boot/vmlinuz-1", DebianPackages.Extract(deb, path => path.StartsWith("boot/", StringComparison.Ordinal), Path.Combine(to, "one")));
        Assert.Equal(["kernel", "kernel"], new[] { "all", "one" }.Select(name => File.ReadAllText(Path.Combine(to, name))));
    }
}
