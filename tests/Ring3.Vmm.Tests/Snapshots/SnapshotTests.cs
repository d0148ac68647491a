using Ring3.Host;
using Ring3.Vmm.Tests.Boot;
using Ring3.Vmm.Tests.Devices;

namespace Ring3.Vmm.Tests.Snapshots;

/// <summary>A guest that counts aloud is written to a file while it does, and goes on there.</summary>
public sealed class SnapshotTests : IDisposable
{
    private const int Letters = 16, Enough = 500;

    private readonly string _directory = Directory.CreateTempSubdirectory("ring3-snapshot").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private string PathOf(string name) => Path.Combine(_directory, name);

    /// <summary>Writes the low bits of ECX to COM1 as a letter, and counts.</summary>
    private static byte[] Counter()
    {
        byte[] image = LoaderTests.MultibootKludge(0x10_0000, 0x10_0040);
        ((byte[])[
            0x31, 0xc9, // xor ecx, ecx
            0xba, 0xf8, 0x03, 0x00, 0x00, // again: mov edx, 0x3f8
            0x89, 0xc8, // mov eax, ecx
            0x24, Letters - 1, // and al, 15
            0x04, (byte)'a', // add al, 'a'
            0xee, // out dx, al
            0x41, // inc ecx
            0xeb, 0xf1, // jmp again
        ]).CopyTo(image, 0x50);
        return image;
    }

    /// <summary>What the guest has said. Its processor waits once there is enough, until the test has looked.</summary>
    private sealed class Listener : ISerialSink
    {
        private readonly ManualResetEventSlim _enough = new(false);
        private readonly List<byte> _bytes = [];

        public int Count
        {
            get { lock (_bytes) return _bytes.Count; }
        }

        public byte[] Heard
        {
            get { lock (_bytes) return [.. _bytes]; }
        }

        public void Transmit(byte value)
        {
            lock (_bytes)
                _bytes.Add(value);
            if (Count >= Enough)
                _enough.Set();
        }

        public void WaitForEnough() => Assert.True(_enough.Wait(TimeSpan.FromMinutes(2)));
    }

    private static BootOptions Options => new() { Cpus = 1, MemoryBytes = 16 << 20, Protocol = BootProtocol.Multiboot };

    /// <summary>Runs until there is enough, does something, and ends.</summary>
    private static void Run(Machine machine, Listener listener, Action<Machine> then)
    {
        var runner = new Thread(() => machine.Run());
        runner.Start();
        listener.WaitForEnough();
        try { then(machine); }
        finally { machine.End(MachineEnd.Quit); }
        runner.Join();
    }

    private (string File, int Before, int After) Make(BootOptions? options = null)
    {
        string path = PathOf("a");
        var listener = new Listener();
        using var machine = new Machine(options ?? Options);
        machine.AttachSerial(0, listener);
        byte[] image = Counter();
        // The entry is behind the header.
        BitConverter.GetBytes(0x10_0050).CopyTo(image, 44);
        machine.Load(new GuestPlan(image, "counter", new BootRequest { Protocol = BootProtocol.Multiboot }));
        (int before, int after) = (0, 0);
        Run(machine, listener, m =>
        {
            before = listener.Count;
            m.Snapshot(new SnapshotFolder(path));
            after = listener.Count;
        });
        return (path, before, after);
    }

    private static byte[] RunClone(string path)
    {
        var listener = new Listener();
        using SnapshotFile file = SnapshotFile.Open(path);
        file.Verify();
        using var machine = new Machine(file.Apply(new BootOptions()), file);
        machine.AttachSerial(0, listener);
        machine.Restore(file);
        Run(machine, listener, _ => { });
        return listener.Heard;
    }

    [Fact]
    public void Clones_GoOnWhereTheGuestWas()
    {
        (string path, int before, int after) = Make();
        byte[][] clones = [RunClone(path), RunClone(path)];
        foreach (byte[] heard in clones)
        {
            for (int i = 1; i < Enough; i++)
                Assert.Equal('a' + (heard[0] - 'a' + i) % Letters, heard[i]);
        }
        Assert.Equal(clones[0][0], clones[1][0]);
        // The letter that comes next was said between both looks, or is the next of the second.
        Assert.Contains(Enumerable.Range(before, after - before + 2), n => 'a' + n % Letters == clones[0][0]);
    }

    [Fact]
    public void ADisk_HasToBeWhatItWas()
    {
        string image = PathOf("disk");
        File.WriteAllBytes(image, new byte[1 << 20]);
        string path = Make(Options with { Disks = [new DiskOption { Path = image }] }).File;
        RunClone(path);
        using (SnapshotFile file = SnapshotFile.Open(path))
        using (new Machine(file.Apply(new BootOptions()), file))
            Assert.Contains("in use", Assert.Throws<BootException>(() => RunClone(path)).Message);
        RunClone(path);
        using (FileStream disk = File.OpenWrite(image))
            disk.WriteByte(1);
        BootException changed = Assert.Throws<BootException>(() => RunClone(path));
        Assert.Contains("has been written to since", changed.Message);
        Assert.Equal(ExitStatus.BadImage, changed.Status);
        File.WriteAllBytes(image, new byte[1 << 19]);
        Assert.Contains("and had 1048576", Assert.Throws<BootException>(() => RunClone(path)).Message);
        File.Delete(image);
        Assert.Contains("no such file", Assert.Throws<BootException>(() => RunClone(path)).Message);
    }

    [Fact]
    public void DisksThatAreRead_ServeManyClones()
    {
        string image = PathOf("disk");
        File.WriteAllBytes(image, new byte[1 << 20]);
        string path = Make(Options with { Disks = [new DiskOption { Path = image, ReadOnly = true }] }).File;
        using SnapshotFile file = SnapshotFile.Open(path);
        using var one = new Machine(file.Apply(new BootOptions()), file);
        RunClone(path);
    }

    [Fact]
    public void AnyChangedByteOfTheState_IsRefused()
    {
        string path = Make().File;
        byte[] good = File.ReadAllBytes(path);
        int state = 64 + (int)BitConverter.ToInt64(good, 16);
        for (int at = 0; at < state; at += at < 64 ? 1 : 97)
        {
            byte[] bad = (byte[])good.Clone();
            bad[at] ^= 4;
            File.WriteAllBytes(PathOf("bad"), bad);
            BootException e = Assert.Throws<BootException>(() => SnapshotFile.Open(PathOf("bad")));
            Assert.Equal(ExitStatus.BadImage, e.Status);
        }
    }

    [Fact]
    public void AChangedByteOfTheMemory_IsFoundByVerify()
    {
        string path = Make().File;
        byte[] bytes = File.ReadAllBytes(path);
        bytes[^5] ^= 1;
        File.WriteAllBytes(path, bytes);
        using SnapshotFile file = SnapshotFile.Open(path);
        Assert.Contains("wrong checksum", Assert.Throws<BootException>(file.Verify).Message);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(63)]
    [InlineData(1000)]
    public void ACutFile_IsRefused(int bytes)
    {
        string path = Make().File;
        byte[] good = File.ReadAllBytes(path);
        File.WriteAllBytes(path, good[..bytes]);
        Assert.Equal(ExitStatus.BadImage, Assert.Throws<BootException>(() => SnapshotFile.Open(path)).Status);
        File.WriteAllBytes(path, good[..^1]);
        Assert.Contains("bytes, and should have", Assert.Throws<BootException>(() => SnapshotFile.Open(path)).Message);
    }

    [Fact]
    public void WhatIsNotThere_IsSaidSo() =>
        Assert.Equal((ExitStatus.NoInput, $"{PathOf("none")}: no such file"), Refused(() => SnapshotFile.Open(PathOf("none"))));

    [Fact]
    public void AFolderThatIsNotThere_IsNoPlaceForASnapshot()
    {
        (int status, string message) = Refused(() => SnapshotFile.Write(new SnapshotFolder(PathOf("none/a")), new MachineRam(1 << 20),
            MachineIdentity.Of(Cpu.ProcessorModel.Host), new SnapshotSettings(), _ => { }));
        Assert.Equal(ExitStatus.NoInput, status);
        Assert.StartsWith("cannot write the snapshot", message);
    }

    private static (int Status, string Message) Refused(Action action)
    {
        BootException e = Assert.Throws<BootException>(action);
        return (e.Status, e.Message);
    }

    [Fact]
    public void OtherPrograms_RefuseIt()
    {
        MachineIdentity own = MachineIdentity.Of(Cpu.ProcessorModel.Host);
        Assert.Null(own.Refuse(own with { }));
        Assert.Contains("made by ring3 9", own.Refuse(own with { Version = "9" }));
        Assert.Contains("another build", own.Refuse(own with { Build = "" }));
        Assert.Contains("another processor", own.Refuse(own with { Processor = "amd: Z80" }));
        Assert.Contains("other features", own.Refuse(own with { Features = own.Features ^ 1 }));
    }

    [Fact]
    public void OptionsWithStateOutside_AreRefused()
    {
        Assert.Contains("--disk", Refused(() => Machine.CheckSnapshot(Options with { Disks = [new DiskOption { Path = "x", Format = "qcow2" }] })).Message);
        Machine.CheckSnapshot(Options);
        Machine.CheckSnapshot(Options with { Xen = true, XenFifo = true });
        Machine.CheckSnapshot(Options with { Net = new NetOption(), Vsock = new VsockOption("x", 3) });
    }

    /// <summary>A TAP interface or passt make other cards, and what there is no device for is not given one.</summary>
    [Fact]
    public void WhatDevicesAreConnectedTo_CanBeGivenAnew()
    {
        string socket = PathOf("socket"), path = Make(Options with { Vsock = new VsockOption(socket, 5) }).File;
        using SnapshotFile file = SnapshotFile.Open(path);
        Assert.Equal(new VsockOption(socket, 5), file.Apply(new BootOptions()).Vsock);
        Assert.Null(file.Apply(new BootOptions()).Net);
        var other = new VsockOption(PathOf("other"), 6);
        Assert.Equal(other, file.Apply(new BootOptions { Vsock = other }).Vsock);
        Assert.Contains("no such device", Refused(() => file.Apply(new BootOptions { Net = new NetOption() })).Message);
        using (var one = new Machine(file.Apply(new BootOptions()), file))
            Assert.Contains("is taken", Refused(() => new Machine(file.Apply(new BootOptions()), file)).Message);
        RunClone(path);
    }
}

/// <summary>State of devices, there and back.</summary>
public class DeviceStateTests
{
    [Fact]
    public void SerialPort_KeepsItsInputAndItsLine()
    {
        var line = new FakeLine();
        var port = new SerialPort(new FakeLine(), new FakeSerial());
        port.Out8(4, 8);
        port.Out8(1, 1);
        port.Receive("abc"u8);
        var state = new StateTransfer();
        port.Transfer(state);
        var copy = new SerialPort(line, new FakeSerial());
        copy.Transfer(new StateTransfer(state.Written.ToArray()));
        Assert.True(line.Level);
        Assert.Equal([97, 98, 99], (int[])[copy.In8(0), copy.In8(0), copy.In8(0)]);
        Assert.False(line.Level);
    }

    [Fact]
    public void GenerationEvent_RaisesTheSciUntilCleared()
    {
        var sci = new FakeLine();
        var pm = new AcpiPm(new FakeMachine(), sci);
        pm.Out(AcpiPm.GpeOffset + 2, 2, 1 << AcpiPm.GenerationEvent);
        Assert.False(sci.Level);
        pm.NotifyGeneration();
        Assert.True(sci.Level);
        Assert.Equal(1u << AcpiPm.GenerationEvent, pm.In(AcpiPm.GpeOffset, 2));
        pm.Out(AcpiPm.GpeOffset, 2, 1 << AcpiPm.GenerationEvent);
        Assert.False(sci.Level);
    }

    [Fact]
    public void AReaderThatExpectsSomethingElse_IsTold()
    {
        var state = new StateTransfer();
        state.Section("one");
        state.Keep(7);
        byte[] bytes = state.Written.ToArray();
        Assert.Throws<InvalidDataException>(() => new StateTransfer(bytes).Section("two"));
        var reader = new StateTransfer(bytes);
        reader.Section("one");
        Assert.Equal(7, reader.Keep(0));
        Assert.True(reader.IsAtEnd);
        Assert.Throws<InvalidDataException>(() => reader.Keep(0));
    }
}
