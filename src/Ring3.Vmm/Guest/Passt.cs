using System.ComponentModel;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>
/// A network without privileges: passt, which speaks for the guest through sockets of its own. It is started with one end of a pair of sockets, and ends
/// when the other is closed.
/// </summary>
internal sealed class Passt : IDisposable
{
    /// <summary>What passt tells the guest. SPEC: passt(1), --mtu.</summary>
    public const ushort Mtu = 65520;

    private const int EndMs = 2000;
    private readonly Process _process;

    private Passt(Process process, StreamSocket socket) => (_process, Socket) = (process, socket);

    public int ProcessId => _process.Id;

    /// <summary>Our end; belongs to who takes it.</summary>
    public StreamSocket Socket { get; }

    /// <exception cref="BootException">There is no passt, or it cannot do what is asked of it.</exception>
    public static Passt Start(NetOption option)
    {
        foreach (NetOption.Forward forward in option.Forwards)
            CheckPort(forward.Host);
        StreamSocket socket = StreamSocket.CreatePair(out int other);
        try
        {
            var start = new ProcessStartInfo("passt") { UseShellExecute = false, RedirectStandardError = true, RedirectStandardInput = true };
            foreach (string word in (string[])["--foreground", "--stderr", "--quiet", "--one-off", "--fd", $"{other}"])
                start.ArgumentList.Add(word);
            if (option.Forwards.Count != 0)
            {
                start.ArgumentList.Add("--tcp-ports");
                start.ArgumentList.Add(IPAddress.Loopback + "/" + string.Join(',', option.Forwards.Select(f => $"{f.Host}:{f.Guest}")));
            }
            return new Passt(Process.Start(start)!, socket);
        }
        catch (Win32Exception e)
        {
            const int NoEntry = 2;
            socket.Dispose();
            string why = e.NativeErrorCode == NoEntry ? "the program passt is missing (Debian package passt)" : $"passt cannot be started: {e.Message}";
            throw new BootException(ExitStatus.NoInput, $"--net user: {why}");
        }
        finally
        {
            FileDescriptor.Close(other);
        }
    }

    /// <summary>passt says it later and otherwise.</summary>
    private static void CheckPort(ushort port)
    {
        using var probe = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        try { probe.Bind(new IPEndPoint(IPAddress.Loopback, port)); }
        catch (SocketException e) { throw new BootException(ExitStatus.NoInput, $"--net user: port {port} of 127.0.0.1: {e.Message}"); }
    }

    /// <summary>The last line of what it has said; after its end.</summary>
    public string LastWords()
    {
        if (!_process.WaitForExit(EndMs))
            return "";
        string[] lines = _process.StandardError.ReadToEnd().Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);
        return lines.LastOrDefault(l => !l.Contains("syslog", StringComparison.Ordinal)) ?? "";
    }

    /// <summary>After the socket was closed.</summary>
    public void Dispose()
    {
        if (!_process.WaitForExit(EndMs))
            _process.Kill();
        _process.Dispose();
    }
}
