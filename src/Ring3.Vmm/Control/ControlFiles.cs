using System.Runtime.InteropServices;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>Commands that a confined machine needs an open file for: they are opened here, and passed on.</summary>
public static class ControlFiles
{
    /// <summary>Has a machine write a snapshot; the file has its name when it is whole.</summary>
    /// <exception cref="BootException">There is none.</exception>
    public static JsonElement Snapshot(string socket, string path)
    {
        var place = new SnapshotFolder(Path.GetFullPath(path));
        // The signal does what it does without.
        PosixSignalRegistration[] signals = [.. from s in (PosixSignal[])[PosixSignal.SIGINT, PosixSignal.SIGQUIT, PosixSignal.SIGTERM, PosixSignal.SIGHUP]
            select PosixSignalRegistration.Create(s, _ => place.Drop())];
        bool kept = false;
        try
        {
            using SafeFileHandle file = place.Create();
            JsonElement answer = ControlClient.Ask(socket, ["snapshot", place.Path], (int)file.DangerousGetHandle(), takesTime: true);
            place.Keep();
            kept = true;
            return answer;
        }
        finally
        {
            if (!kept)
                place.Drop();
            foreach (PosixSignalRegistration signal in signals)
                signal.Dispose();
        }
    }

    /// <summary>Gives a running machine a disk.</summary>
    /// <param name="socket">The machine's.</param>
    /// <param name="disk">It is opened here.</param>
    /// <param name="messages">Where a line about it goes.</param>
    /// <exception cref="BootException">It does not have it.</exception>
    public static JsonElement AddDisk(string socket, DiskOption disk, TextWriter messages)
    {
        const string Command = "add-disk";
        if (disk.Format is { } format)
            throw new BootException(ExitStatus.Usage, $"{Command} knows raw images alone: a disk with format={format} has to be there from the start (--disk)");
        using DiskFile file = disk.Open(messages, Command);
        return ControlClient.Ask(socket,
            [Command, Path.GetFullPath(disk.Path), disk.ReadOnly ? "ro" : "rw", disk.PackedRing ? "packed" : "split", disk.Serial ?? ""], file.Descriptor,
            takesTime: true);
    }

    /// <summary>Gives a running machine a share, whose server is started here and ends when the machine lets it go.</summary>
    /// <exception cref="BootException">It does not have it.</exception>
    public static JsonElement AddShare(string socket, ShareOption share)
    {
        const string Command = "add-share";
        VhostHelper helper = VhostHelper.Share(share, Command, ownSession: true);
        try
        {
            JsonElement answer = ControlClient.Ask(socket, [Command, share.Directory, share.ReadOnly ? "ro" : "rw", share.Tag ?? ""], helper.Link.Descriptor,
                takesTime: true);
            helper.Link.Dispose();
            return answer;
        }
        catch (BootException)
        {
            helper.Link.Dispose();
            helper.Dispose();
            throw;
        }
    }

    /// <summary>Takes a disk or a share from a running machine, when its guest has let it go.</summary>
    /// <param name="socket">The machine's.</param>
    /// <param name="command">remove-disk or remove-share.</param>
    /// <param name="name">File and serial number, or folder and tag.</param>
    /// <exception cref="BootException">It keeps it.</exception>
    public static JsonElement Remove(string socket, string command, string name) =>
        ControlClient.Ask(socket, [command, name, name.Length == 0 ? "" : Path.TrimEndingDirectorySeparator(Path.GetFullPath(name))], takesTime: true);
}
