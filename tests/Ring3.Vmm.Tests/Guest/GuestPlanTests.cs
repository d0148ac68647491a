using Ring3.Vmm.Tests.Boot;

namespace Ring3.Vmm.Tests.Guest;

public class GuestPlanTests : IDisposable
{
    private readonly string _directory = Directory.CreateTempSubdirectory("ring3-plan").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private string File(string name, byte[] content)
    {
        string path = Path.Combine(_directory, name);
        System.IO.File.WriteAllBytes(path, content);
        return path;
    }

    private GuestPlan Plan(BootOptions options) => GuestPlan.Prepare(options, new GuestCache(_ => { }, _directory), default);

    private static byte[] Multiboot => LoaderTests.MultibootKludge(0x10_0000, 0x10_0040);

    /// <summary>The words behind a module's file are part of its string; a file whose name has spaces is found first.</summary>
    [Fact]
    public void ModulesHaveWords()
    {
        string plain = File("vmlinuz", [1]), spaced = File("my file", [2]);
        GuestPlan plan = Plan(new BootOptions { Kernel = File("xen.gz", Initramfs.Gzip(Multiboot)), Initrd = [plain, $"{plain} console=hvc0  root=x", spaced,
            $"{spaced} a", $"{spaced}  b "] });
        Assert.Equal(Multiboot, plan.Kernel);
        Assert.Equal(["vmlinuz", "vmlinuz console=hvc0  root=x", "my file", "my file a", "my file  b "], plan.Request.Modules.Select(m => m.Name));
        Assert.Equal([1, 1, 2, 2, 2], plan.Request.Modules.Select(m => m.Data.Span[0]));
        var e = Assert.Throws<BootException>(() => Plan(new BootOptions { Kernel = File("k", Multiboot), Initrd = [$"{plain}x a b"] }));
        Assert.Equal((ExitStatus.NoInput, $"{plain}x: no such file"), (e.Status, e.Message));
    }

    /// <summary>What is no Linux gets neither Linux's words nor its RAM disk, and no --exec.</summary>
    [Fact]
    public void OthersGetTheirOwnWordsOnly()
    {
        byte[] image = LoaderTests.BzImage(0x207, xloadflags: 0);
        image[0x20f] = 3;
        "1.21.1\0"u8.CopyTo(image.AsSpan(0x500));
        string kernel = File("ipxe.lkrn", image);
        GuestPlan plan = Plan(new BootOptions { Kernel = kernel, Append = "dhcp" });
        Assert.Equal("dhcp", plan.Request.CommandLine);
        Assert.Empty(plan.Request.Modules);
        Assert.Contains("needs a Linux kernel", Assert.Throws<BootException>(() => Plan(new BootOptions { Kernel = kernel, Exec = "x" })).Message);
    }
}
