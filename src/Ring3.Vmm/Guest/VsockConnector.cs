using System.ComponentModel;
using System.Diagnostics;
using System.Net.Sockets;
using System.Runtime.InteropServices;
using Ring3.Host;
using Ring3.Virtio;

namespace Ring3.Vmm;

/// <summary>
/// A process of this program beside a confined machine with <c>--vsock</c>: it connects to PATH_PORT, and to nothing else, when the guest wants to be
/// connected to a port, hands the machine the connection, and removes PATH at the end of the machine, however that comes.
/// </summary>
public sealed class VsockConnector : IDisposable
{
    private const int AnswerMs = 2000, EndMs = 2000;
    private const byte None = 0, Connected = 1;
    private readonly Process _process;
    private readonly StreamSocket _socket;

    private VsockConnector(Process process, StreamSocket socket) => (_process, _socket) = (process, socket);

    /// <param name="program">The words that start this program; behind them come the descriptor's number and the path, for <see cref="Serve"/>.</param>
    /// <param name="path">Name of the host's socket.</param>
    /// <exception cref="BootException">It cannot be started.</exception>
    public static VsockConnector Start(IReadOnlyList<string> program, string path)
    {
        StreamSocket socket = StreamSocket.CreatePair(out int other);
        try
        {
            var start = new ProcessStartInfo(program[0], [.. program.Skip(1), $"{other}", path]) { UseShellExecute = false, RedirectStandardInput = true };
            return new VsockConnector(Process.Start(start)!, socket);
        }
        catch (Win32Exception e)
        {
            socket.Dispose();
            throw new BootException(ExitStatus.Resources, $"--vsock {path}: {program[0]} cannot be started: {e.Message}");
        }
        finally
        {
            FileDescriptor.Close(other);
        }
    }

    /// <summary>Connects to a port of the host: null when nobody listens. One thread.</summary>
    public Socket? Connect(uint port)
    {
        Span<byte> request = stackalloc byte[sizeof(uint)];
        MemoryMarshal.Write(request, port);
        if (_socket.Send(request) != 0 || _socket.ReceiveDescriptor(out _, out int descriptor, AnswerMs) != 1 || descriptor < 0)
            return null;
        return new Socket(new SafeSocketHandle(descriptor, ownsHandle: true));
    }

    /// <summary>Signals that end a program, or go to all of a terminal, do nothing as long as the result lives.</summary>
    internal static PosixSignalRegistration[] IgnoreSignals() =>
        [.. from s in (PosixSignal[])[PosixSignal.SIGINT, PosixSignal.SIGQUIT, PosixSignal.SIGTERM, PosixSignal.SIGHUP]
            select PosixSignalRegistration.Create(s, c => c.Cancel = true)];

    /// <summary>The process's life: it ends with the machine's, and no signal of the terminal ends it before.</summary>
    public static void Serve(int fd, string path)
    {
        PosixSignalRegistration[] ignored = IgnoreSignals();
        using StreamSocket socket = StreamSocket.Adopt(fd);
        Span<byte> request = stackalloc byte[sizeof(uint)];
        for (int have = 0, n; (n = socket.Receive(request[have..])) > 0;)
        {
            have += n;
            if (have < request.Length)
                continue;
            have = 0;
            using Socket? connection = VsockDevice.Connect(path, MemoryMarshal.Read<uint>(request));
            if ((connection is null ? socket.Send([None]) : socket.SendDescriptor(Connected, (int)connection.SafeHandle.DangerousGetHandle())) != 0)
                break;
        }
        File.Delete(path);
        GC.KeepAlive(ignored);
    }

    /// <summary>After the last connection.</summary>
    public void Dispose()
    {
        _socket.Shutdown();
        _ = _process.WaitForExit(EndMs);
        _process.Dispose();
        _socket.Dispose();
    }
}
