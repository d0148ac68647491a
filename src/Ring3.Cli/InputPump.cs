using Ring3.Host;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>Where input goes.</summary>
internal interface IInputSink
{
    /// <summary>Gives bytes to the guest, as many as it takes now.</summary>
    int Give(ReadOnlySpan<byte> data);

    /// <summary>There are no more.</summary>
    void End();
}

/// <summary>COM1.</summary>
/// <param name="machine">Whose.</param>
/// <param name="endOfInput">At the end of the input the guest gets Ctrl-D, which ends the default guest's shell.</param>
internal sealed class SerialInput(Machine machine, bool endOfInput) : IInputSink
{
    private const byte EndOfTransmission = 4;

    public int Give(ReadOnlySpan<byte> data) => machine.SerialInput(0, data);

    public void End()
    {
        if (endOfInput)
            _ = machine.SerialInput(0, [EndOfTransmission]);
    }
}

/// <summary>A port of the command's console.</summary>
internal sealed class PortInput(Machine machine, int port) : IInputSink
{
    public int Give(ReadOnlySpan<byte> data) => machine.SendPort(port, data) ? data.Length : 0;

    public void End() => machine.EndPortInput(port);
}

/// <summary>Feeds a file descriptor to the guest. On a terminal Ctrl-] quits, and Ctrl-^ makes a snapshot where one is asked for.</summary>
internal sealed class InputPump : IDisposable
{
    private const byte QuitKey = 0x1d, SnapshotKey = 0x1e;
    private const int PollMs = 100, FullMs = 10, BufferBytes = 16 << 10;
    private readonly int _fd;
    private readonly IInputSink _sink;
    private readonly IMachineControl _machine;
    private readonly bool _quitKey;
    private readonly Action? _snapshot;
    private readonly Thread _thread;
    private readonly ManualResetEvent _stopped = new(false);
    private volatile bool _stop;

    /// <param name="quitKey">Ctrl-] ends the machine (terminals).</param>
    /// <param name="snapshot">Makes a snapshot; null: Ctrl-^ is the guest's.</param>
    public InputPump(int fd, IInputSink sink, bool quitKey, IMachineControl machine, Action? snapshot = null)
    {
        (_fd, _sink, _quitKey, _machine, _snapshot) = (fd, sink, quitKey, machine, snapshot);
        _thread = new Thread(Run) { IsBackground = true, Name = "ring3-input" };
        _thread.Start();
    }

    private void Run()
    {
        var buffer = new byte[BufferBytes];
        while (!_stop)
        {
            int n = Terminal.Read(_fd, buffer, PollMs);
            if (n < 0)
                continue;
            if (n == 0)
            {
                _sink.End();
                return;
            }
            if (!TakeKeys(buffer.AsSpan(0, n)))
                return;
        }
    }

    /// <summary>Gives what was typed, and does what the keys in it ask for. False: the machine ends.</summary>
    private bool TakeKeys(ReadOnlySpan<byte> typed)
    {
        while (true)
        {
            int key = !_quitKey ? -1 : _snapshot is null ? typed.IndexOf(QuitKey) : typed.IndexOfAny(QuitKey, SnapshotKey);
            Give(key < 0 ? typed : typed[..key]);
            if (key < 0)
                return true;
            if (typed[key] == QuitKey)
            {
                _machine.End(MachineEnd.Quit);
                return false;
            }
            _snapshot!();
            typed = typed[(key + 1)..];
        }
    }

    private void Give(ReadOnlySpan<byte> data)
    {
        while (!data.IsEmpty && !_stop)
        {
            int taken = _sink.Give(data);
            data = data[taken..];
            if (!data.IsEmpty)
                _stopped.WaitOne(FullMs); // the guest has 64 KiB of input that it does not read
        }
    }

    public void Dispose()
    {
        _stop = true;
        _stopped.Set();
        _thread.Join();
        _stopped.Dispose();
    }
}
