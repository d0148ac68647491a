using System.Runtime.InteropServices;
using System.Text;
using Ring3.Host;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>
/// SIGINT, SIGQUIT, SIGTERM and SIGHUP end the machine; the process then exits with 128 + signal on its ordinary path, terminal restored. Or
/// the first three go to the command in the guest, once it runs, and end the machine when they come again. The terminal's size goes to the command's.
/// </summary>
internal sealed class MachineSignals : IDisposable
{
    private readonly PosixSignalRegistration[] _registrations;
    private readonly Machine _machine;
    private readonly bool _forward;
    private int _forwarded;

    public MachineSignals(Machine machine, bool forward, bool terminal)
    {
        (_machine, _forward) = (machine, forward);
        PosixSignalRegistration[] all = [On(PosixSignal.SIGHUP, 1), On(PosixSignal.SIGINT, 2), On(PosixSignal.SIGQUIT, 3), On(PosixSignal.SIGTERM, 15)];
        _registrations = terminal ? [.. all, PosixSignalRegistration.Create(PosixSignal.SIGWINCH, _ => TellSize())] : all;
    }

    private PosixSignalRegistration On(PosixSignal signal, int number) => PosixSignalRegistration.Create(signal, context =>
    {
        context.Cancel = true;
        if (_forward && signal != PosixSignal.SIGHUP && _machine.IsPortOpen(CommandStreams.Control) && Interlocked.Exchange(ref _forwarded, 1) == 0)
            Tell($"signal {number}");
        else
            _machine.End(MachineEnd.Quit, 128 + number);
    });

    private void TellSize()
    {
        (int rows, int columns) = Terminal.Size(0);
        if (rows > 0 && columns > 0 && _machine.IsPortOpen(CommandStreams.Control))
            Tell($"size {rows} {columns}");
    }

    private void Tell(string line) => _ = _machine.SendPort(CommandStreams.Control, Encoding.ASCII.GetBytes(line + "\n"));

    public void Dispose()
    {
        foreach (PosixSignalRegistration r in _registrations)
            r.Dispose();
    }
}
