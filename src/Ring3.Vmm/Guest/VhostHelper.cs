using System.ComponentModel;
using System.Diagnostics;
using System.Net.Sockets;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using System.Text.Json;
using Ring3.Host;
using Ring3.Virtio;

namespace Ring3.Vmm;

/// <summary>A program of the host that serves a device by vhost-user: virtiofsd for a share, qemu-storage-daemon for a disk image.</summary>
internal sealed class VhostHelper : IDisposable
{
    private const int EndMs = 2000;
    private static readonly string[] s_searched = (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':', StringSplitOptions.RemoveEmptyEntries);

    private readonly Process _process;
    private readonly string _name;
    private volatile string _last = "";

    private VhostHelper(Process process, string name, VhostUserLink link)
    {
        (_process, _name, Link) = (process, name, link);
        process.ErrorDataReceived += (_, e) =>
        {
            if (e.Data is { Length: > 0 } line)
                _last = Short(line);
        };
        process.OutputDataReceived += (_, _) => { };
        process.BeginErrorReadLine();
        process.BeginOutputReadLine();
    }

    public int ProcessId => _process.Id;

    /// <summary>To the program; belongs to who takes it.</summary>
    public VhostUserLink Link { get; }

    /// <summary>Serves a folder. An ordinary user's server has the user's rights, in a name space of its own where it may change its root.</summary>
    /// <param name="share">Which.</param>
    /// <param name="option">What has asked for it.</param>
    /// <param name="ownSession">The server outlives this process and its terminal, as long as somebody is connected to it.</param>
    /// <exception cref="BootException">There is no such folder, or no server.</exception>
    public static VhostHelper Share(ShareOption share, string option = "--share", bool ownSession = false)
    {
        string what = $"{option} {share.Directory}";
        if (!Directory.Exists(share.Directory))
            throw new BootException(ExitStatus.NoInput, $"{what}: {(File.Exists(share.Directory) ? "is no folder" : "no such folder")}");
        string? server = Find("virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd");
        if (server is null)
        {
            const string Package = "Debian package virtiofsd; before Debian 13 qemu-system-common";
            throw new BootException(ExitStatus.NoInput, $"{what}: the program virtiofsd is missing ({Package})");
        }
        // The limit of descriptors is what this process has.
        string source = share.Directory.Replace("\\", "\\\\", StringComparison.Ordinal).Replace(",", "\\,", StringComparison.Ordinal);
        bool isQemus = server.StartsWith("/usr/lib/qemu/", StringComparison.Ordinal), isRoot = Environment.IsPrivilegedProcess;
        string[] options = isQemus ? ["-o", $"source={source}", "-o", "sandbox=chroot", "-o", "log_level=err", "--rlimit-nofile=0"]
            : [$"--shared-dir={share.Directory}", .. isRoot ? ["--sandbox=chroot"] : NameSpace(share.Directory), "--log-level=error", "--rlimit-nofile=0"];
        string[] words = [server, "--fd=" + ListenerPlace, .. options];
        if (isQemus && !isRoot)
            words = ["unshare", "--map-current-user", "--keep-caps", .. words];
        return Start(ownSession ? ["setsid", .. words] : words, "virtiofsd", what, keepsGroups: isQemus && !isRoot);
    }

    /// <summary>
    /// The virtiofsd in Rust changes its root for root alone, and makes an ordinary user's name space itself: one in which the user is who he is. The whole
    /// file system cannot be changed to, and leaves nothing out.
    /// </summary>
    private static string[] NameSpace(string directory)
    {
        (uint user, uint group) = Privileges.Identity;
        return Path.GetFullPath(directory) == "/" ? ["--sandbox=none"]
            : ["--sandbox=namespace", $"--uid-map=:{user}:{user}:1:", $"--gid-map=:{group}:{group}:1:"];
    }

    /// <summary>QEMU's virtiofsd gives up the user's other groups, which an ordinary user's name space does not let it. They are the user's rights.</summary>
    private static Process StartKeepingGroups(ProcessStartInfo start)
    {
        Process? process = null;
        ExceptionDispatchInfo? failure = null;
        // The runtime's thread for signals, which the first child makes necessary, must not be the other thread's, or it would have the filter as well.
        PosixSignalRegistration.Create(PosixSignal.SIGCHLD, static _ => { }).Dispose();
        // The filter is the thread's, and goes to what it starts.
        var thread = new Thread(() =>
        {
            try
            {
                var filter = new SystemCallFilter { AllowsOthers = true };
                filter.Fail(SystemCall.setgroups, 0);
                int error = filter.InstallForThread();
                if (error != 0)
                    throw new IOException($"seccomp: {Marshal.GetPInvokeErrorMessage(-error)}");
                process = Process.Start(start);
            }
            catch (Exception e) { failure = ExceptionDispatchInfo.Capture(e); }
        });
        thread.Start();
        thread.Join();
        failure?.Throw();
        return process!;
    }

    /// <summary>Serves a disk image. It ends with this thread's process, which would not end it by going away.</summary>
    /// <exception cref="BootException">There is no such file, or no server.</exception>
    public static VhostHelper Disk(DiskOption disk, int queues)
    {
        string what = $"--disk {disk.Path}";
        if (!File.Exists(disk.Path))
            throw new BootException(ExitStatus.NoInput, $"{what}: no such file");
        string? server = Find("qemu-storage-daemon", "/usr/bin/qemu-storage-daemon");
        if (server is null)
            throw new BootException(ExitStatus.NoInput,
                $"{what}: format={disk.Format} needs the program qemu-storage-daemon (Debian package qemu-system-common)");
        string readOnly = disk.ReadOnly ? "true" : "false", direct = disk.Direct ? "true" : "false";
        string file = JsonEncodedText.Encode(Path.GetFullPath(disk.Path)).ToString();
        string node = $$$"""
            {"driver":"{{{disk.Format}}}","node-name":"disk","read-only":{{{readOnly}}},"discard":"unmap","cache":{"direct":{{{direct}}} },
            "file":{"driver":"file","filename":"{{{file}}}","discard":"unmap","cache":{"direct":{{{direct}}} } }}
            """;
        string writable = disk.ReadOnly ? "off" : "on";
        string export = $"type=vhost-user-blk,id=export,node-name=disk,writable={writable},num-queues={queues},addr.type=fd,addr.str={ListenerPlace}";
        return Start(["setpriv", "--pdeathsig", "KILL", server, "--blockdev", node, "--export", export], "qemu-storage-daemon", what);
    }

    /// <summary>Where the number of the listener goes.</summary>
    private const string ListenerPlace = "@listener@";

    private static string? Find(string name, params string[] places) =>
        places.FirstOrDefault(File.Exists) ?? s_searched.Select(d => Path.Combine(d, name)).FirstOrDefault(File.Exists);

    private static VhostHelper Start(string[] words, string name, string what, bool keepsGroups = false)
    {
        int listener = -1;
        HelperSocket? socket = null;
        try
        {
            socket = HelperSocket.Create(out listener);
            var start = new ProcessStartInfo(words[0], words[1..].Select(w => w.Replace(ListenerPlace, $"{listener}", StringComparison.Ordinal)))
            {
                UseShellExecute = false, RedirectStandardError = true, RedirectStandardInput = true, RedirectStandardOutput = true,
            };
            Process process = keepsGroups ? StartKeepingGroups(start) : Process.Start(start)!;
            process.StandardInput.Close();
            return new VhostHelper(process, name, new VhostUserLink(socket));
        }
        catch (Exception e) when (e is Win32Exception or SocketException or HostCallException or IOException or UnauthorizedAccessException)
        {
            socket?.Dispose();
            throw new BootException(ExitStatus.NoInput, $"{what}: {name} cannot be started: {e.Message}");
        }
        finally
        {
            if (listener >= 0)
                FileDescriptor.Close(listener);
        }
    }

    /// <summary>A line without the options that it repeats.</summary>
    private static string Short(string line)
    {
        const string EndOfOption = "}: ";
        int at = line.LastIndexOf(EndOfOption, StringComparison.Ordinal);
        return (at < 0 ? line : line[(at + EndOfOption.Length)..]).Trim();
    }

    /// <summary>What is wrong with the program, which has said so or ended.</summary>
    public string Explain(string why)
    {
        // A line of those who have ended says more.
        if (why.Contains("ended", StringComparison.Ordinal) && _process.WaitForExit(EndMs))
            _process.WaitForExit();
        return _last.Length == 0 ? $"{_name}: {why}" : $"{_name}: {why}: {_last}";
    }

    /// <summary>After the link was closed.</summary>
    public void Dispose()
    {
        if (_name != "virtiofsd" || !_process.WaitForExit(EndMs))
            _process.Kill();
        _process.WaitForExit();
        _process.Dispose();
    }
}
