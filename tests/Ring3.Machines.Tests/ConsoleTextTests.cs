using System.Text;
using Xunit;

namespace Ring3.Machines.Tests;

/// <summary>What a console has said, and who waits for it.</summary>
public class ConsoleTextTests
{
    private readonly ConsoleText _console = new();

    private void Say(string text)
    {
        foreach (byte b in Encoding.UTF8.GetBytes(text))
            _console.Transmit(b);
    }

    [Fact]
    public void WhatWasSaid_IsFoundAtOnce()
    {
        Say("one zwölf three");
        Assert.True(_console.WaitFor("zwölf", TimeSpan.Zero));
        Assert.False(_console.WaitFor("four", TimeSpan.Zero));
        Assert.Equal("one zwölf three", _console.Text);
    }

    [Fact]
    public async Task WhoWaits_IsWokenByTheLastByte()
    {
        Say("the");
        var waiter = Task.Run(() => _console.WaitFor("the end", Timeout.InfiniteTimeSpan), TestContext.Current.CancellationToken);
        Say(" end");
        Assert.True(await waiter);
    }

    [Fact]
    public async Task WhoWaits_IsWokenByTheEnd()
    {
        var waiter = Task.Run(() => _console.WaitFor("never", Timeout.InfiniteTimeSpan), TestContext.Current.CancellationToken);
        _console.End();
        Assert.False(await waiter);
        Assert.False(_console.WaitFor("never", Timeout.InfiniteTimeSpan));
    }

    [Fact]
    public void TheEnd_IsKept()
    {
        Say("begin");
        Say(new string('x', 4 * ConsoleText.KeptBytes));
        Say("end");
        Assert.InRange(_console.Text.Length, ConsoleText.KeptBytes, 2 * ConsoleText.KeptBytes);
        Assert.EndsWith("xend", _console.Text, StringComparison.Ordinal);
        Assert.False(_console.WaitFor("begin", TimeSpan.Zero));
    }
}
