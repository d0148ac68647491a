using System.Net.Sockets;
using Ring3.Virtio;

namespace Ring3.Vmm;

// The device of --vsock, and its socket.
public sealed partial class Machine
{
    private void AddVsock(VsockOption option)
    {
        Socket listener = Listen(option.Path);
        AddVirtio(new VsockDevice(_vm.Memory, option.Cid, option.Path, listener), OtherClass, VirtioFeature.OfTransport);
        _vsockPath = option.Path;
    }

    private string? _vsockPath;

    private static Socket Listen(string path)
    {
        const int Backlog = 64;
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            var place = new UnixDomainSocketEndPoint(path);
            if (File.Exists(path) && IsAbandoned(place))
                File.Delete(path);
            socket.Bind(place);
            socket.Listen(Backlog);
            return socket;
        }
        catch (Exception e) when (e is SocketException or ArgumentException or IOException or UnauthorizedAccessException)
        {
            socket.Dispose();
            string why = e is SocketException { SocketErrorCode: SocketError.AddressAlreadyInUse } ? "is taken" : e.Message;
            throw new BootException(ExitStatus.NoInput, $"--vsock {path}: {why}");
        }
    }

    /// <summary>Whether it is a socket that nobody listens on: a machine that was killed has left it.</summary>
    private static bool IsAbandoned(UnixDomainSocketEndPoint place)
    {
        using var probe = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { Blocking = false };
        try
        {
            probe.Connect(place);
            return false;
        }
        // What is no socket refuses as well.
        catch (SocketException e) { return e.SocketErrorCode == SocketError.ConnectionRefused && new FileInfo(place.ToString()!).Length == 0; }
    }
}
