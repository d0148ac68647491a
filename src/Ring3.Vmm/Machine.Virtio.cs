using Ring3.Abi;
using Ring3.Host;
using Ring3.Virtio;
using Ring3.Virtio.Devices;
using Ring3.Vmm.Bus;
using Ring3.Vmm.Devices;
using Ring3.Vmm.Firmware;

namespace Ring3.Vmm;

// Virtio devices: what the options ask for, on the PCI bus.
public sealed partial class Machine
{
    /// <summary>Device 2 is the Xen platform's.</summary>
    private const int FirstVirtioSlot = 3, Slots = 32;
    private const ulong FirstVirtioBar = 0xfe00_0000;
    private const int MaxDiskQueues = 32;
    private const uint StorageClass = 0x01_80_00, OtherClass = 0xff_00_00;

    private readonly List<VirtioPciFunction> _virtio = [];
    private readonly SharedLine?[] _pciLines = new SharedLine?[AcpiTables.PciGsis];

    private void AddVirtioDevices()
    {
        AddVirtio(new EntropyDevice(_vm.Memory, _options.Seed), OtherClass, VirtioFeature.OfTransport);
        foreach ((int i, DiskOption disk) in _options.Disks.Index())
        {
            DiskFile file = OpenDisk(disk);
            var device = new BlockDevice(_vm.Memory, file, disk.ReadOnly, disk.Serial ?? $"ring3-{i}", Math.Min(_options.Cpus, MaxDiskQueues), $"disk{i}");
            AddVirtio(device, StorageClass, disk.PackedRing ? VirtioFeature.OfTransport : VirtioFeature.OfTransport & ~VirtioFeature.PackedRing);
        }
    }

    private void AddVirtio(VirtioDevice device, uint classCode, ulong offered)
    {
        int slot = FirstVirtioSlot + _virtio.Count;
        if (slot == Slots)
        {
            device.Dispose();
            throw new BootException(ExitStatus.Usage, $"a machine has at most {Slots - FirstVirtioSlot} virtio devices");
        }
        int line = slot % AcpiTables.PciGsis;
        SharedLine shared = _pciLines[line] ??= new SharedLine(new GsiLine(this, AcpiTables.PciGsiBase + line));
        var interrupts = new PciInterrupts(this, shared.AddInput());
        var transport = new VirtioTransport(device, interrupts, offered, text => _options.Messages.WriteLine($"ring3: {text}"),
            e => End(MachineEnd.Failure, detail: $"{e.GetType().Name}: {e.Message}"));
        var function = new VirtioPciFunction(transport, classCode, Mmio, FirstVirtioBar + (ulong)_virtio.Count * VirtioTransport.BarBytes);
        _virtio.Add(function);
        Pci.Add(slot, 0, function);
    }

    private static DiskFile OpenDisk(DiskOption disk)
    {
        int error = DiskFile.TryOpen(disk.Path, disk.ReadOnly, out DiskFile? file);
        if (error != 0)
        {
            string why = -error switch
            {
                Errno.ENOENT => "no such file",
                Denied or Errno.EPERM => disk.ReadOnly ? "permission denied" : "permission denied (read-only disks: --disk FILE,ro)",
                ReadOnlyFileSystem => "is on a read-only file system (--disk FILE,ro)",
                Errno.EAGAIN => "is in use by another machine",
                NotBlock => "is neither a file nor a block device",
                _ => System.Runtime.InteropServices.Marshal.GetPInvokeErrorMessage(-error),
            };
            throw new BootException(ExitStatus.NoInput, $"--disk {disk.Path}: {why}");
        }
        if (file!.Bytes != 0 && file.Bytes % BlockDevice.SectorBytes == 0)
            return file;
        string size = file.Bytes == 0 ? "is empty" : $"has {file.Bytes} bytes, no multiple of {BlockDevice.SectorBytes}: a raw image that is cut off, or none";
        file.Dispose();
        throw new BootException(ExitStatus.BadImage, $"--disk {disk.Path}: {size}");
    }

    private const int Denied = 13, NotBlock = 15, ReadOnlyFileSystem = 30;

    /// <summary>A function's interrupts: its pin's GSI, or messages.</summary>
    private sealed class PciInterrupts(Machine machine, IInterruptLine line) : IPciInterrupts
    {
        public void SetLine(bool level) => line.Set(level);

        public void Send(ulong address, uint data) => _ = machine._vm.SignalMsi(address, data);
    }
}
