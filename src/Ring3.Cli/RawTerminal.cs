using System.Diagnostics;
using Ring3.Host;

namespace Ring3.Cli;

/// <summary>
/// The user's terminal in raw mode. Restored by Dispose, at process exit, on an unhandled exception, and — when the process is killed or crashes natively — by
/// a small shell that waits for the end of a pipe which only this process holds open.
/// </summary>
internal sealed class RawTerminal : IDisposable
{
    private readonly int _fd;
    private readonly Terminal.Attributes _saved;
    private readonly Process? _guard;
    private int _restored;

    private RawTerminal(int fd, Terminal.Attributes saved, Process? guard)
    {
        (_fd, _saved, _guard) = (fd, saved, guard);
        AppDomain.CurrentDomain.ProcessExit += OnExit;
        AppDomain.CurrentDomain.UnhandledException += OnCrash;
    }

    /// <summary>Null when the descriptor is not a terminal after all.</summary>
    public static RawTerminal? Enter(int fd)
    {
        Process? guard = StartGuard();
        Terminal.Attributes? saved = Terminal.MakeRaw(fd);
        return saved is null ? null : new RawTerminal(fd, saved, guard);
    }

    public void Dispose()
    {
        AppDomain.CurrentDomain.ProcessExit -= OnExit;
        AppDomain.CurrentDomain.UnhandledException -= OnCrash;
        Restore();
    }

    private void OnExit(object? sender, EventArgs e) => Restore();

    private void OnCrash(object? sender, UnhandledExceptionEventArgs e) => Restore();

    private void Restore()
    {
        if (Interlocked.Exchange(ref _restored, 1) != 0)
            return;
        Terminal.Restore(_fd, _saved);
        try
        {
            _guard?.StandardInput.Write("done\n");
            _guard?.StandardInput.Close();
        }
        catch (IOException) { }
        _guard?.Dispose();
    }

    /// <summary>Remembers the terminal's settings, and puts them back if its input ends without the word "done".</summary>
    private static Process? StartGuard()
    {
        const string Script = "trap '' TTOU TTIN INT QUIT TSTP TERM HUP; s=$(stty -g <&2 2>/dev/null) || exit 0; echo ready;"
            + " read -r word; [ \"$word\" = done ] || stty \"$s\" <&2";
        try
        {
            var start = new ProcessStartInfo("/bin/sh", ["-c", Script]) { RedirectStandardInput = true, RedirectStandardOutput = true };
            Process p = Process.Start(start)!;
            _ = p.StandardOutput.ReadLine();
            return p;
        }
        catch (System.ComponentModel.Win32Exception) { return null; }
    }
}
