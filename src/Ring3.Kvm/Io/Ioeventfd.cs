using System.Buffers.Binary;
using Ring3.Abi;
using Ring3.Host;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>An eventfd that a guest's write signals, without an exit to the client.</summary>
/// <remarks>Buses are read without a lock: a vCPU may come here when the device has been removed. Then the write is not this device's, as on the new bus.</remarks>
internal sealed class Ioeventfd(in kvm_ioeventfd args, RcuEventFd fd) : IPortDevice, IMmioDevice
{
    private readonly ulong _address = args.addr, _data = args.datamatch;
    private readonly uint _length = args.len;
    private readonly bool _match = (args.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) != 0;

    /// <summary>Where the guest's writes come from. None: of s390's virtio, for which KVM keeps a bus on every architecture.</summary>
    public enum Source { Mmio, Pio, None }

    public Source Bus { get; } = BusOf(args);

    private static Source BusOf(in kvm_ioeventfd args) =>
        (args.flags & KVM_IOEVENTFD_FLAG_PIO) != 0 ? Source.Pio : (args.flags & KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY) != 0 ? Source.None : Source.Mmio;

    public int ClientFd { get; } = args.fd;

    private bool _removed;

    /// <summary>Whether some write would signal both.</summary>
    public bool CollidesWith(in kvm_ioeventfd o) => Bus == BusOf(o) && _address == o.addr && (_length == 0 || o.len == 0 || _length == o.len
        && (!_match || (o.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) == 0 || _data == o.datamatch));

    public bool Is(in kvm_ioeventfd o) => Bus == BusOf(o) && _address == o.addr && _length == o.len && EventFd.IsSame(fd.Fd, ClientFd, o.fd) && _match == ((o.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) != 0) && (!_match || _data == o.datamatch);

    bool IPortDevice.Read(ushort port, Span<byte> data) => false;
    bool IMmioDevice.Read(ulong gpa, Span<byte> data) => false;
    bool IPortDevice.Write(ushort port, ReadOnlySpan<byte> data) => Write(port, data);
    public bool Write(ulong address, ReadOnlySpan<byte> data)
    {
        if (address != _address || _length != 0 && data.Length != _length || _match && Value(data) != _data)
            return false;
        using (Rcu.Read())
        {
            // PAIRS-WITH: Ioeventfd.Remove.
            if (Volatile.Read(ref _removed))
                return false;
            fd.Signal();
            return true;
        }
    }

    /// <summary>From now on nobody begins to signal. The descriptor is closed by <see cref="Close"/>, a grace period later.</summary>
    public void Remove() => Volatile.Write(ref _removed, true);

    /// <summary>After <see cref="Remove"/> and <see cref="Rcu.Synchronize"/>.</summary>
    public void Close() => fd.Close();

    private static ulong Value(ReadOnlySpan<byte> data) => data.Length switch
    {
        1 => data[0],
        2 => BinaryPrimitives.ReadUInt16LittleEndian(data),
        4 => BinaryPrimitives.ReadUInt32LittleEndian(data),
        8 => BinaryPrimitives.ReadUInt64LittleEndian(data),
        _ => ulong.MaxValue,
    };
}
