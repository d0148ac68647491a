using System.ComponentModel;
using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text;
using Microsoft.Win32.SafeHandles;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>
/// A place that a confined machine cannot write to. A process of this program beside it makes the file, hands it over, and gives it its name; it writes nothing
/// else, and leaves no half of a file, however the machine ends.
/// </summary>
public sealed class SnapshotKeeper : SnapshotPlace, IDisposable
{
    private const int AnswerMs = 10_000, EndMs = 2000, MaxMessage = 4096;
    private const byte Make = 1, Name = 2, Forget = 3, Done = 0;

    private readonly Process _process;
    private readonly StreamSocket _socket;

    private SnapshotKeeper(string path, Process process, StreamSocket socket) : base(path) => (_process, _socket) = (process, socket);

    /// <param name="program">The words that start this program; behind them come the descriptor's number and the path, for <see cref="Serve"/>.</param>
    /// <param name="path">The snapshot's name.</param>
    /// <exception cref="BootException">It cannot be started.</exception>
    public static SnapshotKeeper Start(IReadOnlyList<string> program, string path)
    {
        StreamSocket socket = StreamSocket.CreatePair(out int other);
        try
        {
            var start = new ProcessStartInfo(program[0], [.. program.Skip(1), $"{other}", path]) { UseShellExecute = false, RedirectStandardInput = true };
            return new SnapshotKeeper(path, Process.Start(start)!, socket);
        }
        catch (Win32Exception e)
        {
            socket.Dispose();
            throw new BootException(ExitStatus.Resources, $"--snapshot {path}: {program[0]} cannot be started: {e.Message}");
        }
        finally
        {
            FileDescriptor.Close(other);
        }
    }

    internal override SafeFileHandle Create()
    {
        Ask(Make, out int descriptor);
        return new SafeFileHandle(descriptor, ownsHandle: true);
    }

    internal override void Keep() => Ask(Name, out _);

    internal override void Drop()
    {
        try { Ask(Forget, out _); }
        catch (BootException) { }
    }

    private void Ask(byte request, out int descriptor)
    {
        const int Interrupted = -4;
        descriptor = -1;
        byte status = 0;
        int n = _socket.Send([request]);
        if (n == 0)
        {
            do
                n = _socket.ReceiveDescriptor(out status, out descriptor, AnswerMs);
            while (n == Interrupted);
        }
        if (n != 1 || status == Done && request == Make && descriptor < 0)
            throw new BootException(ExitStatus.Resources, $"cannot write the snapshot {Path}: who makes its file has ended");
        if (status != Done)
            throw new BootException(status, Message());
    }

    /// <summary>What is wrong: two bytes of length, and text.</summary>
    private string Message()
    {
        Span<byte> length = stackalloc byte[sizeof(ushort)];
        ReceiveAll(length);
        var text = new byte[Math.Min(MemoryMarshal.Read<ushort>(length), (ushort)MaxMessage)];
        ReceiveAll(text);
        return Encoding.UTF8.GetString(text);
    }

    private void ReceiveAll(Span<byte> buffer)
    {
        for (int n; !buffer.IsEmpty && (n = _socket.Receive(buffer)) > 0;)
            buffer = buffer[n..];
    }

    /// <summary>The process's life: it ends with the machine's, and no signal of the terminal ends it before.</summary>
    public static void Serve(int fd, string path)
    {
        PosixSignalRegistration[] ignored = VsockConnector.IgnoreSignals();
        using StreamSocket socket = StreamSocket.Adopt(fd);
        var place = new SnapshotFolder(path);
        Span<byte> request = stackalloc byte[1];
        while (socket.Receive(request) == 1 && Serve(socket, place, request[0]) == 0)
        {
        }
        place.Drop();
        GC.KeepAlive(ignored);
    }

    /// <summary>0 or -errno of the answer.</summary>
    private static int Serve(StreamSocket socket, SnapshotFolder place, byte request)
    {
        try
        {
            if (request == Make)
            {
                using SafeFileHandle file = place.Create();
                return socket.SendDescriptor(Done, (int)file.DangerousGetHandle());
            }
            if (request == Name)
                place.Keep();
            else
                place.Drop();
            return socket.Send([Done]);
        }
        catch (BootException e)
        {
            byte[] text = Encoding.UTF8.GetBytes(e.Message);
            int length = Math.Min(text.Length, MaxMessage);
            return socket.Send([(byte)e.Status, (byte)length, (byte)(length >> 8), .. text.AsSpan(0, length)]);
        }
    }

    /// <summary>After the last snapshot.</summary>
    public void Dispose()
    {
        _socket.Shutdown();
        _ = _process.WaitForExit(EndMs);
        _process.Dispose();
        _socket.Dispose();
    }
}
