using System.Buffers.Binary;
using Ring3.Host;
using Ring3.Kvm;
using Ring3.Virtio;

namespace Ring3.Vmm;

/// <summary>
/// A virtio device as a function on the PCI bus: identity, capabilities, and a BAR that the guest may put anywhere. SPEC: virtio 1.2, "PCI Device Layout".
/// </summary>
public sealed class VirtioPciFunction : PciFunction, IDisposable
{
    private const ushort VirtioVendor = 0x1af4, FirstModernDevice = 0x1040, SubsystemDevice = 0x1100;
    private const int CapabilityPointer = 0x34, MsixAt = 0x40, CommonCapAt = 0x50, NotifyCapAt = 0x60, IsrCapAt = 0x74, DeviceCapAt = 0x84, AccessCapAt = 0x94;
    private const int MsixControlAt = MsixAt + 2, AccessBarAt = AccessCapAt + 4, AccessOffsetAt = AccessCapAt + 8, AccessLengthAt = AccessCapAt + 12,
        AccessDataAt = AccessCapAt + 16;
    private const byte MsixId = 0x11, VendorId = 9, CommonType = 1, NotifyType = 2, IsrType = 3, DeviceType = 4, AccessType = 5;
    private const byte StatusCapabilities = 1 << 4, StatusInterrupt = 1 << 3;
    private const uint Memory64 = 4;

    private readonly IoBus _mmio;
    private readonly VirtioTransport _transport;
    private readonly bool _messages;
    private readonly RankedLock _placing = new(LockRank.VirtioPlacing);
    private ulong _place = ulong.MaxValue;
    private bool _withdrawn;

    /// <param name="transport">Belongs to the function from now on.</param>
    /// <param name="classCode">Class, subclass and interface.</param>
    /// <param name="mmio">Where its BAR goes.</param>
    /// <param name="bar">Address that firmware has given it.</param>
    /// <param name="messages">Has MSI-X, not the pin alone.</param>
    public VirtioPciFunction(VirtioTransport transport, uint classCode, IoBus mmio, ulong bar, bool messages = true)
        : base(VirtioVendor, (ushort)(FirstModernDevice + transport.Device.Type), classCode, revision: 1)
    {
        (_transport, _mmio, _messages) = (transport, mmio, messages);
        SetBytes(Status, [StatusCapabilities]);
        SetBytes(SubsystemVendor, [VirtioVendor & 0xff, VirtioVendor >> 8, SubsystemDevice & 0xff, SubsystemDevice >> 8]);
        SetBytes(InterruptPin, [1]);
        SetBytes(CapabilityPointer, [messages ? (byte)MsixAt : (byte)CommonCapAt]);
        AddBar(0, VirtioTransport.BarBytes, Memory64);
        Span<byte> address = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(address, bar | Memory64);
        SetBytes(Bar0, address);
        if (messages)
            AddMsix();
        AddCapabilities();
    }

    private void AddMsix()
    {
        byte[] vectors = Little16((ushort)(_transport.Vectors - 1));
        SetBytes(MsixAt, [MsixId, CommonCapAt, .. vectors, .. Little(VirtioTransport.TableAt), .. Little(VirtioTransport.PendingAt)]);
        SetWritable(MsixControlAt, 0xc000, 2);
    }

    private void AddCapabilities()
    {
        AddCapability(CommonCapAt, NotifyCapAt, CommonType, VirtioTransport.CommonAt, VirtioTransport.CommonBytes);
        uint doorbells = (uint)(_transport.Device.Queues.Length * VirtioTransport.DoorbellBytes);
        AddCapability(NotifyCapAt, IsrCapAt, NotifyType, VirtioTransport.DoorbellsAt, doorbells, Little(VirtioTransport.DoorbellBytes));
        AddCapability(IsrCapAt, DeviceCapAt, IsrType, VirtioTransport.IsrAt, 1);
        // A device without a configuration has none to show.
        int config = _transport.Device.Config.Length;
        if (config != 0)
            AddCapability(DeviceCapAt, AccessCapAt, DeviceType, VirtioTransport.DeviceAt, (uint)config);
        else
            SetBytes(IsrCapAt + 1, [AccessCapAt]);
        AddCapability(AccessCapAt, 0, AccessType, 0, 0, Little(0));
        SetWritable(AccessBarAt, 0xff, 1);
        SetWritable(AccessOffsetAt, uint.MaxValue, 4);
        SetWritable(AccessLengthAt, uint.MaxValue, 4);
        SetWritable(AccessDataAt, uint.MaxValue, 4);
    }

    private void AddCapability(int at, byte next, byte type, uint offset, uint length, params ReadOnlySpan<byte> more) =>
        SetBytes(at, [VendorId, next, (byte)(16 + more.Length), type, 0, 0, 0, 0, .. Little(offset), .. Little(length), .. more]);

    private static byte[] Little(uint value)
    {
        var bytes = new byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, value);
        return bytes;
    }

    private static byte[] Little16(ushort value) => [(byte)value, (byte)(value >> 8)];

    public override void ReadConfig(int offset, Span<byte> data)
    {
        if (offset + data.Length > AccessDataAt && offset < AccessDataAt + 4 && TryAccess(out ulong at, out int length))
        {
            Span<byte> value = stackalloc byte[4];
            value.Clear();
            _transport.Read(at, value[..length]);
            SetBytes(AccessDataAt, value);
        }
        base.ReadConfig(offset, data);
        if (Status >= offset && Status < offset + data.Length && _transport.HasLineInterrupt)
            data[Status - offset] |= StatusInterrupt;
    }

    public override void WriteConfig(int offset, ReadOnlySpan<byte> data)
    {
        base.WriteConfig(offset, data);
        int end = offset + data.Length;
        bool Touches(int at, int bytes) => offset < at + bytes && at < end;
        if (Touches(Command, 2) || Touches(Bar0, 8))
            Place();
        if (Touches(Command, 2))
            _transport.DisableLine((Peek(Command) & CommandIntxDisable) != 0);
        if (_messages && Touches(MsixControlAt, 2))
            _transport.SetMsixControl((ushort)(Peek(MsixAt) >> 16));
        if (Touches(AccessDataAt, 4) && TryAccess(out ulong at, out int bytes))
        {
            Span<byte> value = stackalloc byte[4];
            BinaryPrimitives.WriteUInt32LittleEndian(value, Peek(AccessDataAt));
            _transport.Write(at, value[..bytes]);
        }
    }

    /// <summary>The device is held.</summary>
    public override void Transfer(StateTransfer state)
    {
        base.Transfer(state);
        if (state.IsLoading)
            Place();
        _transport.Transfer(state);
    }

    /// <inheritdoc cref="VirtioTransport.Hold"/>
    public void Hold() => _transport.Hold();

    /// <inheritdoc cref="VirtioTransport.Release"/>
    public void Release() => _transport.Release();

    /// <summary>The access of the BAR that the driver has described in configuration space.</summary>
    private bool TryAccess(out ulong offset, out int length)
    {
        (offset, uint bytes) = (Peek(AccessOffsetAt), Peek(AccessLengthAt));
        length = (int)bytes;
        return (Peek(AccessBarAt) & 0xff) == 0 && bytes is 1 or 2 or 4 && offset % bytes == 0;
    }

    /// <summary>Puts the BAR where the guest wants it, if memory accesses are enabled; where another device is, it is nowhere.</summary>
    private void Place()
    {
        using (_placing.Enter())
        {
            bool enabled = (Peek(Command) & CommandMemory) != 0;
            ulong place = enabled ? ((ulong)Peek(Bar0 + 4) << 32 | Peek(Bar0)) & ~0xfUL : ulong.MaxValue;
            if (place == _place || _withdrawn)
                return;
            if (_place != ulong.MaxValue)
                _mmio.Remove(_transport);
            _place = place;
            if (enabled)
                _ = _mmio.TryAdd(place, VirtioTransport.BarBytes, _transport);
        }
    }

    /// <summary>The device is nowhere any more, whatever the guest does; an access that has begun goes on.</summary>
    public void Withdraw()
    {
        using (_placing.Enter())
        {
            _withdrawn = true;
            if (_place != ulong.MaxValue)
                _mmio.Remove(_transport);
        }
    }

    /// <summary>Stops the device; the guest does not run any more, or cannot reach it.</summary>
    public void Dispose() => _transport.Dispose();
}
