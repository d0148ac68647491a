using System.Net.Sockets;

namespace Ring3.Vmm;

/// <summary>Local sockets by name.</summary>
internal static class SocketFile
{
    private const int Backlog = 64;

    /// <summary>Listens; what a process that was killed has left of the name is replaced. Null and the reason when that is not possible.</summary>
    public static Socket? Listen(string path, UnixFileMode? mode, out string why)
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            var place = new UnixDomainSocketEndPoint(path);
            if (File.Exists(path) && IsAbandoned(path))
                File.Delete(path);
            socket.Bind(place);
            if (mode is { } bits)
                File.SetUnixFileMode(path, bits);
            socket.Listen(Backlog);
            why = "";
            return socket;
        }
        catch (Exception e) when (e is SocketException or ArgumentException or IOException or UnauthorizedAccessException)
        {
            socket.Dispose();
            why = e is SocketException { SocketErrorCode: SocketError.AddressAlreadyInUse } ? "is taken" : e.Message;
            return null;
        }
    }

    /// <summary>Whether it is a socket that nobody listens on: a process that was killed, or that may not remove it, has left it.</summary>
    public static bool IsAbandoned(string path)
    {
        using var probe = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { Blocking = false };
        try
        {
            probe.Connect(new UnixDomainSocketEndPoint(path));
            return false;
        }
        // What is no socket refuses as well.
        catch (SocketException e) { return e.SocketErrorCode == SocketError.ConnectionRefused && new FileInfo(path).Length == 0; }
    }
}
