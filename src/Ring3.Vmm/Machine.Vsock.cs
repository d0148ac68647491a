using System.Net.Sockets;
using Ring3.Virtio;

namespace Ring3.Vmm;

// The device of --vsock, and its socket.
public sealed partial class Machine
{
    private void AddVsock(VsockOption option)
    {
        Socket listener = SocketFile.Listen(option.Path, mode: null, out string why)
            ?? throw new BootException(ExitStatus.NoInput, $"--vsock {option.Path}: {why}");
        if (_options.VsockConnector is { } program)
            _vsockConnector = VsockConnector.Start(program, option.Path);
        else
            _vsockPath = option.Path;
        Func<uint, Socket?> connect = _vsockConnector is { } connector ? connector.Connect : port => VsockDevice.Connect(option.Path, port);
        AddVirtio(new VsockDevice(_vm.Memory, option.Cid, connect, listener), OtherClass, VirtioFeature.OfTransport);
    }

    private string? _vsockPath;
    private VsockConnector? _vsockConnector;
}
