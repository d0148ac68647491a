using Ring3.Abi;
using Ring3.Host;
using Ring3.Virtio;

namespace Ring3.Vmm;

// Virtio devices: what the options ask for, on the PCI bus.
public sealed partial class Machine
{
    /// <summary>Device 2 is the Xen platform's.</summary>
    private const int FirstVirtioSlot = 3, Slots = 32;
    private const ulong FirstVirtioBar = 0xfe00_0000;
    private const int MaxDiskQueues = 32;
    private const uint NetworkClass = 0x02_00_00, StorageClass = 0x01_80_00, ConsoleClass = 0x07_80_00, OtherClass = 0xff_00_00;

    private readonly List<VirtioPciFunction> _virtio = [];
    private readonly List<VhostHelper> _helpers = [];
    private Passt? _passt;
    private readonly SharedLine?[] _pciLines = new SharedLine?[AcpiTables.PciGsis];

    private void AddVirtioDevices()
    {
        if (_options.Net is { } net)
            AddNet(net);
        AddVirtio(new EntropyDevice(_vm.Memory, _options.Seed), OtherClass, VirtioFeature.OfTransport);
        foreach ((int i, ShareOption share) in _options.Shares.Index())
            AddShare(i, share);
        if (_options.Vsock is { } vsock)
            AddVsock(vsock);
        AddBalloon();
        if (_options.Streams is not null)
            AddConsole();
        foreach ((int i, DiskOption disk) in _options.Disks.Index())
        {
            if (disk.Format is not null)
            {
                AddImage(i, disk);
                continue;
            }
            DiskFile file = OpenDisk(disk);
            var device = new BlockDevice(_vm.Memory, file, disk.ReadOnly, disk.Serial ?? $"ring3-{i}", Math.Min(_options.Cpus, MaxDiskQueues), $"disk{i}");
            AddVirtio(device, StorageClass, Rings(disk));
        }
    }

    private void AddShare(int index, ShareOption share)
    {
        (uint User, uint Group) me = Privileges.Identity;
        ShareOwner? owner = me.User == 0 ? null : new ShareOwner(me.User, me.Group);
        VhostHelper helper = Keep(VhostHelper.Share(share));
        AddVirtio(Serve($"--share {share.Directory}", helper, ended =>
            new VhostFsDevice(_vm.Memory, share.Tag ?? $"share{index}", share.ReadOnly, owner, helper.Link, $"fs{index}", ended)),
            OtherClass, VirtioFeature.OfTransport);
    }

    /// <summary>A disk image whose format another program knows.</summary>
    private void AddImage(int index, DiskOption disk)
    {
        int queues = Math.Min(_options.Cpus, MaxDiskQueues);
        VhostHelper helper = Keep(VhostHelper.Disk(disk, queues));
        AddVirtio(Serve($"--disk {disk.Path}", helper, ended =>
            new VhostBlockDevice(_vm.Memory, disk.Serial ?? $"ring3-{index}", queues, helper.Link, $"disk{index}", ended)), StorageClass, Rings(disk));
    }

    private static ulong Rings(DiskOption disk) => disk.PackedRing ? VirtioFeature.OfTransport : VirtioFeature.OfTransport & ~VirtioFeature.PackedRing;

    private VhostHelper Keep(VhostHelper helper)
    {
        _helpers.Add(helper);
        return helper;
    }

    /// <summary>Makes a device that a helper serves; when that ends, the guest goes on with errors.</summary>
    private VirtioDevice Serve(string what, VhostHelper helper, Func<Action<string>, VirtioDevice> create)
    {
        try
        {
            return create(why => _options.Messages.WriteLine($"ring3: {what} serves no more: {helper.Explain(why)}"));
        }
        catch (VhostUserException e)
        {
            string why = helper.Explain(e.Message);
            throw new BootException(ExitStatus.NoInput, $"{what}: {why}");
        }
    }

    private void AddNet(NetOption option)
    {
        if (option.Tap is { } name)
        {
            int error = TapDevice.TryOpen(name, out TapDevice? tap);
            if (error != 0)
                throw new BootException(ExitStatus.NoInput, $"--net tap={name}: {System.Runtime.InteropServices.Marshal.GetPInvokeErrorMessage(-error)}");
            // Locally administered, and another one for each machine of a bridge.
            Span<byte> mac = [0x52, 0x54, 0, 0, 0, 0];
            HostRandom.Fill(mac[3..]);
            AddNet(new NetDevice(_vm.Memory, new TapLink(tap!), mac, mtu: 0, NetEnded));
            return;
        }
        _passt = Passt.Start(option);
        AddNet(new NetDevice(_vm.Memory, new StreamLink(_passt.Socket), [0x52, 0x54, 0, 0x12, 0x34, 0x56], Passt.Mtu, NetEnded));
    }

    private void AddNet(NetDevice device) => AddVirtio(device, NetworkClass, VirtioFeature.OfTransport);

    /// <summary>The guest goes on without: its card has no carrier to lose.</summary>
    private void NetEnded(string what)
    {
        string why = _passt?.LastWords() ?? "";
        _options.Messages.WriteLine($"ring3: {what}{(why.Length == 0 ? "" : $": {why}")}");
    }

    /// <summary>Processes that <see cref="Dispose"/> ends where they do not end by themselves.</summary>
    public IReadOnlyList<int> Helpers => [.. _helpers.Select(h => h.ProcessId), .. _passt is null ? [] : (int[])[_passt.ProcessId]];

    /// <summary>Stops the devices; the guest does not run any more.</summary>
    private void StopVirtio()
    {
        foreach (VirtioPciFunction function in _virtio)
            function.Dispose();
        _passt?.Dispose();
        _vsockConnector?.Dispose();
        if (_vsockPath is not null)
            File.Delete(_vsockPath);
        foreach (VhostHelper helper in _helpers)
            helper.Dispose();
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
        // A Xen guest has messages as events of a PIRQ that it names in them, which the platform here has for pins alone.
        ulong bar = FirstVirtioBar + (ulong)_virtio.Count * VirtioTransport.BarBytes;
        var function = new VirtioPciFunction(transport, classCode, Mmio, bar, messages: !_options.Xen);
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
