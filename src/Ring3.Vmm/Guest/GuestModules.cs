namespace Ring3.Vmm;

/// <summary>A kernel module for the guest's init to load.</summary>
public sealed record GuestModule(string Name, byte[] Content);

/// <summary>The modules of Debian's kernels that the machine's devices, and roots on disks, need, in the order in which they load.</summary>
public static class GuestModules
{
    private static readonly string[] s_bus = ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"];
    private static readonly string[] s_always = ["virtio-rng", "virtio_balloon"], s_disk = ["virtio_blk"], s_net = ["failover", "net_failover", "virtio_net"],
        s_share = ["fuse", "virtiofs"], s_console = ["virtio_console"], s_overlay = ["overlay"],
        s_vsock = ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"],
        s_root = ["crc16", "mbcache", "jbd2", "ext4", "autofs4"], s_xfs = ["libcrc32c", "xfs"];
    private static readonly string[] s_all =
        [.. s_bus, .. s_always, .. s_disk, .. s_net, .. s_share, .. s_console, .. s_overlay, .. s_vsock, .. s_root, .. s_xfs];

    /// <summary>Changes when others are kept in the cache. Before 2 those of Debian 13 were missed.</summary>
    public static string Kept => "2 " + string.Join(' ', s_all);

    /// <summary>What the options' devices need; nothing without one that the guest cannot do without.</summary>
    public static IReadOnlyList<string> For(BootOptions options)
    {
        string[] needed =
        [
            .. options.Disks.Count == 0 ? [] : s_disk, .. options.Net is null ? [] : s_net, .. options.Shares.Count == 0 ? [] : s_share,
            .. options.Streams is null ? [] : s_console, .. options.Run is null ? [] : s_overlay,
            .. options.Vsock is null ? [] : s_vsock,
            .. options.BootsRoot ? s_root : [], .. options.BootsRoot && options.KernelWords.Contains("rootfstype=xfs") ? s_xfs : [],
        ];
        // Disks and shares may come later (ring3 ctl).
        return needed.Length == 0 ? [] : [.. s_bus, .. s_always, .. s_disk, .. s_share, .. needed.Except(s_disk).Except(s_share)];
    }

    /// <summary>Name in the cache of a file of a kernel package, or null when it is none of these modules. A module's file may be packed.</summary>
    public static string? FileOf(string path)
    {
        string file = Path.GetFileName(path), name = file.Split('.')[0];
        bool known = Array.IndexOf(s_all, name) >= 0;
        // Since Debian 13 below /usr.
        bool isModule = path.StartsWith("lib/modules/", StringComparison.Ordinal) || path.StartsWith("usr/lib/modules/", StringComparison.Ordinal);
        return known && isModule && file[name.Length..] is ".ko" or ".ko.xz" or ".ko.zst" ? file : null;
    }
}
