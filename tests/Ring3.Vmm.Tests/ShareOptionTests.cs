namespace Ring3.Vmm.Tests;

public class ShareOptionTests
{
    [Fact]
    public void Words_AreRead()
    {
        Assert.Equal(new ShareOption { Directory = "/a,b:c" }, ShareOption.Parse("/a,,b::c", out _));
        Assert.Equal(new ShareOption { Directory = "/a", Tag = "t", ReadOnly = true }, ShareOption.Parse("/a/:t,ro", out _));
        Assert.Equal(Environment.CurrentDirectory, ShareOption.Parse(".", out _)!.Place);
        Assert.Equal("/host", ShareOption.Parse("/", out _)!.Place);
    }

    [Theory]
    [InlineData("")]
    [InlineData(":t")]
    [InlineData("/a:")]
    [InlineData("/a:t:u")]
    [InlineData("/a,rw")]
    [InlineData("/a,ro,ro")]
    [InlineData("/a:0123456789012345678901234567890123456")]
    [InlineData("/a\nb")]
    public void OtherWords_AreRefused(string text)
    {
        Assert.Null(ShareOption.Parse(text, out string error));
        Assert.Contains("share", error);
    }

    [Fact]
    public void TheDefaultGuest_MountsWhatItIsTold()
    {
        var options = new InitOptions { Mounts = [new GuestMount("t", "/it's", true)] };
        string archive = System.Text.Encoding.UTF8.GetString(Initramfs.BuildOverlay(options, []));
        Assert.Contains("mount -t virtiofs -o ro 't' '/it'\\''s'\n", archive);
        Assert.Contains("virtiofs", GuestModules.For(new BootOptions { Shares = [new ShareOption { Directory = "/a" }] }));
    }
}
