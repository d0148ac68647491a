using System.Buffers;
using System.Buffers.Binary;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using Ring3.Host;

namespace Ring3.Vmm.Tests.Devices;

/// <summary>Disks come and go; the test writes the registers as a guest does.</summary>
public sealed class HotplugTests : IDisposable
{
    private const ushort Added = PciHotplug.Base + PciHotplug.AddedOffset, Removal = PciHotplug.Base + PciHotplug.RemovalOffset,
        Ejected = PciHotplug.Base + PciHotplug.EjectOffset;
    private const uint NoFunction = uint.MaxValue, BlockFunction = 0x1042_1af4;

    private readonly string _directory = Directory.CreateTempSubdirectory("ring3-hotplug").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private string Image(string name, int bytes = 1 << 20)
    {
        string path = Path.Combine(_directory, name);
        File.WriteAllBytes(path, new byte[bytes]);
        return path;
    }

    private static BootOptions Options => new() { Cpus = 1, MemoryBytes = 16 << 20 };

    private static JsonElement Ask(Machine machine, string command, SafeFileHandle? file, params string[] words)
    {
        var text = new ArrayBufferWriter<byte>();
        using (var writer = new Utf8JsonWriter(text))
        {
            writer.WriteStartObject();
            machine.ControlCommands[command].Handler(new ControlRequest(words, file is null ? [] : [file]), writer);
            writer.WriteEndObject();
        }
        return JsonDocument.Parse(text.WrittenMemory).RootElement;
    }

    private static SafeFileHandle Open(string path, bool readOnly = false) =>
        File.OpenHandle(path, FileMode.Open, readOnly ? FileAccess.Read : FileAccess.ReadWrite, FileShare.ReadWrite);

    private static JsonElement AddDisk(Machine machine, string path, string serial = "")
    {
        using SafeFileHandle file = Open(path);
        return Ask(machine, "add-disk", file, path, "rw", "packed", serial);
    }

    private static uint Read(Machine machine, ushort port)
    {
        Span<byte> data = stackalloc byte[4];
        Assert.True(machine.Ports.Read(port, data));
        return BinaryPrimitives.ReadUInt32LittleEndian(data);
    }

    private static void Write(Machine machine, ushort port, uint value)
    {
        Span<byte> data = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(data, value);
        Assert.True(machine.Ports.Write(port, data));
    }

    private static uint Function(Machine machine, int slot)
    {
        Write(machine, PciHost.AddressPort, 1u << 31 | (uint)slot << 11);
        return Read(machine, PciHost.DataPort);
    }

    private static bool IsFree(string path)
    {
        if (DiskFile.TryOpen(path, readOnly: false, out DiskFile? file) != 0)
            return false;
        file!.Dispose();
        return true;
    }

    [Fact]
    public void ADisk_Comes_AndGoesWhenTheGuestLetsIt()
    {
        string path = Image("a");
        using var machine = new Machine(Options);
        JsonElement answer = AddDisk(machine, path, "mine");
        int slot = answer.GetProperty("slot").GetInt32();
        Assert.Equal("mine", answer.GetProperty("serial").GetString());
        Assert.Equal(BlockFunction, Function(machine, slot));
        Assert.False(IsFree(path));
        Assert.Equal(1u << slot, Read(machine, Added));
        Write(machine, Added, 1u << slot);
        Assert.Equal(0u, Read(machine, Added));
        Assert.Contains("\"mine\"", Ask(machine, "status", null).GetProperty("disks").GetRawText());

        var remover = new Thread(() => Ask(machine, "remove-disk", null, "mine"));
        remover.Start();
        while (Read(machine, Removal) == 0)
            Thread.Yield();
        Assert.Equal(1u << slot, Read(machine, Removal));
        // A guest that boots may clear events that it has not looked at: it is told again.
        const ushort Event = AcpiPm.Base + AcpiPm.GpeOffset;
        Write(machine, Event, 1u << AcpiPm.HotplugEvent);
        while ((Read(machine, Event) & 1u << AcpiPm.HotplugEvent) == 0)
            Thread.Yield();
        Write(machine, Removal, 1u << slot);
        Assert.Equal(BlockFunction, Function(machine, slot));
        Write(machine, Ejected, 1u << slot);
        Assert.Equal(NoFunction, Function(machine, slot));
        remover.Join();
        Assert.True(IsFree(path));
        Assert.Equal(0, Ask(machine, "status", null).GetProperty("disks").GetArrayLength());
        // The slot is anybody's again.
        Assert.Equal(slot, AddDisk(machine, path).GetProperty("slot").GetInt32());
    }

    [Fact]
    public void AGuest_EjectsWhatItWants_ButNotWhatStays()
    {
        string path = Image("a");
        using var machine = new Machine(Options with { Disks = [new DiskOption { Path = path }] });
        uint[] before = [.. Enumerable.Range(0, 32).Select(s => Function(machine, s))];
        int disk = Array.IndexOf(before, BlockFunction);
        Write(machine, Ejected, uint.MaxValue);
        Write(machine, Ejected, uint.MaxValue);
        for (int slot = 0; slot < 32; slot++)
            Assert.Equal(slot == disk ? NoFunction : before[slot], Function(machine, slot));
        while (!IsFree(path))
            Thread.Yield();
    }

    [Fact]
    public void AGuestThatDoesNotLetGo_KeepsTheDisk()
    {
        string path = Image("a");
        using var machine = new Machine(Options) { EjectMs = 1 };
        int slot = AddDisk(machine, path).GetProperty("slot").GetInt32();
        string message = Assert.Throws<ControlException>(() => Ask(machine, "remove-disk", null, path)).Message;
        Assert.Contains("has not let ring3-0 go", message);
        Assert.Equal(BlockFunction, Function(machine, slot));
        Assert.False(IsFree(path));
        machine.End(MachineEnd.Quit);
        Assert.Contains("has ended", Assert.Throws<ControlException>(() => Ask(machine, "remove-disk", null, path)).Message);
    }

    [Fact]
    public void WhatCannotBe_IsOneLine_AndLeavesNothing()
    {
        string path = Image("a"), cut = Image("cut", 1000), other = Image("other");
        using var machine = new Machine(Options);
        string Refusal(string command, SafeFileHandle? file, params string[] words)
        {
            Exception e = Assert.ThrowsAny<Exception>(() => Ask(machine, command, file, words));
            Assert.True(e is ControlException or BootException, e.ToString());
            Assert.DoesNotContain('\n', e.Message);
            file?.Dispose();
            return e.Message;
        }

        Assert.Contains("lacks an argument", Refusal("add-disk", null, path));
        Assert.Contains("needs a file", Refusal("add-disk", null, path, "rw", "packed", ""));
        Assert.Contains("no multiple of 512", Refusal("add-disk", Open(cut), cut, "rw", "packed", ""));
        Assert.Contains("add-disk", Refusal("add-disk", Open(path, readOnly: true), path, "rw", "packed", ""));
        using (SafeFileHandle file = Open(path))
        using (DiskFile busy = OpenDisk(path))
            Assert.Contains("in use", Refusal("add-disk", file, path, "rw", "packed", ""));
        Assert.Contains("has no disk nobody", Refusal("remove-disk", null, "nobody"));
        Assert.Contains("virtiofsd", Refusal("add-share", Open(path), "/tmp", "rw", "tag"));
        AddDisk(machine, path, "one");
        Assert.Contains("has a disk with the serial number one", Refusal("add-disk", Open(other), other, "rw", "packed", "one"));
        int added = 1;
        string message = "";
        for (; message.Length == 0; added++)
        {
            string next = Image($"n{added}");
            try { AddDisk(machine, next); }
            catch (BootException e) { message = e.Message; }
        }
        Assert.Contains("at most 29 virtio devices", message);
        Assert.Equal(NoFunction & 0xffff, Function(machine, 2) & 0xffff);
        Assert.True(IsFree(Path.Combine(_directory, $"n{added - 1}")));
        Assert.True(IsFree(other));
    }

    private static DiskFile OpenDisk(string path)
    {
        Assert.Equal(0, DiskFile.TryOpen(path, readOnly: true, out DiskFile? file));
        return file!;
    }

    [Theory, InlineData(false, false), InlineData(true, true)]
    public void MachinesWithoutAcpi_OrOfXenGuests_HaveNone(bool acpi, bool xen)
    {
        string path = Image("a");
        using var machine = new Machine(Options with { Acpi = acpi, Xen = xen });
        Assert.Contains(acpi ? "Xen" : "no ACPI", Assert.Throws<ControlException>(() => AddDisk(machine, path)).Message);
        Assert.True(IsFree(path));
    }

    /// <summary>Registers of any width and place; the guest tells of slots at random, while disks come and go.</summary>
    [Fact]
    public void AnyAccess_DoesNothingBad()
    {
        var random = new Random(5);
        using var machine = new Machine(Options);
        string[] images = [.. Enumerable.Range(0, 4).Select(i => Image($"r{i}"))];
        var data = new byte[8];
        for (int i = 0; i < 20_000; i++)
        {
            if (i % 50 == 0)
            {
                try { AddDisk(machine, images[random.Next(images.Length)]); }
                catch (Exception e) when (e is BootException or ControlException or IOException) { }
            }
            Span<byte> bytes = data.AsSpan(0, 1 << random.Next(4));
            random.NextBytes(bytes);
            ulong port = PciHotplug.Base + (ulong)random.Next(PciHotplug.Ports);
            if (random.Next(2) == 0)
                machine.Ports.Read(port, bytes);
            else
                machine.Ports.Write(port, bytes);
            _ = Function(machine, random.Next(32));
        }
    }
}
