using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

// Snapshots: the state of everything that the machine is made of, and its memory.
public sealed partial class Machine
{
    private static readonly uint[] s_chips = [KvmApi.KVM_IRQCHIP_PIC_MASTER, KvmApi.KVM_IRQCHIP_PIC_SLAVE, KvmApi.KVM_IRQCHIP_IOAPIC];

    private uint _hostTscKhz;
    private bool _hasDisk;

    /// <summary>What the default guest has said: it takes a command, and a clone can have random numbers of its own.</summary>
    private (bool TakesCommand, bool KnowsClones) _guest;

    /// <summary>A snapshot's machine; its devices wait for <see cref="Run"/>.</summary>
    public bool IsClone { get; private set; }

    /// <summary>The guest waits for a command.</summary>
    public void NoteReady(bool knowsClones) => _guest = (true, knowsClones);

    /// <summary>Nobody waits any more.</summary>
    public void NoteBusy() => _guest = default;

    private const string FormatObstacle = "--disk and a format: another program has the image's state";

    /// <summary>Why there can be no snapshot with these options, or null.</summary>
    internal static string? SnapshotObstacle(BootOptions options) =>
        options.Disks.Any(d => d.Format is not null) ? FormatObstacle
        : options.ResidentBytes is not null || options.Heatmap is not null ? "--resident and --heatmap: pages would be in two files"
        : options.Seed is not null ? "--seed: clones have random numbers of their own"
        : null;

    /// <exception cref="BootException">There can be no snapshot with these options.</exception>
    public static void CheckSnapshot(BootOptions options)
    {
        if (SnapshotObstacle(options) is { } why)
            throw new BootException(ExitStatus.Usage, $"--snapshot is not possible with {why}");
        if (options.Shares.Count != 0)
            throw new BootException(ExitStatus.Usage, "--snapshot is not possible with --share: its server knows the guest's files, and a clone's would not");
    }

    /// <summary>Writes a snapshot of the running machine, which stands still meanwhile. Any thread but a processor's.</summary>
    /// <exception cref="BootException">It cannot be made, or written; the machine goes on.</exception>
    public void Snapshot(SnapshotPlace place, string key = "")
    {
        if (SnapshotObstacle(_options with { Disks = [] }) is { } why)
            throw new BootException(ExitStatus.Usage, $"there can be no snapshot with {why}");
        if (_hasDisk)
            throw new BootException(ExitStatus.Usage, "there can be no snapshot of a machine that has started from a boot sector");
        // What is on the bus stays.
        using RankedLock.Scope plugging = _plugLock.Enter();
        if (PluggedObstacle is { } obstacle)
            throw new BootException(ExitStatus.Usage, $"there can be no snapshot with {obstacle}");
        try
        {
            if (!Pause())
                throw new BootException(ExitStatus.ExecLost, "the machine has ended before its snapshot");
            HoldDevices();
            _xen?.Hold();
            SnapshotSettings settings = Settings(key);
            SnapshotDisk.WaitForNextStep(settings.Disks);
            SnapshotFile.Write(place, Ram, MachineIdentity.Of(_options.Processor), settings, Transfer);
        }
        catch (NotSupportedException e) { throw new BootException(ExitStatus.Usage, $"there can be no snapshot now: {e.Message}"); }
        finally
        {
            _xen?.Release();
            ReleaseDevices();
            Resume();
        }
    }

    /// <summary>Why there can be no snapshot with the devices that there are now, or null.</summary>
    private string? PluggedObstacle =>
        Cards.Any(c => c is { Kind: CardKind.Disk, Image: null }) ? FormatObstacle
        : Cards.FirstOrDefault(c => c is { ReadOnly: false, Image.IsBlockDevice: true }) is { } device
            ? $"the block device {device.Path}, which does not tell whether it has been written to: only with ro"
        : Cards.Count(c => c.Kind == CardKind.Share) != _options.Shares.Count || Cards.Any(c => c is { Kind: CardKind.Share, Helper: null })
            ? "shares that have come or gone since the machine's start"
        : null;

    private SnapshotSettings Settings(string key) => new()
    {
        TakesCommand = _guest.TakesCommand,
        KnowsClones = _guest.KnowsClones,
        OwnGuest = _options.Initrd.Count == 0,
        Cpus = _options.Cpus,
        MemoryBytes = Ram.Bytes,
        Processor = _options.Processor.Name,
        Xen = _options.Xen,
        XenFifo = _options.XenFifo,
        HasConsole = _console is not null,
        HasCommandPorts = _serial[1] is not null,
        PolledSerial = _options.PolledSerial ?? PolledSerial,
        Shares = [.. _options.Shares.Select((s, i) => (s.Tag ?? $"share{i}", s.ReadOnly))],
        Disks = [.. Cards.Where(c => c.Image is not null).Select(OfSnapshot)],
        Net = _options.Net,
        Vsock = _options.Vsock,
        Key = key,
    };

    private static SnapshotDisk OfSnapshot(Card card) => SnapshotDisk.Of(
        new DiskOption { Path = card.Path, Serial = card.Name, ReadOnly = card.ReadOnly, PackedRing = card.PackedRing, Direct = card.Direct, Slot = card.Slot },
        card.Image!);

    /// <summary>Makes this machine, which has not run, the one that the snapshot was made of.</summary>
    /// <exception cref="BootException">The snapshot is of another machine.</exception>
    public void Restore(SnapshotFile file)
    {
        try
        {
            IsClone = true;
            HoldDevices();
            foreach (SnapshotDisk disk in file.Settings.Disks)
            {
                if (_cards[disk.Option.Slot ?? 0]?.Image is { } image && disk.Refuse(image) is { } changed)
                    throw new BootException(ExitStatus.BadImage, $"{disk.Option.Path} is not what it was when the snapshot was made: {changed}");
            }
            _bios = CreateBios([]);
            Transfer(file.State);
            if (!file.State.IsAtEnd)
                throw new InvalidDataException("something follows the machine's state");
        }
        catch (Exception e) when (e is InvalidDataException or NotSupportedException)
        {
            throw BootException.BadImage($"the snapshot is damaged: {e.Message}");
        }
        _guest = (file.Settings.TakesCommand, file.Settings.KnowsClones);
        FirmwareTables.RenewGeneration(Ram);
        _pm!.NotifyGeneration();
        // Watchdogs are not to take the time since the snapshot for their guest's; those without a clock page have none.
        foreach (Vcpu v in _vcpus)
            _ = v.KvmClockCtrl();
    }

    private void HoldDevices()
    {
        _held = true;
        foreach (Card card in Cards)
            card.Function.Hold();
    }

    private void ReleaseDevices()
    {
        foreach (Card card in Cards)
            card.Function.Release();
        _held = false;
    }

    /// <summary>No input comes from the host.</summary>
    private volatile bool _held;

    /// <summary>
    /// The whole machine but for its memory. Devices come before the interrupt controllers: they drive their lines, and the controllers then have what they
    /// had. The clocks come last, but for what goes by them.
    /// </summary>
    private void Transfer(StateTransfer state)
    {
        kvm_clock_data now = _vm.Clock.Get();
        state.Section("clocks");
        ulong made = state.Keep(now.realtime), clock = state.Keep(now.clock);
        long elapsed = state.IsLoading ? Math.Max(0, (long)(now.realtime - made)) : 0;
        foreach (Vcpu v in _vcpus)
            ProcessorState.TransferCpuid(state, v);
        _xen?.Transfer(state);
        TransferDevices(state);
        TransferChips(state);
        foreach (Vcpu v in _vcpus)
            ProcessorState.Transfer(state, v, _options.Processor);
        if (state.IsLoading)
            ProcessorState.Accept(_vm.Clock.Set(new() { clock = clock, realtime = made, flags = KvmApi.KVM_CLOCK_REALTIME }), "clock");
        foreach (Vcpu v in _vcpus)
            ProcessorState.TransferTsc(state, v, now, _hostTscKhz, elapsed);
        _xen?.TransferHypervisor(state);
    }

    private void TransferDevices(StateTransfer state)
    {
        _keyboard!.Transfer(state);
        _port92!.Transfer(state);
        state.Section("serial");
        foreach (SerialPort? port in _serial)
        {
            if (state.Keep(port is not null) != port is not null)
                throw new InvalidDataException("the machine has other serial ports");
            port?.Transfer(state);
        }
        _pm!.Transfer(state);
        _hotplug!.Transfer(state);
        _rtc!.Transfer(state, HostClock.RealtimeNs());
        _firmwareConfig!.Transfer(state);
        Pci.Transfer(state);
    }

    private void TransferChips(StateTransfer state)
    {
        state.Section("interrupt controllers");
        foreach (uint id in s_chips)
        {
            var chip = new kvm_irqchip { chip_id = id };
            if (!state.IsLoading)
                ProcessorState.Accept(_vm.GetIrqchip(ref chip), "interrupt controller");
            state.Value(ref chip);
            if (state.IsLoading)
                ProcessorState.Accept(chip.chip_id == id ? _vm.SetIrqchip(chip) : -1, "interrupt controller");
        }
        kvm_pit_state2 pit = default;
        if (!state.IsLoading)
            ProcessorState.Accept(_vm.GetPit2(out pit), "interval timer");
        state.Value(ref pit);
        if (state.IsLoading)
            ProcessorState.Accept(_vm.SetPit2(pit), "interval timer");
    }
}
