using Ring3.Abi;
using Ring3.Host;
using Ring3.Virtio;

namespace Ring3.Vmm;

/// <summary>What --disk says.</summary>
public sealed record DiskOption
{
    public required string Path { get; init; }
    public bool ReadOnly { get; init; }
    /// <summary>Without the host's page cache, where the file system has that (O_DIRECT).</summary>
    public bool Direct { get; init; }
    /// <summary>What the guest is told; null: a name by the disk's number.</summary>
    public string? Serial { get; init; }
    /// <summary>Offer the packed ring too, not the split one alone.</summary>
    public bool PackedRing { get; init; } = true;

    /// <summary>The PCI slot that it had in the machine of a snapshot.</summary>
    internal int? Slot { get; init; }

    /// <summary>The image's format when it is not raw: a block driver of qemu-storage-daemon.</summary>
    public string? Format { get; init; }

    private static readonly string[] s_formats = ["qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc"];

    /// <summary>Bytes of a serial number.</summary>
    private const int MaxSerial = 20;

    /// <summary>Whether a guest can be told this serial number.</summary>
    public static bool IsSerial(string text) => text.Length is > 0 and <= MaxSerial && System.Text.Ascii.IsValid(text);

    /// <summary>Whether qemu-storage-daemon is asked for images of this format.</summary>
    public static bool IsFormat(string text) => Array.IndexOf(s_formats, text) >= 0;

    /// <summary>
    /// Reads FILE[,ro][,direct][,serial=S][,format=F][,ring=split|packed]; a comma of a file's name is doubled. Null and a message when it is something else.
    /// </summary>
    public static DiskOption? Parse(string text, out string error)
    {
        const string Comma = "\0";
        string[] words = [.. text.Replace(",,", Comma, StringComparison.Ordinal).Split(',').Select(w => w.Replace(Comma, ",", StringComparison.Ordinal))];
        var disk = new DiskOption { Path = words[0] };
        error = "";
        if (words[0].Length == 0)
            error = $"--disk needs a file, not '{text}'";
        foreach (string word in words.Skip(1))
        {
            switch (word.Split('=', 2))
            {
                case ["ro"]: disk = disk with { ReadOnly = true }; break;
                case ["direct"]: disk = disk with { Direct = true }; break;
                case ["serial", var serial] when IsSerial(serial):
                    disk = disk with { Serial = serial };
                    break;
                case ["serial", _]: error = $"a serial number of --disk has 1 to {MaxSerial} ASCII characters"; break;
                case ["format", "raw"]: break;
                case ["format", var format] when IsFormat(format): disk = disk with { Format = format }; break;
                case ["format", var format]: error = $"--disk knows format=raw, {string.Join(", ", s_formats)}, not '{format}'"; break;
                case ["ring", "split"]: disk = disk with { PackedRing = false }; break;
                case ["ring", "packed"]: disk = disk with { PackedRing = true }; break;
                default:
                    error = $"--disk knows ro, direct, serial=, format= and ring=split|packed, not '{word}' (a comma of a file's name is doubled)";
                    break;
            }
        }
        return error.Length == 0 ? disk : null;
    }

    /// <summary>Features of a disk's queues.</summary>
    internal static ulong Rings(bool packed) => packed ? VirtioFeature.OfTransport : VirtioFeature.OfTransport & ~VirtioFeature.PackedRing;

    /// <summary>Opens a raw image, and locks it.</summary>
    /// <param name="messages">Where a line goes when there is no way around the page cache.</param>
    /// <param name="option">Who names the image, for messages.</param>
    /// <exception cref="BootException">It cannot be opened, or be a disk.</exception>
    public DiskFile Open(TextWriter messages, string option = "--disk")
    {
        int error = DiskFile.TryOpen(Path, ReadOnly, out DiskFile? file, Direct);
        DiskFile image = Checked(error, file, Path, ReadOnly, option);
        if (Direct && !image.IsDirect)
            messages.WriteLine(NotDirect(option));
        return image;
    }

    private string NotDirect(string option) => $"ring3: {option} {Path}: its file system has no direct access (O_DIRECT); it goes through the page cache";

    /// <summary>The image for a program that would not open it when there is no way around the page cache.</summary>
    internal DiskOption WhereDirect(TextWriter messages)
    {
        if (!Direct || DiskFile.HasDirect(Path))
            return this;
        messages.WriteLine(NotDirect("--disk"));
        return this with { Direct = false };
    }

    /// <summary>An image that was opened, if it can be a disk.</summary>
    internal static DiskFile Checked(int error, DiskFile? file, string path, bool readOnly, string option)
    {
        if (error != 0)
        {
            string hint = $"{option} FILE,ro";
            string why = -error switch
            {
                Errno.ENOENT => "no such file",
                Denied or Errno.EPERM => readOnly ? "permission denied" : $"permission denied (read-only disks: {hint})",
                ReadOnlyFileSystem => $"is on a read-only file system ({hint})",
                Errno.EAGAIN => "is in use by another machine",
                NotBlock => "is neither a file nor a block device",
                _ => System.Runtime.InteropServices.Marshal.GetPInvokeErrorMessage(-error),
            };
            throw new BootException(ExitStatus.NoInput, $"{option} {path}: {why}");
        }
        if (file!.Bytes != 0 && file.Bytes % BlockDevice.SectorBytes == 0)
            return file;
        string size = file.Bytes == 0 ? "is empty" : $"has {file.Bytes} bytes, no multiple of {BlockDevice.SectorBytes}: a raw image that is cut off, or none";
        file.Dispose();
        throw new BootException(ExitStatus.BadImage, $"{option} {path}: {size}");
    }

    private const int Denied = 13, NotBlock = 15, ReadOnlyFileSystem = 30;
}
