namespace Ring3.Vmm.Tests;

public class VsockOptionTests
{
    [Fact]
    public void Words_AreRead()
    {
        Assert.Equal(new VsockOption("/a,b", 3), VsockOption.Parse("/a,,b", out _));
        Assert.Equal(new VsockOption("/a", 40), VsockOption.Parse("/a,cid=40", out _));
    }

    [Theory]
    [InlineData("")]
    [InlineData("/a,cid=2")]
    [InlineData("/a,cid=4294967295")]
    [InlineData("/a,cid=x")]
    [InlineData("/a,port=1")]
    [InlineData("/a,cid=3,cid=4")]
    public void OtherWords_AreRefused(string text)
    {
        Assert.Null(VsockOption.Parse(text, out string error));
        Assert.Contains("--vsock", error);
    }
}
