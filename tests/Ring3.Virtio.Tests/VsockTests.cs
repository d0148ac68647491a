using System.Net.Sockets;
using System.Runtime.InteropServices;
using System.Text;
using Ring3.Host;

namespace Ring3.Virtio.Tests;

/// <summary>Streams between guest and host. The driver has both rings; the device's turns are taken by the test.</summary>
public sealed class VsockTests : IDisposable
{
    private const ulong Cid = 7, Packet = 0xe_0000, Receive = 0x9_0000;
    private const ulong RxRing = 0x6_0000;

    private readonly string _directory = Directory.CreateTempSubdirectory("ring3-vsock").FullName;
    private readonly Bench _bench;
    private readonly SplitDriver _tx;
    private ushort _offered, _taken;

    public VsockTests()
    {
        var listener = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        listener.Bind(new UnixDomainSocketEndPoint(Place));
        listener.Listen(4);
        _bench = new Bench(m => new VsockDevice(m, Cid, port => VsockDevice.Connect(Place, port), listener));
        _bench.Negotiate(VirtioFeature.Version1);
        _bench.Enable(0, 16, RxRing, RxRing + 0x1000, RxRing + 0x2000);
        _bench.Enable(1, 16, Driver.Descriptors, Driver.DriverArea, Driver.DeviceArea);
        _bench.Ready();
        _tx = new SplitDriver(_bench, 16, VirtioFeature.Version1);
        Turn();
    }

    private string Place => Path.Combine(_directory, "s");
    private VsockDevice Device => (VsockDevice)_bench.Device;

    public void Dispose()
    {
        _bench.Dispose();
        Directory.Delete(_directory, recursive: true);
    }

    private void Turn() => Device.Turn(0);

    /// <summary>The guest gives a buffer of 4 KiB and the header's.</summary>
    private void Listen()
    {
        int slot = _offered % 16;
        ulong at = RxRing + 16UL * (uint)slot;
        _bench.Write(at, Receive + 0x2000UL * (uint)slot);
        _bench.Write(at + 8, 4096u + VsockHeader.Bytes);
        _bench.Write(at + 12, (ushort)2);
        _bench.Write(RxRing + 0x1000 + 4 + 2UL * (uint)slot, (ushort)slot);
        _bench.Write(RxRing + 0x1000 + 2, ++_offered);
    }

    /// <summary>The next packet that the guest gets, in a buffer that it has given before or gives now.</summary>
    private (VsockHeader Header, byte[] Data)? Next()
    {
        if (_offered == _taken)
            Listen();
        for (int i = 0; i < 3 && _bench.Read<ushort>(RxRing + 0x2000 + 2) == _taken; i++)
            Turn();
        if (_bench.Read<ushort>(RxRing + 0x2000 + 2) == _taken)
            return null;
        uint slot = _bench.Read<uint>(RxRing + 0x2000 + 4 + 8UL * (uint)(_taken % 16));
        uint written = _bench.Read<uint>(RxRing + 0x2000 + 8 + 8UL * (uint)(_taken % 16));
        _taken++;
        var bytes = new byte[written];
        Assert.True(_bench.Memory.Read(Receive + 0x2000UL * slot, bytes));
        VsockHeader header = MemoryMarshal.Read<VsockHeader>(bytes);
        Assert.Equal(written - VsockHeader.Bytes, header.Length);
        return (header, bytes[VsockHeader.Bytes..]);
    }

    private void Say(VsockOperation operation, uint guestPort, uint hostPort, ReadOnlySpan<byte> data = default, uint flags = 0, uint room = 1 << 16)
    {
        var header = new VsockHeader
        {
            SourceCid = Cid, DestinationCid = VsockDevice.HostCid, SourcePort = guestPort, DestinationPort = hostPort, Length = (uint)data.Length,
            Type = VsockHeader.Stream, Operation = operation, Flags = flags, BufferBytes = room,
        };
        Assert.True(_bench.Memory.Write(Packet, MemoryMarshal.AsBytes(new ReadOnlySpan<VsockHeader>(in header))));
        Assert.True(_bench.Memory.Write(Packet + VsockHeader.Bytes, data));
        _tx.Offer(false, new Piece(Packet, (uint)(VsockHeader.Bytes + data.Length), false));
        Turn();
        Assert.NotNull(_tx.Take());
    }

    private Socket HostListener(uint port)
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        socket.Bind(new UnixDomainSocketEndPoint($"{Place}_{port}"));
        socket.Listen(1);
        return socket;
    }

    [Fact]
    public void Header_HasTheSizeOfItsKind() => Assert.Equal(VsockHeader.Bytes, Marshal.SizeOf<VsockHeader>());

    /// <summary>A clone's guest hears once that its connections are gone, when it has room for that; those of the machine that went on stay.</summary>
    [Fact]
    public void AClone_HearsThatItsConnectionsAreGone()
    {
        _bench.Negotiate(VirtioFeature.Version1);
        _bench.Enable(2, 16, Driver.Descriptors, Driver.DriverArea, Driver.DeviceArea);
        _bench.Ready();
        var events = new SplitDriver(_bench, 16, VirtioFeature.Version1);
        events.Offer(false, new Piece(Receive, 4, true));
        Turn();
        var saved = new StateTransfer();
        _bench.Transport.Hold();
        Device.Transfer(saved);
        _bench.Transport.Release();
        Turn();
        Assert.Null(events.Take());
        Device.Transfer(new StateTransfer(saved.Written.ToArray()));
        _bench.Write(Receive, uint.MaxValue);
        Turn();
        Assert.Equal(4u, events.Take()?.Written);
        Assert.Equal(0u, _bench.Read<uint>(Receive));
        events.Offer(false, new Piece(Receive, 4, true));
        Turn();
        Assert.Null(events.Take());
    }

    /// <summary>The guest has made a connection to port 52, where a program listens: the program's end.</summary>
    private Socket Connected(Socket listener)
    {
        Say(VsockOperation.Request, 1000, 52);
        Assert.Equal(VsockOperation.Response, Next()!.Value.Header.Operation);
        return listener.Accept();
    }

    /// <summary>The buffer in hand goes back, and what a program sends meanwhile is not lost.</summary>
    [Fact]
    public void WhatComesWhileQueuesAreHeld_ComesLater()
    {
        using Socket listener = HostListener(52);
        using Socket program = Connected(listener);
        Listen();
        Turn();
        _bench.Transport.Hold();
        program.Send("later"u8);
        Turn();
        Turn();
        Assert.Equal(_taken, _bench.Read<ushort>(RxRing + 0x2000 + 2));
        _bench.Transport.Release();
        Assert.Equal("later"u8, Next()!.Value.Data);
    }

    [Fact]
    public void TheGuestReachesASocketOfItsPortsName()
    {
        using Socket listener = HostListener(52);
        using Socket program = Connected(listener);
        var all = new List<byte>();
        var buffer = new byte[70000];
        for (int i = 0; i < 100; i++)
        {
            byte[] data = Encoding.ASCII.GetBytes(string.Concat(Enumerable.Repeat($"line {i}\n", 700)));
            Say(VsockOperation.Data, 1000, 52, data);
            all.AddRange(data);
            for (int got = 0; got < data.Length;)
            {
                int n = program.Receive(buffer);
                Assert.Equal(all.Skip(all.Count - data.Length + got).Take(n), buffer.Take(n));
                got += n;
            }
        }
        // Its room is told while it sends, often enough.
        Assert.Equal(VsockOperation.CreditUpdate, Next()!.Value.Header.Operation);
        Say(VsockOperation.Shutdown, 1000, 52, flags: VsockHeader.NoSend);
        Assert.Equal(0, program.Receive(buffer));
        program.Send("bye"u8);
        (VsockHeader Header, byte[] Data) packet;
        do
            packet = Next()!.Value;
        while (packet.Header.Operation == VsockOperation.CreditUpdate);
        Assert.Equal("bye"u8, packet.Data);
        program.Close();
        Assert.Equal((VsockOperation.Shutdown, VsockHeader.NoSend), (Next()!.Value.Header is var h ? h.Operation : 0, h.Flags));
        Assert.Equal(VsockOperation.Reset, Next()!.Value.Header.Operation);
    }

    [Fact]
    public void AProgramReachesTheGuestsPort()
    {
        using var program = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        program.Connect(new UnixDomainSocketEndPoint(Place));
        program.Send("CONNECT 80\nhello"u8);
        VsockHeader request = Next()!.Value.Header;
        Assert.Equal((VsockOperation.Request, 80u, Cid, VsockDevice.HostCid), (request.Operation, request.DestinationPort, request.DestinationCid,
            request.SourceCid));
        Say(VsockOperation.Response, 80, request.SourcePort, room: 3);
        var buffer = new byte[64];
        Assert.Equal($"OK {request.SourcePort}\n", Encoding.ASCII.GetString(buffer, 0, program.Receive(buffer)));
        // No more than the guest has room for.
        Assert.Equal("hel"u8, Next()!.Value.Data);
        Assert.Null(Next());
        Say(VsockOperation.CreditUpdate, 80, request.SourcePort, room: 100);
        Assert.Equal("lo"u8, Next()!.Value.Data);
    }

    [Fact]
    public void APortWhereNobodyListens_IsReset()
    {
        Say(VsockOperation.Request, 1000, 53);
        Assert.Equal(VsockOperation.Reset, Next()!.Value.Header.Operation);
        Say(VsockOperation.Data, 1, 2, "x"u8);
        Assert.Equal(VsockOperation.Reset, Next()!.Value.Header.Operation);
        Say(VsockOperation.Reset, 1, 2);
        Assert.Null(Next());
    }

    [Fact]
    public void MoreThanThereIsRoomFor_EndsTheConnection()
    {
        using Socket listener = HostListener(52);
        Say(VsockOperation.Request, 1000, 52);
        Assert.Equal(VsockOperation.Response, Next()!.Value.Header.Operation);
        var data = new byte[60000];
        for (int i = 0; i < 20; i++)
            Say(VsockOperation.Data, 1000, 52, data);
        // The program's socket takes the first of it.
        VsockOperation next;
        do
            next = Next()!.Value.Header.Operation;
        while (next == VsockOperation.CreditUpdate);
        Assert.Equal(VsockOperation.Reset, next);
        Assert.Equal(0, _bench.Status & VirtioStatus.NeedsReset);
    }

    [Fact]
    public void PacketsThatLieAboutTheirLength_StopTheDevice()
    {
        _bench.Write(Packet + 24, 1000u);
        _tx.Offer(false, new Piece(Packet, VsockHeader.Bytes + 10, false));
        Turn();
        Assert.NotEqual(0, _bench.Status & VirtioStatus.NeedsReset);
    }

    /// <summary>A guest that asks and never listens is not served any more, and costs no memory.</summary>
    [Fact]
    public void AGuestThatDoesNotListen_Waits()
    {
        int served = 0;
        var header = new VsockHeader { SourceCid = Cid, DestinationCid = VsockDevice.HostCid, Type = VsockHeader.Stream, Operation = VsockOperation.Data };
        Assert.True(_bench.Memory.Write(Packet, MemoryMarshal.AsBytes(new ReadOnlySpan<VsockHeader>(in header))));
        for (int i = 0; i < 2000; i++)
        {
            _tx.Offer(false, new Piece(Packet, VsockHeader.Bytes, false));
            Turn();
            if (_tx.Take() is null)
                break;
            served++;
        }
        Assert.Equal(VsockDevice.MaxPending, served);
        while (served-- > 0)
            Assert.Equal(VsockOperation.Reset, Next()!.Value.Header.Operation);
        Assert.NotNull(_tx.Take());
    }

    [Fact]
    public void AReset_EndsConnections()
    {
        using Socket listener = HostListener(52);
        Say(VsockOperation.Request, 1000, 52);
        using Socket program = listener.Accept();
        _bench.Status = 0;
        Turn();
        Assert.Equal(0, program.Receive(new byte[1]));
    }

    [Theory]
    [InlineData("CONNECT x\n")]
    [InlineData("connect 1\n")]
    [InlineData("CONNECT 99999999999\n")]
    [InlineData("\n")]
    [InlineData("CONNECT 00000000000000000000000000000000000000001\n")]
    public void OtherGreetings_AreHungUpOn(string text)
    {
        using var program = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        program.Connect(new UnixDomainSocketEndPoint(Place));
        program.Send(Encoding.ASCII.GetBytes(text));
        Assert.Null(Next());
        try { Assert.Equal(0, program.Receive(new byte[1])); }
        catch (SocketException e) { Assert.Equal(SocketError.ConnectionReset, e.SocketErrorCode); }
    }
}
