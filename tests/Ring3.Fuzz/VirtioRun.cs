using System.Net.Sockets;
using System.Runtime.InteropServices;
using Ring3.Host;
using Ring3.Kvm;
using Ring3.Memory;
using Ring3.Tests.Shared;
using Ring3.Virtio;
using Ring3.Vmm;

namespace Ring3.Fuzz;

/// <summary>
/// A hostile driver: random accesses of configuration space and registers, random rings, and frames that arrive meanwhile, for every device and both
/// layouts, and for a disk that comes and goes. <see cref="CasesPerRun"/> cases a run.
/// </summary>
/// <remarks>SAFETY: guest memory is one allocation with a guard area on each side, written through spans of its length.</remarks>
internal sealed unsafe class VirtioRun : IHostileRun
{
    public const int CasesPerRun = 50;
    private const int MemoryBytes = 1 << 20, GuardBytes = 1 << 16, DiskBytes = 1 << 20;
    private const byte Guard = 0xa5;
    private const ulong Requests = 0x8000;

    private readonly byte* _all = (byte*)NativeMemory.AlignedAlloc(MemoryBytes + 2 * GuardBytes, 1 << 16);
    private readonly byte* _memory;
    private readonly MemorySlots _slots = new();
    private readonly GuestMemory _guest;
    private readonly string _disk = Path.Combine(Path.GetTempPath(), $"ring3-fuzz-disk-{Environment.ProcessId}");
    private readonly List<Card> _cards = [];
    private string _message = "";

    /// <param name="BackEnd">Who serves the device, if it does not itself.</param>
    private sealed record Card(VirtioTransport Transport, VirtioPciFunction Function, IoBus Mmio, FakeBackEnd? BackEnd);

    /// <summary>Nothing arrives by itself; what is sent is looked at.</summary>
    private sealed class DeadLink : IPacketLink
    {
        private readonly ManualResetEventSlim _stopped = new();

        public void Send(Span<byte> framed)
        {
            if (framed.Length is <= IPacketLink.Headroom or > IPacketLink.Headroom + IPacketLink.MaxFrame)
                throw new InvalidOperationException($"a frame of {framed.Length - IPacketLink.Headroom} bytes");
        }

        public ReadOnlySpan<byte> Receive()
        {
            _stopped.Wait();
            return default;
        }

        public void Stop() => _stopped.Set();

        public void Dispose() => _stopped.Dispose();
    }

    private sealed class NoInterrupts : IPciInterrupts
    {
        public void SetLine(bool level) { }
        public void Send(ulong address, uint data) { }
    }

    private readonly PciHotplug _hotplug;
    private readonly Queue<VirtioPciFunction> _gone = new();
    /// <summary>Of the disk that comes and goes, which is the last card when it is there.</summary>
    private const int PlugSlot = 7;
    private bool _plugged;

    public VirtioRun()
    {
        _hotplug = new PciHotplug(() => { }, Eject);
        _memory = _all + GuardBytes;
        new Span<byte>(_all, GuardBytes).Fill(Guard);
        new Span<byte>(_memory, MemoryBytes).Clear();
        new Span<byte>(_memory + MemoryBytes, GuardBytes).Fill(Guard);
        _slots.SetRegion(0, 0, 0, MemoryBytes, (ulong)_memory);
        _guest = new GuestMemory(_slots);
        File.WriteAllBytes(_disk, new byte[DiskBytes]);
        if (DiskFile.TryOpen(_disk, false, out DiskFile? file) != 0)
            throw new IOException(_disk);
        File.WriteAllBytes(PlugPath, new byte[DiskBytes]);
        Add(new BlockDevice(_guest, file!, false, "fuzz", 2, "disk"));
        Add(new EntropyDevice(_guest, 1));
        Add(new NetDevice(_guest, new DeadLink(), [2, 0, 0, 0, 0, 1], 65520, _ => { }));
        Add(Vsock());
        Add(new BalloonDevice(_guest, (gpa, bytes) =>
        {
            if (bytes == 0 || (gpa | bytes) % 4096 != 0 || gpa + bytes - 1 < gpa)
                throw new InvalidOperationException($"not whole pages: {bytes} at 0x{gpa:x}");
        }));
        Add(new ConsoleDevice(_guest, [("a", _ => { }), ("b", _ => { })]));
        Add(b => new VhostFsDevice(_guest, "a", false, null, b.Link, "fs", _ => { }));
        Add(b => new VhostFsDevice(_guest, "b", true, new ShareOwner(1, 2), b.Link, "fs-ro", _ => { }));
        Add(b => new VhostBlockDevice(_guest, "c", 2, b.Link, "image", _ => { }));
    }

    private string PlugPath => _disk + ".plug";

    /// <summary>What a machine does when a disk comes.</summary>
    private void Plug()
    {
        if (_plugged)
            return;
        if (DiskFile.TryOpen(PlugPath, false, out DiskFile? file) != 0)
            throw new InvalidOperationException("a disk that has gone has left its lock");
        Add(new BlockDevice(_guest, file!, false, "plug", 2, "plug"));
        _plugged = true;
        _hotplug.NoteAdded(PlugSlot);
    }

    /// <summary>What it does when the guest lets it go. Late accesses come to what has gone.</summary>
    private void Eject(int slot)
    {
        if (slot is < 0 or > 31)
            throw new InvalidOperationException($"slot {slot}");
        if (slot != PlugSlot || !_plugged)
            return;
        _plugged = false;
        VirtioPciFunction function = _cards[^1].Function;
        _cards.RemoveAt(_cards.Count - 1);
        function.Withdraw();
        function.Dispose();
        _hotplug.Forget(slot);
        _gone.Enqueue(function);
        if (_gone.Count > 3)
            _gone.Dequeue();
    }

    private void HotplugAccess(Random random)
    {
        if (random.Next(4) == 0)
            Plug();
        if (random.Next(4) == 0)
            _hotplug.RequestRemoval(PlugSlot);
        Span<byte> data = stackalloc byte[8];
        random.NextBytes(data);
        data = data[..(1 << random.Next(4))];
        ulong at = (ulong)random.Next(PciHotplug.Ports);
        if (random.Next(3) == 0)
            _hotplug.Read(at, data);
        else
            _hotplug.Write(at, data);
        foreach (VirtioPciFunction function in _gone)
        {
            int bytes = 1 << random.Next(3), config = random.Next(256 / bytes) * bytes;
            function.WriteConfig(config, data[..Math.Min(bytes, data.Length)]);
            function.ReadConfig(config, data[..Math.Min(bytes, data.Length)]);
        }
    }

    private static FakeBackEnd BackEnd() =>
        new(VirtioFeature.Version1 | VhostUserLink.ProtocolFeatures | BlockDevice.FlushCommand, ulong.MaxValue, [1, .. new byte[59]]);

    private void Add(Func<FakeBackEnd, VirtioDevice> create)
    {
        FakeBackEnd back = BackEnd();
        Add(create(back), back);
    }

    private void Add(VirtioDevice device, FakeBackEnd? back = null)
    {
        var mmio = new IoBus();
        var transport = new VirtioTransport(device, new NoInterrupts(), VirtioFeature.OfTransport, m => _message = m, e => throw e) { HasThreads = false };
        _cards.Add(new Card(transport, new VirtioPciFunction(transport, 0xff_00_00, mmio, 0xfe00_0000), mmio, back));
    }

    private string VsockPath => _disk + ".vsock";

    private VsockDevice Vsock()
    {
        Socket Listen(string path)
        {
            File.Delete(path);
            var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            socket.Bind(new UnixDomainSocketEndPoint(path));
            socket.Listen(8);
            socket.Blocking = false;
            return socket;
        }
        _hostPort = Listen(VsockPath + "_3");
        return new VsockDevice(_guest, 3, port => VsockDevice.Connect(VsockPath, port), Listen(VsockPath));
    }

    private readonly List<Socket> _programs = [];
    private Socket? _hostPort;

    /// <summary>Programs of the host come, talk, listen and go.</summary>
    private void HostProgram(Random random)
    {
        if (_programs.Count > 8 || random.Next(4) == 0 && _programs.Count != 0)
        {
            _programs[0].Dispose();
            _programs.RemoveAt(0);
        }
        try
        {
            var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { Blocking = false };
            _programs.Add(socket);
            socket.Connect(new UnixDomainSocketEndPoint(VsockPath));
            _ = socket.Send(random.Next(4) == 0 ? "no"u8 : "CONNECT 3\ndata for the guest"u8, SocketFlags.None, out SocketError _);
            if (_hostPort!.Poll(0, SelectMode.SelectRead))
                _programs.Add(_hostPort.Accept());
        }
        catch (SocketException)
        {
            // The device has not taken those that came before.
        }
        foreach (Socket program in _programs)
        {
            program.Blocking = false;
            _ = program.Receive(_heard, SocketFlags.None, out SocketError _);
        }
    }

    private readonly byte[] _heard = new byte[4096];

    public void Kick() { }

    public void Recycle() { }

    public void Dispose()
    {
        foreach (Card card in _cards)
        {
            card.Function.Dispose();
            card.BackEnd?.Dispose();
        }
        File.Delete(_disk);
        File.Delete(PlugPath);
        foreach (Socket program in _programs)
            program.Dispose();
        _hostPort?.Dispose();
        File.Delete(VsockPath);
        File.Delete(VsockPath + "_3");
        _slots.Release();
        NativeMemory.AlignedFree(_all);
    }

    public string Once(Random random)
    {
        for (int i = random.Next(4); i > 0; i--)
            HotplugAccess(random);
        Card card = _cards[random.Next(_cards.Count)];
        _message = "";
        // Now and then what a run finds is what another has left.
        ulong features = random.Next(8) == 0 ? 0 : BringUp(card, random);
        for (int i = 0; i < CasesPerRun; i++)
            Case(card, features, random);
        if (new ReadOnlySpan<byte>(_all, GuardBytes).ContainsAnyExcept(Guard) || new ReadOnlySpan<byte>(_memory + MemoryBytes,
            GuardBytes).ContainsAnyExcept(Guard))
            throw new InvalidOperationException("a device has written outside the guest's memory");
        if (_message.Contains('\n'))
            throw new InvalidOperationException($"not one line: '{_message}'");
        int status = (int)Get(card, 20, 1);
        Set(card, 20, 1, 0);
        if (Get(card, 20, 1) != 0)
            throw new InvalidOperationException("a device cannot be reset");
        return (status & VirtioStatus.NeedsReset) == 0 ? "goes on" : _message.Length == 0 ? "stopped before" : _message[(_message.IndexOf(':') + 2)..];
    }

    private static ulong Get(Card card, int at, int bytes)
    {
        Span<byte> data = stackalloc byte[8];
        data.Clear();
        card.Transport.Read((ulong)at, data[..bytes]);
        return BitConverter.ToUInt64(data);
    }

    private static void Set(Card card, int at, int bytes, ulong value)
    {
        Span<byte> data = stackalloc byte[8];
        BitConverter.TryWriteBytes(data, value);
        card.Transport.Write((ulong)at, data[..bytes]);
    }

    /// <summary>Agrees on features and enables the queues, mostly as a driver should.</summary>
    private ulong BringUp(Card card, Random random)
    {
        Set(card, 20, 1, 0);
        Set(card, 20, 1, 3);
        ulong mask = (ulong)random.NextInt64() | VirtioFeature.Version1;
        ulong features = card.Transport.OfferedFeatures & mask;
        if (random.Next(20) == 0)
            features ^= 1UL << random.Next(40);
        for (uint half = 0; half < 2; half++)
        {
            Set(card, 8, 4, half);
            Set(card, 12, 4, (uint)(features >> (int)(32 * half)));
        }
        Set(card, 20, 1, 11);
        for (int i = 0; i < card.Transport.Device.Queues.Length; i++)
        {
            Set(card, 22, 2, (ulong)i);
            Set(card, 24, 2, random.Next(10) == 0 ? (ulong)random.Next(300) : 1UL << random.Next(2, 6));
            (ulong descriptors, ulong driver, ulong device) = Places(i);
            Set(card, 32, 8, random.Next(50) == 0 ? Wild(random) : descriptors);
            Set(card, 40, 8, random.Next(50) == 0 ? Wild(random) : driver);
            Set(card, 48, 8, random.Next(50) == 0 ? Wild(random) : device);
            Set(card, 28, 2, 1);
        }
        new Span<byte>(_memory, 0x8000).Clear();
        Set(card, 20, 1, 15);
        return features;
    }

    private static (ulong Descriptors, ulong Driver, ulong Device) Places(int queue) => (0x2000UL * (uint)queue, 0x2000UL * (uint)queue + 0x1000,
        0x2000UL * (uint)queue + 0x1800);

    private static ulong Wild(Random random) => random.Next(5) switch
    {
        0 => (ulong)random.NextInt64(),
        1 => ulong.MaxValue - (ulong)random.Next(8192),
        2 => MemoryBytes - (ulong)random.Next(600),
        3 => MemoryBytes + (ulong)random.Next(600),
        _ => (ulong)random.Next(MemoryBytes) & ~15UL,
    };

    private void Case(Card card, ulong features, Random random)
    {
        int queue = random.Next(card.Transport.Device.Queues.Length);
        switch (random.Next(12))
        {
            case 0:
                ConfigAccess(card, random);
                break;
            case 1:
                RegisterAccess(card, random);
                break;
            case 2 or 3 when card.Transport.Device is NetDevice net:
                Span<byte> frame = stackalloc byte[random.Next(4) == 0 ? random.Next(1, 9000) : random.Next(1, 200)];
                _ = net.TryDeliver(net.Queues[0], frame);
                break;
            case 2 or 3 when card.BackEnd is { } back:
                Answer((VhostUserDevice)card.Transport.Device, back, queue, random);
                break;
            case 2 or 3 when card.Transport.Device is ConsoleDevice console:
                if (queue % 2 == 0)
                    _ = console.Give(console.Queues[queue], "input"u8, whole: queue == 2);
                break;
            case 2 or 3 when card.Transport.Device is VsockDevice:
                HostProgram(random);
                break;
            case < 8:
                Offer(queue, (features & VirtioFeature.PackedRing) != 0, random);
                break;
            default:
                if (card.BackEnd is not null)
                {
                    Set(card, VirtioTransport.DoorbellsAt + VirtioTransport.DoorbellBytes * queue, 4, 0);
                    break;
                }
                if (card.Transport.Device is VsockDevice vsock)
                {
                    vsock.Turn(0);
                    break;
                }
                bool stop = false;
                // A driver that is served without end would be so on the queue's own thread.
                for (int i = 0; i < 4 && card.Transport.TryServe(queue, ref stop); i++)
                {
                }
                break;
        }
    }

    /// <summary>What the program behind a device says, which now and then is a lie, after which it is not heard any more.</summary>
    private static void Answer(VhostUserDevice device, FakeBackEnd back, int queue, Random random)
    {
        while (back.TryTake(queue, out ushort head, out Span<byte> readable, out Span<byte> writable))
        {
            random.NextBytes(readable[..Math.Min(readable.Length, 64)]);
            random.NextBytes(writable[..Math.Min(writable.Length, 64)]);
            bool lies = random.Next(3000) == 0;
            back.GiveBack(queue, lies ? (uint)random.Next(300) : head, (uint)random.Next(writable.Length + (lies ? 100 : 1)),
                (ushort)(lies ? random.Next(3) : 1));
        }
        device.Collect(queue);
    }

    /// <summary>A packet of a stream, mostly between ports that have met before.</summary>
    private void WritePacket(ulong gpa, Random random)
    {
        _ = _guest.TryWrite(gpa + 8, 2UL);
        _ = _guest.TryWrite(gpa + 16, random.Next(3));
        _ = _guest.TryWrite(gpa + 20, random.Next(3) == 0 ? (1 << 30) + random.Next(20) : 3);
        _ = _guest.TryWrite(gpa + 24, random.Next(8) == 0 ? random.Next() : random.Next(40));
        _ = _guest.TryWrite(gpa + 28, 1 | random.Next(9) << 16);
        _ = _guest.TryWrite(gpa + 32, random.Next(4));
        _ = _guest.TryWrite(gpa + 36, random.NextInt64());
    }

    private static void ConfigAccess(Card card, Random random)
    {
        int bytes = 1 << random.Next(3), at = random.Next(256 / bytes) * bytes;
        Span<byte> data = stackalloc byte[4];
        random.NextBytes(data);
        if (random.Next(3) == 0)
            card.Function.ReadConfig(at, data[..bytes]);
        else
            card.Function.WriteConfig(at, data[..bytes]);
        Span<byte> wide = stackalloc byte[8];
        _ = card.Mmio.Read(0xfe00_0000 + (ulong)random.Next(0x8000), wide);
    }

    private static void RegisterAccess(Card card, Random random)
    {
        int bytes = 1 << random.Next(4);
        int at = random.Next(3) == 0 ? random.Next(64) : random.Next(VirtioTransport.BarBytes + 16);
        if (random.Next(2) == 0)
            _ = Get(card, at, bytes);
        // A reset each time would leave nothing to test.
        else if (at > 20 || at + bytes <= 20 || random.Next(10) == 0)
            Set(card, at, bytes, random.Next(2) == 0 ? (ulong)random.Next(16) : (ulong)random.NextInt64());
    }

    /// <summary>Writes descriptors, of which most are what a driver may write, and makes some available.</summary>
    private void Offer(int queue, bool packed, Random random)
    {
        (ulong descriptors, ulong driver, ulong device) = Places(queue % 3);
        for (int i = random.Next(1, 8); i > 0; i--)
        {
            ulong request = Requests + 16UL * (uint)random.Next(64);
            if (random.Next(4) == 0)
                WritePacket(request, random);
            _ = _guest.TryWrite(request, random.Next(15));
            _ = _guest.TryWrite(request + 8, random.Next(8) == 0 ? (ulong)random.NextInt64() : (ulong)random.Next(2100));
        }
        int size = 1 << random.Next(2, 6), first = random.Next(size);
        int links = random.Next(1, 6), writable = random.Next(links + 1);
        for (int i = 0; i < links; i++)
        {
            bool odd = random.Next(40) == 0;
            ulong gpa = odd ? Wild(random) : i == 0 ? Requests + 16UL * (uint)random.Next(64) : 0x1_0000 + (ulong)random.Next(0x8_0000);
            uint length = odd ? (uint)random.NextInt64() : i == 0 ? 16 : i + 1 == links ? 1 : (uint)random.Next(1, 5) * 512;
            int flags = odd ? random.Next(8) : (i + 1 < links ? 1 : 0) | (i >= writable ? 2 : 0);
            int slot = (first + i) % size;
            ulong at = descriptors + 16UL * (uint)slot;
            if (packed)
            {
                int mark = random.Next(20) == 0 ? random.Next(4) : random.Next(2) == 0 ? 1 : 2;
                flags |= (mark & 1) << 7 | (mark >> 1) << 15;
            }
            _ = _guest.TryWrite(at, gpa);
            _ = _guest.TryWrite(at + 8, length);
            _ = _guest.TryWrite(at + 12, (ushort)(packed ? random.Next(70) : flags));
            _ = _guest.TryWrite(at + 14, (ushort)(packed ? flags : odd ? random.Next(70) : slot + 1 == size ? 0 : slot + 1));
        }
        if (!packed)
        {
            _ = _guest.TryRead(driver + 2, out ushort index);
            for (int i = 0; i < size; i++)
                _ = _guest.TryWrite(driver + 4 + 2UL * (uint)i, (ushort)(random.Next(60) == 0 ? random.Next(70) : first));
            _ = _guest.TryWrite(driver + 2, (ushort)(random.Next(60) == 0 ? random.Next(65536) : index + random.Next(1, 3)));
        }
        _ = _guest.TryWrite(packed ? driver + 2 : driver, (ushort)random.Next(4));
        _ = _guest.TryRead(device, out uint _);
    }
}
