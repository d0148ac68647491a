using System.Runtime.InteropServices;

namespace Ring3.Virtio;

/// <summary>What a packet is for.</summary>
internal enum VsockOperation : ushort { Request = 1, Response = 2, Reset = 3, Shutdown = 4, Data = 5, CreditUpdate = 6, CreditRequest = 7 }

/// <summary>The header of a packet, as it is in memory. SPEC: virtio 1.2, "Socket Device", "Device Operation".</summary>
[StructLayout(LayoutKind.Sequential, Pack = 4)]
internal record struct VsockHeader
{
    public const int Bytes = 44;
    public const ushort Stream = 1;
    /// <summary>Flags of <see cref="VsockOperation.Shutdown"/>: who sends it receives no more, sends no more.</summary>
    public const uint NoReceive = 1, NoSend = 2;

    public ulong SourceCid, DestinationCid;
    public uint SourcePort, DestinationPort;
    public uint Length;
    public ushort Type;
    public VsockOperation Operation;
    public uint Flags;
    /// <summary>Room of the sender's buffer, and how many bytes have left it so far.</summary>
    public uint BufferBytes, ForwardedBytes;
}
