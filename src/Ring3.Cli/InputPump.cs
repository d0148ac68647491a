using Ring3.Host;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>Feeds a file descriptor to COM1. On a terminal Ctrl-] quits.</summary>
internal sealed class InputPump : IDisposable
{
    private const byte QuitKey = 0x1d, EndOfTransmission = 4;
    private const int PollMs = 100, FullMs = 10;
    private readonly int _fd;
    private readonly Machine _machine;
    private readonly bool _quitKey, _endOfInput;
    private readonly Thread _thread;
    private readonly ManualResetEvent _stopped = new(false);
    private volatile bool _stop;

    /// <param name="quitKey">Ctrl-] ends the machine (terminals).</param>
    /// <param name="endOfInput">At the end of the input the guest gets Ctrl-D, which ends the default guest's shell.</param>
    public InputPump(int fd, Machine machine, bool quitKey, bool endOfInput)
    {
        (_fd, _machine, _quitKey, _endOfInput) = (fd, machine, quitKey, endOfInput);
        _thread = new Thread(Run) { IsBackground = true, Name = "ring3-input" };
        _thread.Start();
    }

    private void Run()
    {
        Span<byte> buffer = stackalloc byte[1024];
        while (!_stop)
        {
            int n = Terminal.Read(_fd, buffer, PollMs);
            if (n < 0)
                continue;
            if (n == 0)
            {
                if (_endOfInput)
                    Give([EndOfTransmission]);
                return;
            }
            int quit = _quitKey ? buffer[..n].IndexOf(QuitKey) : -1;
            Give(quit < 0 ? buffer[..n] : buffer[..quit]);
            if (quit >= 0)
            {
                _machine.End(MachineEnd.Quit);
                return;
            }
        }
    }

    private void Give(ReadOnlySpan<byte> data)
    {
        while (!data.IsEmpty && !_stop)
        {
            int taken = _machine.SerialInput(0, data);
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
