using Ring3.Virtio;

namespace Ring3.Vmm;

// The streams of a command, as ports of a virtio console.
public sealed partial class Machine
{
    private static readonly string[] s_portNames = ["terminal", "input", "output", "error", "control", "status", "script"];
    private readonly PortOutput?[] _portOutputs = new PortOutput?[CommandStreams.Ports];
    private ConsoleDevice? _console;

    private void AddConsole()
    {
        var ports = new (string, PortOutput)[CommandStreams.Ports];
        for (int i = 0; i < ports.Length; i++)
        {
            int port = i;
            ports[i] = ($"ring3.{s_portNames[i]}", data => _portOutputs[port]?.Invoke(data));
        }
        _console = new ConsoleDevice(_vm.Memory, ports);
        AddVirtio(_console, ConsoleClass, VirtioFeature.OfTransport);
    }

    /// <summary>Gives a port of <see cref="CommandStreams"/> its output; before the machine runs.</summary>
    public void AttachPort(int port, PortOutput output) => _portOutputs[port] = output;

    /// <summary>Gives a port's reader bytes, waiting for room. False: nobody takes them any more.</summary>
    public bool SendPort(int port, ReadOnlySpan<byte> data) => _console?.Send(port, data) ?? false;

    /// <summary>The end of what a port's reader gets.</summary>
    public void EndPortInput(int port) => _console?.EndInput(port);

    /// <summary>The guest reads or writes the port.</summary>
    public bool IsPortOpen(int port) => _console?.IsOpen(port) ?? false;

    /// <summary>Takes what the guest has written to the command's ports so far.</summary>
    public void DrainPorts()
    {
        foreach (int port in (int[])[CommandStreams.Terminal, CommandStreams.Output, CommandStreams.Error])
            _console?.DrainOutput(port);
    }

    /// <summary>Who waits in <see cref="SendPort"/> returns.</summary>
    public void StopPortInput() => _console?.StopInput();
}
