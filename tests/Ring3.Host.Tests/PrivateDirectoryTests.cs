namespace Ring3.Host.Tests;

public sealed class PrivateDirectoryTests : IDisposable
{
    private const int EPERM = 1, ENOENT = 2, ENOTDIR = 20;
    private readonly string _directory = Directory.CreateTempSubdirectory("ring3-private").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private string Place(string name) => Path.Combine(_directory, name);

    [Fact]
    public void IsMade_AndFoundAgain()
    {
        for (int i = 0; i < 2; i++)
        {
            Assert.Equal(0, PrivateDirectory.TryOpen(Place("new"), out PrivateDirectory? directory));
            directory!.Enter();
            directory.Dispose();
        }
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute, File.GetUnixFileMode(Place("new")));
    }

    [Fact]
    public void WhatOthersCanUse_IsNot()
    {
        Directory.CreateDirectory(Place("open"), UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute | UnixFileMode.GroupExecute);
        Assert.Equal(-EPERM, PrivateDirectory.TryOpen(Place("open"), out _));
        Directory.CreateDirectory(Place("mine"), UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        File.CreateSymbolicLink(Place("link"), Place("mine"));
        Assert.Equal(-ENOTDIR, PrivateDirectory.TryOpen(Place("link"), out _));
        File.WriteAllText(Place("file"), "");
        Assert.Equal(-ENOTDIR, PrivateDirectory.TryOpen(Place("file"), out _));
        Assert.Equal(-ENOENT, PrivateDirectory.TryOpen(Place("none/new"), out _));
    }

    /// <summary>Who comes second waits until the first has gone.</summary>
    [Fact]
    public void IsOnesAtATime()
    {
        Assert.Equal(0, PrivateDirectory.TryOpen(Place("one"), out PrivateDirectory? first));
        Assert.Equal(0, PrivateDirectory.TryOpen(Place("one"), out PrivateDirectory? second));
        first!.Enter();
        bool gone = false, seen = false;
        var thread = new Thread(() =>
        {
            second!.Enter();
            seen = Volatile.Read(ref gone);
            second.Dispose();
        });
        thread.Start();
        Volatile.Write(ref gone, true);
        first.Dispose();
        thread.Join();
        Assert.True(seen);
    }
}
