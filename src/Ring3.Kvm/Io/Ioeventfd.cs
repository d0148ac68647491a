using System.Buffers.Binary;
using Ring3.Abi;
using Ring3.Host;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>An eventfd that a guest's write signals, without an exit to the client.</summary>
internal sealed class Ioeventfd(in kvm_ioeventfd args, RcuEventFd fd) : IBusTap
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

    /// <summary>Whether some write would signal both.</summary>
    public bool CollidesWith(in kvm_ioeventfd o) => Bus == BusOf(o) && _address == o.addr && (_length == 0 || o.len == 0 || _length == o.len
        && (!_match || (o.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) == 0 || _data == o.datamatch));

    public bool Is(in kvm_ioeventfd o) => Bus == BusOf(o) && _address == o.addr && _length == o.len && EventFd.IsSame(fd.Fd, ClientFd, o.fd)
        && _match == ((o.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) != 0) && (!_match || _data == o.datamatch);

    public bool TryTake(ulong address, ReadOnlySpan<byte> data)
    {
        if (address != _address || _length != 0 && data.Length != _length || _match && Value(data) != _data)
            return false;
        fd.Signal();
        return true;
    }

    /// <summary>After <see cref="IoBus.Remove(IReadOnlyCollection{IBusTap})"/>.</summary>
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

/// <summary>KVM_IOEVENTFD of one VM.</summary>
internal sealed class Ioeventfds(IoBus ports, IoBus mmio)
{
    private readonly RankedLock _lock = new(LockRank.Ioeventfds);
    private readonly List<Ioeventfd> _all = [];

    /// <summary>0, -EINVAL, -EEXIST, -ENOENT, -EBADF, -EMFILE.</summary>
    public int Set(in kvm_ioeventfd args)
    {
        if ((args.flags & KVM_IOEVENTFD_FLAG_DEASSIGN) == 0 && !IsValid(args))
            return -Errno.EINVAL;
        int error = EventFd.Check(args.fd);
        if (error != 0)
            return error;
        return (args.flags & KVM_IOEVENTFD_FLAG_DEASSIGN) != 0 ? Remove(args) : Add(args);
    }

    private static bool IsValid(in kvm_ioeventfd args)
    {
        // KVM: the last flag is that of its bus for devices without length or data, which it knows and does not need.
        const uint Known = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN | KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY | 1 << 4;
        return (args.flags & ~Known) == 0 && args.len is 0 or 1 or 2 or 4 or 8 && (args.len != 0 || (args.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) == 0)
            && args.addr + args.len >= args.addr;
    }

    private IoBus? BusOf(Ioeventfd e) => e.Bus switch { Ioeventfd.Source.Pio => ports, Ioeventfd.Source.Mmio => mmio, _ => null };

    private int Add(in kvm_ioeventfd args)
    {
        using (_lock.Enter())
        {
            foreach (Ioeventfd other in _all)
                if (other.CollidesWith(args))
                    return -Errno.EEXIST;
            if (RcuEventFd.TryDuplicate(args.fd) is not { } fd)
                return -Errno.EMFILE;
            var e = new Ioeventfd(args, fd);
            _all.Add(e);
            // Found by the first address of a write.
            BusOf(e)?.Add(args.addr, 1, e, last: false);
            return 0;
        }
    }

    private int Remove(kvm_ioeventfd args)
    {
        Ioeventfd? found;
        using (_lock.Enter())
        {
            found = _all.Find(e => e.Is(args));
            if (found is null)
                return -Errno.ENOENT;
            _all.Remove(found);
        }
        BusOf(found)?.Remove([found]);
        found.Close();
        return 0;
    }

    /// <summary>At the VM's end.</summary>
    public void Close()
    {
        Ioeventfd[] all;
        using (_lock.Enter())
        {
            all = [.. _all];
            _all.Clear();
        }
        if (all.Length == 0)
            return;
        ports.Remove(all);
        mmio.Remove(all);
        foreach (Ioeventfd e in all)
            e.Close();
    }
}
