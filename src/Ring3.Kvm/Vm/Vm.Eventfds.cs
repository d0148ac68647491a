using Ring3.Abi;
using Ring3.Host;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

// irqfds, ioeventfds and coalesced zones.
public sealed partial class Vm
{
    private readonly List<Irqfd> _irqfds = [];
    private readonly List<Ioeventfd> _ioeventfds = [];

    internal CoalescedZones Coalesced { get; } = new();

    /// <summary>KVM_IRQFD: attaches an eventfd to a GSI, or detaches it (KVM_IRQFD_FLAG_DEASSIGN). 0, -EINVAL, -EBUSY, -EBADF, -EMFILE.</summary>
    public int RegisterIrqfd(in kvm_irqfd args)
    {
        if ((args.flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE)) != 0)
            return -Errno.EINVAL;
        if ((args.flags & KVM_IRQFD_FLAG_DEASSIGN) != 0)
            return RemoveIrqfd((int)args.fd, args.gsi);
        if (Irqchip is not { } chip)
            return -Errno.EINVAL;
        bool resample = (args.flags & KVM_IRQFD_FLAG_RESAMPLE) != 0;
        // The end of a level interrupt is seen by an I/O APIC or PIC in the hypervisor only.
        if (resample && chip.Split)
            return -Errno.EINVAL;
        int e = EventFd.Check((int)args.fd);
        if (e == 0 && resample)
            e = EventFd.Check((int)args.resamplefd);
        if (e != 0)
            return e;
        lock (_lock)
        {
            foreach (Irqfd other in _irqfds)
                if (EventFd.IsSame(other.Fd, other.ClientFd, (int)args.fd))
                    return -Errno.EBUSY;
            int own = EventFd.Duplicate((int)args.fd);
            RcuEventFd? resampleFd = resample ? RcuEventFd.TryDuplicate((int)args.resamplefd) : null;
            if (own < 0 || resample && resampleFd is null)
            {
                if (own >= 0)
                    EventFd.Close(own);
                resampleFd?.Close();
                return -Errno.EMFILE;
            }
            var irqfd = new Irqfd(this, chip, (int)args.fd, own, args.gsi, resampleFd);
            int r = Poller.Attach(irqfd);
            if (r != 0)
            {
                irqfd.Remove();
                irqfd.Close();
                return r;
            }
            _irqfds.Add(irqfd);
            IrqfdWrites.Add(irqfd);
            return 0;
        }
    }

    private int RemoveIrqfd(int fd, uint gsi)
    {
        int e = EventFd.Check(fd);
        if (e != 0)
            return e;
        Irqfd? found;
        lock (_lock)
        {
            found = _irqfds.Find(i => i.Gsi == gsi && EventFd.IsSame(i.Fd, i.ClientFd, fd));
            if (found is null)
                return 0;
            _irqfds.Remove(found);
        }
        Poller.Detach(found);
        found.Remove();
        found.Close();
        return 0;
    }

    /// <summary>KVM_IOEVENTFD: signals an eventfd on a guest's write to an address. 0, -EINVAL, -EEXIST, -ENOENT, -EBADF, -EMFILE.</summary>
    public int RegisterIoeventfd(in kvm_ioeventfd args)
    {
        if ((args.flags & KVM_IOEVENTFD_FLAG_DEASSIGN) == 0 && !IsValid(args))
            return -Errno.EINVAL;
        int error = EventFd.Check(args.fd);
        if (error != 0)
            return error;
        if ((args.flags & KVM_IOEVENTFD_FLAG_DEASSIGN) != 0)
            return RemoveIoeventfd(args);
        lock (_lock)
        {
            foreach (Ioeventfd other in _ioeventfds)
                if (other.CollidesWith(args))
                    return -Errno.EEXIST;
            if (RcuEventFd.TryDuplicate(args.fd) is not { } fd)
                return -Errno.EMFILE;
            var e = new Ioeventfd(args, fd);
            _ioeventfds.Add(e);
            if (e.Bus == Ioeventfd.Source.Pio && args.addr <= ushort.MaxValue)
                Ports.Add(e, (int)args.addr, 1);
            else if (e.Bus == Ioeventfd.Source.Mmio)
                MmioDevices.Add(e);
            return 0;
        }
    }

    private static bool IsValid(in kvm_ioeventfd args)
    {
        // KVM: the last flag is that of its bus for devices without length or data, which it knows and does not need.
        const uint Known = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN | KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY | 1 << 4;
        return (args.flags & ~Known) == 0 && args.len is 0 or 1 or 2 or 4 or 8 && (args.len != 0 || (args.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) == 0) && args.addr + args.len >= args.addr;
    }

    private int RemoveIoeventfd(kvm_ioeventfd args)
    {
        Ioeventfd? found;
        lock (_lock)
        {
            found = _ioeventfds.Find(e => e.Is(args));
            if (found is null)
                return -Errno.ENOENT;
            _ioeventfds.Remove(found);
            if (found.Bus == Ioeventfd.Source.Pio)
                Ports.Remove(found);
            else if (found.Bus == Ioeventfd.Source.Mmio)
                MmioDevices.Remove(found);
            found.Remove();
        }
        Rcu.Synchronize();
        found.Close();
        return 0;
    }

    /// <summary>KVM_REGISTER_COALESCED_MMIO: 0 or -EINVAL.</summary>
    public int RegisterCoalescedMmio(in kvm_coalesced_mmio_zone zone)
    {
        int r = Coalesced.Register(zone);
        if (r == 0 && zone.pio != 0)
            Ports.ClaimAll(zone.addr, zone.size);
        return r;
    }

    /// <summary>KVM_UNREGISTER_COALESCED_MMIO: 0 or -EINVAL.</summary>
    public int UnregisterCoalescedMmio(in kvm_coalesced_mmio_zone zone) => Coalesced.Unregister(zone);

    private void CloseEventfds()
    {
        Irqfd[] irqfds;
        Ioeventfd[] ioeventfds;
        lock (_lock)
        {
            (irqfds, ioeventfds) = ([.. _irqfds], [.. _ioeventfds]);
            _irqfds.Clear();
            _ioeventfds.Clear();
        }
        // The vCPUs are stopped: only other threads' acknowledgements can be on the way, and irqfds wait for them.
        foreach (Ioeventfd e in ioeventfds)
            e.Close();
        foreach (Irqfd i in irqfds)
        {
            Poller.Detach(i);
            i.Remove();
            i.Close();
        }
    }
}
