using Ring3.Cpu;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>What machine a snapshot is of: as much of its options as another one has to be built by.</summary>
internal sealed record SnapshotSettings
{
    /// <summary>The default guest waits for a command.</summary>
    public bool TakesCommand { get; init; }
    /// <summary>A clone of it can be given random numbers of its own.</summary>
    public bool KnowsClones { get; init; }
    /// <summary>The guest's console belongs to the default guest.</summary>
    public bool OwnGuest { get; init; }
    public int Cpus { get; init; }
    public ulong MemoryBytes { get; init; }
    public string Processor { get; init; } = "";
    public bool Xen { get; init; }
    public bool XenFifo { get; init; }
    public bool HasConsole { get; init; }
    public bool HasCommandPorts { get; init; }
    public bool PolledSerial { get; init; }
    public IReadOnlyList<(string Tag, bool ReadOnly)> Shares { get; init; } = [];
    public IReadOnlyList<SnapshotDisk> Disks { get; init; } = [];
    /// <summary>The other sides of the network card and of the socket device, which a clone has anew; null: it has none of these devices.</summary>
    public NetOption? Net { get; init; }
    public VsockOption? Vsock { get; init; }
    /// <summary>Everything that went into a snapshot of the cache; empty: it is a user's.</summary>
    public string Key { get; init; } = "";

    public static SnapshotSettings Transfer(StateTransfer state, SnapshotSettings own)
    {
        state.Section("settings");
        SnapshotSettings settings = new()
        {
            TakesCommand = state.Keep(own.TakesCommand),
            KnowsClones = state.Keep(own.KnowsClones),
            OwnGuest = state.Keep(own.OwnGuest),
            Cpus = state.Keep(own.Cpus),
            MemoryBytes = state.Keep(own.MemoryBytes),
            Processor = state.Text(own.Processor),
            Xen = state.Keep(own.Xen),
            XenFifo = state.Keep(own.XenFifo),
            HasConsole = state.Keep(own.HasConsole),
            HasCommandPorts = state.Keep(own.HasCommandPorts),
            PolledSerial = state.Keep(own.PolledSerial),
            Key = state.Text(own.Key),
        };
        var shares = new (string, bool)[Math.Clamp(state.Keep(own.Shares.Count), 0, byte.MaxValue)];
        for (int i = 0; i < shares.Length; i++)
        {
            (string tag, bool readOnly) = state.IsLoading ? ("", false) : own.Shares[i];
            shares[i] = (state.Text(tag), state.Keep(readOnly));
        }
        var disks = new SnapshotDisk[Math.Clamp(state.Keep(own.Disks.Count), 0, byte.MaxValue)];
        for (int i = 0; i < disks.Length; i++)
            disks[i] = SnapshotDisk.Transfer(state, state.IsLoading ? null : own.Disks[i]);
        return settings with { Shares = shares, Disks = disks, Net = TransferNet(state, own.Net), Vsock = TransferVsock(state, own.Vsock) };
    }

    private static NetOption? TransferNet(StateTransfer state, NetOption? own)
    {
        if (!state.Keep(own is not null))
            return null;
        string tap = state.Text(own?.Tap ?? "");
        var forwards = new NetOption.Forward[Math.Clamp(state.Keep(own?.Forwards.Count ?? 0), 0, ushort.MaxValue)];
        for (int i = 0; i < forwards.Length; i++)
            forwards[i] = state.Keep(own?.Forwards[i] ?? default);
        return new NetOption { Tap = tap.Length == 0 ? null : tap, Forwards = forwards };
    }

    private static VsockOption? TransferVsock(StateTransfer state, VsockOption? own) =>
        state.Keep(own is not null) ? new VsockOption(state.Text(own?.Path ?? ""), state.Keep(own?.Cid ?? 0)) : null;

    public ProcessorModel Model => ProcessorModel.TryParse(Processor, out ProcessorModel model) ? model
        : throw new InvalidDataException($"there is no processor '{Processor}'");
}
