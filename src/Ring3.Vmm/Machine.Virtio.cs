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

    private readonly Card?[] _cards = new Card?[Slots];
    private readonly IInterruptLine?[] _slotLines = new IInterruptLine?[Slots];
    private readonly List<VhostHelper> _helpers = [];
    private Passt? _passt;
    private readonly SharedLine?[] _pciLines = new SharedLine?[AcpiTables.PciGsis];

    /// <summary>The virtio devices, by slot.</summary>
    private IEnumerable<Card> Cards
    {
        get
        {
            for (int i = 0; i < Slots; i++)
                if (Volatile.Read(ref _cards[i]) is { } card)
                    yield return card;
        }
    }

    private int DiskQueues => Math.Min(_options.Cpus, MaxDiskQueues);

    /// <summary>Whom servers of shares act for.</summary>
    private static ShareOwner? ShareOwnerHere => Privileges.Identity is (not 0, _) me ? new ShareOwner(me.User, me.Group) : null;

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
            AddRaw(disk, disk.Open(_options.Messages), disk.Serial ?? $"ring3-{i}");
        }
    }

    private Card AddRaw(DiskOption disk, DiskFile image, string serial)
    {
        var device = new BlockDevice(_vm.Memory, image, disk.ReadOnly, serial, DiskQueues, $"disk-{serial}");
        return AddVirtio(device, StorageClass, DiskOption.Rings(disk.PackedRing), (slot, function) => DiskCard(slot, function, disk, serial, image, null),
            disk.Slot);
    }

    private static Card DiskCard(int slot, VirtioPciFunction function, DiskOption disk, string serial, DiskFile? image, VhostHelper? helper) =>
        new(slot, function)
        {
            Kind = CardKind.Disk, Path = Path.GetFullPath(disk.Path), Name = serial, ReadOnly = disk.ReadOnly, PackedRing = disk.PackedRing,
            Direct = image?.IsDirect ?? false, Image = image,
            Helper = helper,
        };

    private void AddShare(int index, ShareOption share)
    {
        VhostHelper helper = Keep(VhostHelper.Share(share));
        string tag = share.Tag ?? $"share{index}";
        AddVirtio(Serve($"--share {share.Directory}", helper, ended =>
            new VhostFsDevice(_vm.Memory, tag, share.ReadOnly, ShareOwnerHere, helper.Link, $"fs{index}", ended)), OtherClass, VirtioFeature.OfTransport,
            (slot, function) => new Card(slot, function)
            {
                Kind = CardKind.Share, Path = share.Directory, Name = tag, ReadOnly = share.ReadOnly, Helper = helper,
            });
    }

    /// <summary>A disk image whose format another program knows.</summary>
    private void AddImage(int index, DiskOption disk)
    {
        VhostHelper helper = Keep(VhostHelper.Disk(disk.WhereDirect(_options.Messages), DiskQueues));
        string serial = disk.Serial ?? $"ring3-{index}";
        AddVirtio(Serve($"--disk {disk.Path}", helper, ended =>
            new VhostBlockDevice(_vm.Memory, serial, DiskQueues, helper.Link, $"disk{index}", ended)), StorageClass, DiskOption.Rings(disk.PackedRing),
            (slot, function) => DiskCard(slot, function, disk, serial, null, helper));
    }

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
        foreach (Card card in Cards)
        {
            // Who takes one away ends it, too.
            card.Remover?.Join();
            card.Function.Dispose();
        }
        _passt?.Dispose();
        _vsockConnector?.Dispose();
        if (_vsockPath is not null)
            File.Delete(_vsockPath);
        foreach (VhostHelper helper in _helpers)
            helper.Dispose();
    }

    private Card AddVirtio(VirtioDevice device, uint classCode, ulong offered, Func<int, VirtioPciFunction, Card>? create = null, int? at = null)
    {
        int slot = at is >= FirstVirtioSlot and < Slots ? at.Value : Array.IndexOf(_cards, null, FirstVirtioSlot);
        if (slot < 0 || _cards[slot] is not null)
        {
            device.Dispose();
            throw new BootException(ExitStatus.Usage, $"a machine has at most {Slots - FirstVirtioSlot} virtio devices");
        }
        IInterruptLine pin = _slotLines[slot] ??= PciLine(slot).AddInput();
        var interrupts = new PciInterrupts(this, pin);
        var transport = new VirtioTransport(device, interrupts, offered, text => _options.Messages.WriteLine($"ring3: {text}"),
            e => End(MachineEnd.Failure, detail: $"{e.GetType().Name}: {e.Message}"));
        // A Xen guest has messages as events of a PIRQ that it names in them, which the platform here has for pins alone.
        ulong bar = FirstVirtioBar + (ulong)(slot - FirstVirtioSlot) * VirtioTransport.BarBytes;
        var function = new VirtioPciFunction(transport, classCode, Mmio, bar, messages: !_options.Xen);
        Card card = create?.Invoke(slot, function) ?? new Card(slot, function);
        Volatile.Write(ref _cards[slot], card);
        Pci.Add(slot, 0, function);
        return card;
    }

    private SharedLine PciLine(int slot)
    {
        int line = slot % AcpiTables.PciGsis;
        return _pciLines[line] ??= new SharedLine(new GsiLine(this, AcpiTables.PciGsiBase + line));
    }

    /// <summary>A function's interrupts: its pin's GSI, or messages.</summary>
    private sealed class PciInterrupts(Machine machine, IInterruptLine line) : IPciInterrupts
    {
        public void SetLine(bool level) => line.Set(level);

        public void Send(ulong address, uint data) => _ = machine._vm.SignalMsi(address, data);
    }
}
