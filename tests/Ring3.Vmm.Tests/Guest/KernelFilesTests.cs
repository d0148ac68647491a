using Ring3.Vmm.Tests.Boot;

namespace Ring3.Vmm.Tests.Guest;

/// <summary>Modules of kernels that are not the default one.</summary>
public sealed class KernelFilesTests : IDisposable
{
    private static readonly string[] s_names = ["virtio-rng", "fuse", "none"];
    private readonly string _directory = Directory.CreateTempSubdirectory("ring3-kernel").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private string Put(string path, byte[] content)
    {
        string file = Path.Combine(_directory, path);
        Directory.CreateDirectory(Path.GetDirectoryName(file)!);
        File.WriteAllBytes(file, content);
        return file;
    }

    /// <summary>A kernel that says which release it is.</summary>
    private static byte[] Kernel(string release)
    {
        byte[] image = LoaderTests.BzImage(0x20f, xloadflags: 1);
        image[0x20e] = 0x00;
        image[0x20f] = 0x03;
        System.Text.Encoding.ASCII.GetBytes(release + " (who) #1\0").CopyTo(image.AsSpan(0x500));
        return image;
    }

    [Fact]
    public void OfAPackage_AreBesideIt()
    {
        byte[] image = Kernel("6.1.0-9-test");
        string kernel = Put("boot/vmlinuz-6.1.0-9-test", image);
        Put("lib/modules/6.1.0-9-test/kernel/drivers/char/virtio_rng.ko", [1]);
        Put("lib/modules/6.1.0-9-test/kernel/fs/fuse/fuse.ko.xz", [2]);
        Assert.Equal(["virtio-rng", "fuse"], KernelFiles.Modules(kernel, image, s_names).Select(m => m.Name));
        Assert.Equal("6.1.0-9-test", KernelFiles.Release(image));
    }

    [Fact]
    public void OfATree_AreThoseThatItsBuildHasListed()
    {
        byte[] image = Kernel("6.1.0-9-none");
        Put("tree/arch/x86/boot/bzImage", image);
        Put("tree/drivers/char/hw_random/virtio-rng.ko", [1]);
        Put("tree/fs/fuse/fuse.ko", [2]);
        Put("tree/old/none.ko", [3]);
        Put("tree/modules.order", "drivers/char/hw_random/virtio-rng.o\nkernel/fs/fuse/fuse.ko\nnot/there.o\n"u8.ToArray());
        string kernel = KernelFiles.Image(Path.Combine(_directory, "tree"));
        Assert.EndsWith("/bzImage", kernel);
        Assert.Equal(["virtio-rng", "fuse"], KernelFiles.Modules(kernel, image, s_names).Select(m => m.Name));
        Assert.Contains("nothing was built", Assert.Throws<BootException>(() => KernelFiles.Image(_directory)).Message);
    }

    [Theory]
    [InlineData("../../etc", "")]
    [InlineData("..", "")]
    [InlineData("6.1.0", "6.1.0")]
    public void Releases_AreNames(string text, string release) => Assert.Equal(release, KernelFiles.Release(Kernel(text)));
}
