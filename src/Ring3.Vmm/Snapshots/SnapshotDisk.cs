using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>A disk of a snapshot's machine: where its image is, and what it was. The image itself is not in the snapshot.</summary>
/// <param name="Option">As it was given; the path is absolute.</param>
/// <param name="Bytes">The image's size.</param>
/// <param name="ModifiedNs">When it was written last.</param>
internal sealed record SnapshotDisk(DiskOption Option, long Bytes, long ModifiedNs)
{
    public static SnapshotDisk Of(DiskOption option, DiskFile image) => new(option, image.Bytes, image.ModifiedNs);

    public static SnapshotDisk Transfer(StateTransfer state, SnapshotDisk? own)
    {
        DiskOption option = own?.Option ?? new DiskOption { Path = "" };
        return new SnapshotDisk(
            new DiskOption
            {
                Path = state.Text(option.Path), Serial = state.Text(option.Serial ?? ""), ReadOnly = state.Keep(option.ReadOnly),
                PackedRing = state.Keep(option.PackedRing), Direct = state.Keep(option.Direct), Slot = state.Keep(option.Slot ?? 0),
            },
            state.Keep(own?.Bytes ?? 0), state.Keep(own?.ModifiedNs ?? 0));
    }

    /// <summary>Why an image is not the one of the snapshot, or null.</summary>
    public string? Refuse(DiskFile image) =>
        image.Bytes != Bytes ? $"it has {image.Bytes} bytes, and had {Bytes}" : image.ModifiedNs != ModifiedNs ? "it has been written to since" : null;

    /// <summary>File systems count time in steps of a clock tick, 10 ms at most.</summary>
    private const int StepMs = 20;

    /// <summary>Waits until a write that is yet to come changes the time of the image's last one.</summary>
    public static void WaitForNextStep(IEnumerable<SnapshotDisk> disks)
    {
        long last = disks.Select(d => d.ModifiedNs).DefaultIfEmpty(0).Max();
        while (HostClock.RealtimeNs() - last is >= 0 and < StepMs * 1_000_000L)
            _ = s_never.WaitOne(1);
    }

    private static readonly ManualResetEvent s_never = new(false);
}
