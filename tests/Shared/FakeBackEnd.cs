using System.Net.Sockets;
using System.Runtime.InteropServices;
using Ring3.Host;
using Ring3.Virtio;

namespace Ring3.Tests.Shared;

/// <summary>
/// The other side of vhost-user, inside the test: takes part in the set-up on a thread, and answers requests, or lies, when the test says so.
/// </summary>
/// <remarks>SAFETY: the memory is a mapping of the file that came over the socket, of the size that came with it; message headers are locals of their
/// size.</remarks>
internal sealed unsafe partial class FakeBackEnd : IDisposable
{
    private const int HeaderBytes = 12, MaxQueues = 16;

    private readonly Socket _listener;
    private readonly Thread _thread;
    private readonly ulong _features, _protocol;
    private readonly byte[] _config;
    private readonly Ring[] _rings = new Ring[MaxQueues];
    private Socket? _socket;
    private byte* _memory;
    private ulong _memoryBytes, _memoryAddress;

    private struct Ring
    {
        public int Size, Kick, Call;
        public byte* Descriptors, Available, Used;
        public ushort Next, Back;
    }

    /// <param name="features">What it says that it has.</param>
    /// <param name="protocol">Of the protocol, too.</param>
    /// <param name="config">Its configuration space.</param>
    public FakeBackEnd(ulong features, ulong protocol, byte[] config)
    {
        (_features, _protocol, _config) = (features, protocol, config);
        Link = new VhostUserLink(HelperSocket.Create(out int listener));
        _listener = new Socket(new SafeSocketHandle(listener, ownsHandle: true));
        _thread = new Thread(Run) { IsBackground = true };
        _thread.Start();
    }

    /// <summary>The device's end.</summary>
    public VhostUserLink Link { get; }

    /// <summary>Changes an answer before it is sent: its header and what follows, or null for none and the end.</summary>
    public Func<uint, byte[], byte[]?>? Tamper { get; init; }

    /// <summary>Closes the connection.</summary>
    public void HangUp()
    {
        _socket?.Shutdown(SocketShutdown.Both);
        _thread.Join();
    }

    private void Run()
    {
        try
        {
            using Socket socket = _listener.Accept();
            Volatile.Write(ref _socket, socket);
            int fd = (int)socket.SafeHandle.DangerousGetHandle();
            var message = new byte[512];
            while (Receive(fd, message.AsSpan(0, HeaderBytes), out int descriptor))
            {
                uint request = BitConverter.ToUInt32(message, 0);
                int bytes = BitConverter.ToInt32(message, 8);
                if (bytes != 0 && !Receive(fd, message.AsSpan(HeaderBytes, bytes), out _))
                    return;
                byte[]? answer = Answer(request, message.AsSpan(HeaderBytes, bytes), descriptor);
                if (answer is null)
                    continue;
                byte[] all = [.. BitConverter.GetBytes(request), 5, 0, 0, 0, .. BitConverter.GetBytes(answer.Length), .. answer];
                if (Tamper is not null)
                {
                    if (Tamper(request, all) is not { } other)
                        return;
                    all = other;
                }
                socket.Send(all);
            }
        }
        catch (SocketException)
        {
            // The device has closed its end.
        }
    }

    /// <summary>Waits for bytes, and takes a descriptor that comes with them.</summary>
    private static bool Receive(int fd, Span<byte> data, out int descriptor)
    {
        descriptor = -1;
        byte* header = stackalloc byte[56];
        byte* control = stackalloc byte[32];
        nint* vector = stackalloc nint[2];
        fixed (byte* p = data)
        {
            for (int done = 0; done < data.Length;)
            {
                new Span<byte>(header, 56).Clear();
                new Span<byte>(control, 32).Clear();
                (vector[0], vector[1]) = ((nint)(p + done), data.Length - done);
                *(nint**)(header + 16) = vector;
                *(nint*)(header + 24) = 1;
                *(byte**)(header + 32) = control;
                *(nint*)(header + 40) = 32;
                nint n = recvmsg(fd, header, 0);
                if (n <= 0)
                    return false;
                if (*(nint*)control != 0)
                    descriptor = *(int*)(control + 16);
                done += (int)n;
            }
        }
        return true;
    }

    [LibraryImport("libc")] private static partial nint recvmsg(int fd, byte* header, int flags);

    private byte[]? Answer(uint request, ReadOnlySpan<byte> payload, int descriptor)
    {
        switch (request)
        {
            case 1: return BitConverter.GetBytes(_features);
            case 15: return BitConverter.GetBytes(_protocol);
            case 17: return BitConverter.GetBytes((ulong)MaxQueues);
            case 24:
                byte[] config = payload.ToArray();
                _config.AsSpan(0, Math.Min(_config.Length, config.Length - 12)).CopyTo(config.AsSpan(12));
                return config;
            case 5:
                _memoryBytes = BitConverter.ToUInt64(payload[16..]);
                _memoryAddress = BitConverter.ToUInt64(payload[24..]);
                _memory = MemFd.Map(descriptor, (nuint)_memoryBytes);
                MemFd.Close(descriptor);
                return null;
            case 8 or 9 or 12 or 13:
                lock (_rings)
                {
                    Set(request, payload, ref _rings[payload[0]], descriptor);
                    Monitor.PulseAll(_rings);
                }
                return null;
            default: return null;
        }
    }

    private void Set(uint request, ReadOnlySpan<byte> payload, ref Ring ring, int descriptor)
    {
        switch (request)
        {
            case 8: ring.Size = BitConverter.ToInt32(payload[4..]); break;
            case 9:
                ring.Descriptors = _memory + (BitConverter.ToUInt64(payload[8..]) - _memoryAddress);
                ring.Used = _memory + (BitConverter.ToUInt64(payload[16..]) - _memoryAddress);
                ring.Available = _memory + (BitConverter.ToUInt64(payload[24..]) - _memoryAddress);
                break;
            case 12: ring.Kick = descriptor; break;
            case 13: ring.Call = descriptor; break;
        }
    }

    /// <summary>Shared memory, to spoil.</summary>
    public Span<byte> Memory => new(_memory, (int)Math.Min(_memoryBytes, int.MaxValue));

    /// <summary>The queue, once the device has said all of it: nothing of that is answered.</summary>
    private ref Ring RingOf(int queue)
    {
        lock (_rings)
            while (_rings[queue] is not { Size: not 0, Kick: > 0, Call: > 0 } || _rings[queue].Available == null)
                if (!Monitor.Wait(_rings, 20_000))
                    throw new InvalidOperationException($"the device has not set up queue {queue}");
        return ref _rings[queue];
    }

    /// <summary>Takes the next request: its name, what it reads and what it writes. False: there is none.</summary>
    public bool TryTake(int queue, out ushort head, out Span<byte> readable, out Span<byte> writable)
    {
        ref Ring ring = ref RingOf(queue);
        head = 0;
        readable = writable = default;
        if (Volatile.Read(ref *(ushort*)(ring.Available + 2)) == ring.Next)
            return false;
        head = *(ushort*)(ring.Available + 4 + ring.Next++ % ring.Size * 2);
        for (int index = head; ; index = *(ushort*)(ring.Descriptors + index * 16 + 14))
        {
            byte* at = ring.Descriptors + index * 16;
            ushort flags = *(ushort*)(at + 12);
            var part = new Span<byte>(_memory + *(ulong*)at, (int)*(uint*)(at + 8));
            if ((flags & 2) != 0)
                writable = part;
            else
                readable = part;
            if ((flags & 1) == 0)
                return true;
        }
    }

    /// <summary>Gives something back, which need not be a request, with as many steps of the index.</summary>
    public void GiveBack(int queue, uint head, uint written, ushort steps = 1)
    {
        ref Ring ring = ref RingOf(queue);
        *(ulong*)(ring.Used + 4 + ring.Back % ring.Size * 8) = head | (ulong)written << 32;
        ring.Back += steps;
        Volatile.Write(ref *(ushort*)(ring.Used + 2), ring.Back);
    }

    /// <summary>Says that there is something.</summary>
    public void Call(int queue) => _ = EventFd.Signal(RingOf(queue).Call);

    /// <summary>Whether the device has said that there is something.</summary>
    public bool WasKicked(int queue) => EventFd.Drain(RingOf(queue).Kick) != 0;

    public void Dispose()
    {
        // A device that was never made has left the link.
        Link.Dispose();
        _listener.Dispose();
        _thread.Join();
        if (_memory != null)
            HostMemory.Unmap(_memory, (nuint)_memoryBytes);
        foreach (Ring ring in _rings.Where(r => r.Size != 0))
        {
            EventFd.Close(ring.Kick);
            EventFd.Close(ring.Call);
        }
    }
}
