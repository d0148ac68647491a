using Xunit;

namespace Ring3.Machines.Tests;

/// <summary>A PC of the library with a guest of a few instructions. samples/LinuxMachine has Linux in it.</summary>
public sealed class PcTests : IDisposable
{
    // mov dx, 3f8; mov al, '>'; out dx, al; next: mov dx, 3fd; poll: in al, dx; test al, 1; jz poll; mov dx, 3f8; in al, dx; out dx, al; jmp next
    private static readonly byte[] s_echo =
    [
        0xba, 0xf8, 0x03, 0xb0, (byte)'>', 0xee, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xf1,
    ];

    private readonly string _directory = Directory.CreateTempSubdirectory("ring3-machines").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private PcOptions Echo
    {
        get
        {
            string path = Path.Combine(_directory, "sector");
            var sector = new byte[512];
            s_echo.CopyTo(sector, 0);
            (sector[510], sector[511]) = (0x55, 0xaa);
            File.WriteAllBytes(path, sector);
            return new PcOptions { Kernel = path, MemoryBytes = 16 << 20 };
        }
    }

    [Fact]
    public void WhatIsTyped_ComesToTheGuest()
    {
        using Pc pc = Pc.Boot(Echo);
        pc.Type("hello");
        Assert.True(pc.WaitForOutput(">hello", Timeout.InfiniteTimeSpan));
        Assert.True(pc.Pause());
        pc.Type(" again");
        Assert.Equal(">hello", pc.Output);
        pc.Resume();
        Assert.True(pc.WaitForOutput("again", Timeout.InfiniteTimeSpan));
        pc.Stop();
        Assert.Equal(PcEnd.Stopped, pc.Wait());
        Assert.False(pc.WaitForOutput("more", Timeout.InfiniteTimeSpan));
        pc.Type("nobody reads");
    }

    [Fact]
    public void WhatCannotBe_IsALine()
    {
        Assert.Contains("no such file", Assert.Throws<PcException>(() => Pc.Boot(new PcOptions { Kernel = Path.Combine(_directory, "none") })).Message);
        Assert.Contains("no such file", Assert.Throws<PcException>(() => Pc.Restore(Path.Combine(_directory, "none"))).Message);
        Assert.Contains("memory", Assert.Throws<PcException>(() => Pc.Boot(new PcOptions { MemoryBytes = 1 })).Message);
        using Pc pc = Pc.Boot(Echo);
        Assert.Contains("boot sector", Assert.Throws<PcException>(() => pc.Snapshot(Path.Combine(_directory, "snapshot"))).Message);
        Assert.Contains("no disk", Assert.Throws<PcException>(() => pc.RemoveDisk("none")).Message);
        string image = Path.Combine(_directory, "odd");
        File.WriteAllBytes(image, new byte[100]);
        Assert.Contains(image, Assert.Throws<PcException>(() => pc.AddDisk(new PcDisk(image))).Message);
        pc.Dispose();
        Assert.Throws<ObjectDisposedException>(() => pc.RemoveDisk("none"));
    }

    [Fact]
    public void OptionsThatNoMachineHas_AreRefused()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => Pc.Boot(new PcOptions { Processors = 0 }));
        Assert.Throws<ArgumentOutOfRangeException>(() => Pc.Boot(new PcOptions { Processors = 256 }));
        Assert.Throws<ArgumentException>(() => Pc.Boot(new PcOptions { Disks = [new PcDisk("x") { Serial = new string('x', 21) }] }));
        Assert.Throws<ArgumentException>(() => Pc.Boot(new PcOptions { Disks = [new PcDisk("x") { Format = "driver=x" }] }));
        Assert.Throws<ArgumentException>(() => Pc.Boot(new PcOptions { Network = new PcNetwork { Tap = "" } }));
        Assert.Throws<ArgumentException>(() => Pc.Boot(new PcOptions { Network = new PcNetwork { Forwards = new Dictionary<ushort, ushort> { [0] = 80 } } }));
    }
}
