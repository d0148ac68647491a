using System.Net.Sockets;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using Ring3.Host;
using Ring3.Virtio;

namespace Ring3.Vmm;

// Disks and shares that come and go while the machine runs: PCI hot plug by ACPI. Files and servers come from `ring3 ctl`: a confined machine opens nothing.
public sealed partial class Machine
{
    /// <summary>How long a guest may take to let a device go.</summary>
    internal int EjectMs { get; set; } = 20_000;
    /// <summary>How often a guest is told that has not looked: one that boots forgets events.</summary>
    private const int RemindMs = 500;

    /// <summary>What is on the bus changes under it, and a snapshot is made under it.</summary>
    private readonly RankedLock _plugLock = new(LockRank.MachinePlug);
    private PciHotplug? _hotplug;

    private enum CardKind { Other, Disk, Share }

    /// <summary>A virtio device on the bus.</summary>
    /// <param name="slot">Its PCI device number.</param>
    /// <param name="function">The device.</param>
    private sealed class Card(int slot, VirtioPciFunction function)
    {
        public int Slot => slot;
        public VirtioPciFunction Function => function;
        public CardKind Kind { get; init; }
        /// <summary>The file or folder, absolute.</summary>
        public string Path { get; init; } = "";
        /// <summary>What the guest knows it by: a serial number, or a tag.</summary>
        public string Name { get; init; } = "";
        public bool ReadOnly { get; init; }
        /// <summary>The host's page cache is not used for it.</summary>
        public bool Direct { get; init; }
        /// <summary>The open image of a raw disk; it belongs to the device.</summary>
        public DiskFile? Image { get; init; }
        public bool PackedRing { get; init; }
        /// <summary>The process that serves it and belongs to the machine.</summary>
        public VhostHelper? Helper { get; init; }
        public ManualResetEventSlim Gone { get; } = new(false);
        /// <summary>Takes it away. The guest has let it go.</summary>
        public Thread? Remover;

        public bool Is(CardKind kind, IReadOnlyList<string> names) => Kind == kind && (names.Contains(Name) || names.Contains(Path));
    }

    private void AddHotplug()
    {
        _hotplug = new PciHotplug(_pm!.NotifyHotplug, Eject);
        Ports.Add(PciHotplug.Base, PciHotplug.Ports, _hotplug);
    }

    /// <exception cref="ControlException">Devices stay what they are.</exception>
    private void CheckHotplug()
    {
        if (!_options.Acpi)
            throw new ControlException("the machine has no ACPI (--no-acpi), and devices cannot come and go without");
        if (_options.Xen)
            throw new ControlException("devices of a Xen guest's machine (--xen) cannot come and go");
        if (_stopping)
            throw new ControlException("the machine has ended");
    }

    /// <summary>Gives the machine a disk, a raw image, and tells the guest. Any thread but a processor's.</summary>
    /// <returns>Its serial number.</returns>
    /// <exception cref="ControlException">It cannot have it.</exception>
    /// <exception cref="BootException">The image cannot be one.</exception>
    public string AddDisk(DiskOption disk)
    {
        CheckHotplug();
        if (disk.Format is not null)
            throw new ControlException("only raw images can come later");
        using (_plugLock.Enter())
            return PlugDisk(disk with { Path = Path.GetFullPath(disk.Path) }, () => disk.Open(_options.Messages, "add-disk")).Name;
    }

    /// <summary>Asks the guest to let a disk go, and waits until it has. Any thread but a processor's.</summary>
    /// <param name="name">Its serial number, or its file.</param>
    /// <exception cref="ControlException">There is no such disk, or the guest keeps it.</exception>
    public void RemoveDisk(string name) => Unplug(CardKind.Disk, [name, Path.GetFullPath(name)]);

    /// <summary>add-disk PATH ro|rw packed|split SERIAL, and the open image.</summary>
    private void PlugDisk(ControlRequest request, Utf8JsonWriter answer)
    {
        CheckHotplug();
        string serial = request.Argument(3);
        var disk = new DiskOption
        {
            Path = request.Argument(0), ReadOnly = request.Argument(1) == "ro", PackedRing = request.Argument(2) == "packed",
            Serial = serial.Length == 0 ? null : serial,
        };
        using (_plugLock.Enter())
            WriteCard(PlugDisk(disk, () => Adopt(request, disk)), answer);
    }

    private static DiskFile Adopt(ControlRequest request, DiskOption disk)
    {
        // The device has it, or it is closed.
        int error = DiskFile.TryAdopt(Release(request.TakeFile()), disk.ReadOnly, out DiskFile? file);
        return DiskOption.Checked(error, file, disk.Path, disk.ReadOnly, "add-disk");
    }

    private Card PlugDisk(DiskOption disk, Func<DiskFile> open)
    {
        string name = disk.Serial ?? FreeName(CardKind.Disk, "ring3-");
        CheckFree(CardKind.Disk, name, "a disk with the serial number");
        Card card = AddRaw(disk, open(), name);
        _hotplug!.NoteAdded(card.Slot);
        return card;
    }

    /// <summary>add-share PATH ro|rw TAG, and a connection to its server.</summary>
    private void PlugShare(ControlRequest request, Utf8JsonWriter answer)
    {
        CheckHotplug();
        (string path, bool readOnly, string tag) = (request.Argument(0), request.Argument(1) == "ro", request.Argument(2));
        using (_plugLock.Enter())
        {
            string name = tag.Length != 0 ? tag : FreeName(CardKind.Share, "share");
            CheckFree(CardKind.Share, name, "a share with the tag");
            VirtioDevice device;
            VhostUserLink? link = null;
            try
            {
                link = new VhostUserLink(HelperSocket.Adopt(new SafeSocketHandle(Release(request.TakeFile()), ownsHandle: true)));
                device = new VhostFsDevice(_vm.Memory, name, readOnly, ShareOwnerHere, link, $"fs-{name}",
                    why => _options.Messages.WriteLine($"ring3: share {path} serves no more: virtiofsd: {why}"));
            }
            catch (Exception e) when (e is VhostUserException or SocketException or ArgumentException)
            {
                link?.Dispose();
                throw new ControlException($"add-share {path}: virtiofsd: {e.Message}");
            }
            Card card = AddVirtio(device, OtherClass, VirtioFeature.OfTransport,
                (slot, function) => new Card(slot, function) { Kind = CardKind.Share, Path = path, Name = name, ReadOnly = readOnly });
            _hotplug!.NoteAdded(card.Slot);
            WriteCard(card, answer);
        }
    }

    private static int Release(SafeFileHandle file)
    {
        int descriptor = (int)file.DangerousGetHandle();
        file.SetHandleAsInvalid();
        return descriptor;
    }

    private void CheckFree(CardKind kind, string name, string what)
    {
        if (Cards.Any(c => c.Kind == kind && c.Name == name))
            throw new ControlException($"the machine has {what} {name}");
    }

    private string FreeName(CardKind kind, string prefix)
    {
        for (int i = 0; ; i++)
        {
            if (!Cards.Any(c => c.Kind == kind && c.Name == $"{prefix}{i}"))
                return $"{prefix}{i}";
        }
    }

    /// <summary>remove-disk or remove-share NAME...: asks the guest to let the device go, and waits until it has.</summary>
    private void Unplug(CardKind kind, IReadOnlyList<string> names)
    {
        CheckHotplug();
        if (names.Count == 0)
            throw new ControlException("the command lacks an argument");
        Card card = Cards.FirstOrDefault(c => c.Is(kind, names))
            ?? throw new ControlException($"the machine has no {(kind == CardKind.Disk ? "disk" : "share")} {names[0]}");
        _hotplug!.RequestRemoval(card.Slot);
        WaitHandle[] ends = [card.Gone.WaitHandle, _ended.WaitHandle];
        const int Millisecond = 1_000_000;
        for (long end = HostClock.MonotonicNs() + EjectMs * (long)Millisecond; WaitHandle.WaitAny(ends, Math.Min(EjectMs, RemindMs)) == WaitHandle.WaitTimeout;)
        {
            if (HostClock.MonotonicNs() >= end)
            {
                throw new ControlException($"the guest has not let {card.Name} go for {EjectMs / 1000.0} seconds (is it running, with ACPI hot plug?); it stays"
                    + " until the guest does");
            }
            _hotplug.Remind();
        }
        if (!card.Gone.IsSet)
            throw new ControlException("the machine has ended");
    }

    /// <summary>The guest has let a slot go, also without having been asked. Of its vCPU: the device is away for it on return, and ends elsewhere.</summary>
    private void Eject(int slot)
    {
        if (Volatile.Read(ref _cards[slot]) is not { Kind: not CardKind.Other } card)
            return;
        Pci.Remove(slot, 0);
        var remover = new Thread(() => TakeAway(card)) { IsBackground = true, Name = "ring3-unplug" };
        if (Interlocked.CompareExchange(ref card.Remover, remover, null) is null)
            remover.Start();
    }

    private void TakeAway(Card card)
    {
        try
        {
            using (_plugLock.Enter())
            {
                card.Function.Withdraw();
                card.Function.Dispose();
                if (card.Helper is { } helper)
                {
                    helper.Dispose();
                    _helpers.Remove(helper);
                }
                _hotplug!.Forget(card.Slot);
                Volatile.Write(ref _cards[card.Slot], null);
            }
            card.Gone.Set();
        }
        catch (Exception e)
        {
            End(MachineEnd.Failure, detail: $"{e.GetType().Name}: {e.Message}");
        }
    }

    private void WriteCards(Utf8JsonWriter answer)
    {
        foreach ((string name, CardKind kind) in (ReadOnlySpan<(string, CardKind)>)[("disks", CardKind.Disk), ("shares", CardKind.Share)])
        {
            answer.WriteStartArray(name);
            foreach (Card card in Cards)
            {
                if (card.Kind != kind)
                    continue;
                answer.WriteStartObject();
                WriteCard(card, answer);
                answer.WriteEndObject();
            }
            answer.WriteEndArray();
        }
    }

    private static void WriteCard(Card card, Utf8JsonWriter answer)
    {
        answer.WriteString("path", card.Path);
        answer.WriteString(card.Kind == CardKind.Disk ? "serial" : "tag", card.Name);
        answer.WriteBoolean("read_only", card.ReadOnly);
        answer.WriteNumber("slot", card.Slot);
    }
}
