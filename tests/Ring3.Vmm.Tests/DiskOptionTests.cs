namespace Ring3.Vmm.Tests;

public class DiskOptionTests
{
    [Fact]
    public void Words_AreRead()
    {
        Assert.Equal(new DiskOption { Path = "a,b" }, DiskOption.Parse("a,,b", out _));
        Assert.Equal(new DiskOption { Path = "a", ReadOnly = true, Serial = "x=y", PackedRing = false },
            DiskOption.Parse("a,ro,serial=x=y,format=raw,ring=split", out _));
        Assert.True(DiskOption.Parse("a,direct", out _)!.Direct);
        Assert.Equal("qcow2", DiskOption.Parse("a,format=qcow2", out _)!.Format);
    }

    [Theory]
    [InlineData("")]
    [InlineData(",ro")]
    [InlineData("a,")]
    [InlineData("a,rw")]
    [InlineData("a,direct=on")]
    [InlineData("a,serial=")]
    [InlineData("a,serial=012345678901234567890")]
    [InlineData("a,format=qcow3")]
    [InlineData("a,ring=round")]
    public void OtherWords_AreRefused(string text)
    {
        Assert.Null(DiskOption.Parse(text, out string error));
        Assert.Contains("--disk", error);
    }

    [Fact]
    public void Modules_AreTheDevices()
    {
        Assert.Empty(GuestModules.For(new BootOptions()));
        Assert.Contains("virtio_blk", GuestModules.For(new BootOptions { Disks = [new DiskOption { Path = "a" }] }));
        BootOptions root = new() { Disks = [new DiskOption { Path = "a" }], Append = "quiet root=/dev/vda" };
        Assert.True(root.BootsRoot);
        Assert.Contains("ext4", GuestModules.For(root));
        Assert.DoesNotContain("xfs", GuestModules.For(root));
        Assert.Contains("xfs", GuestModules.For(root with { Append = root.Append + " rootfstype=xfs" }));
        Assert.False((root with { Exec = "true" }).BootsRoot);
        Assert.False((root with { Initrd = ["own"] }).BootsRoot);
        Assert.Equal("virtio_blk.ko.xz", GuestModules.FileOf("lib/modules/6.1/kernel/drivers/block/virtio_blk.ko.xz"));
        Assert.Equal("overlay.ko.xz", GuestModules.FileOf("usr/lib/modules/6.12/kernel/fs/overlayfs/overlay.ko.xz"));
        Assert.Null(GuestModules.FileOf("lib/modules/6.1/kernel/drivers/block/loop.ko"));
        Assert.Null(GuestModules.FileOf("lib/modules/6.1/kernel/drivers/block/virtio_blk.ko.sig"));
        Assert.Null(GuestModules.FileOf("usr/virtio_blk.ko"));
    }
}

public class NetOptionTests
{
    [Fact]
    public void Words_AreRead()
    {
        NetOption? net = NetOption.Parse("user,forward=8080:80,forward=2222:22", out string error);
        Assert.Equal("", error);
        Assert.Equal([new NetOption.Forward(8080, 80), new NetOption.Forward(2222, 22)], net!.Forwards);
        Assert.Equal("tap0", NetOption.Parse("tap=tap0", out _)!.Tap);
        Assert.Null(NetOption.Parse("none", out error));
        Assert.Equal("", error);
    }

    [Theory]
    [InlineData("")]
    [InlineData("bridge")]
    [InlineData("tap=")]
    [InlineData("tap=a-name-that-is-too-long")]
    [InlineData("user,forward=80")]
    [InlineData("user,forward=0:80")]
    [InlineData("user,forward=80:65536")]
    [InlineData("user,mtu=9000")]
    public void OtherWords_AreRefused(string text)
    {
        Assert.Null(NetOption.Parse(text, out string error));
        Assert.Contains(error.Contains("TAP", StringComparison.Ordinal) ? "TAP" : "--net", error);
    }
}
