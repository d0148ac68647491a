using Ring3.Abi;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>An eventfd that raises a GSI. With a resample eventfd the line stays up until the guest's EOI, which signals the second descriptor.</summary>
internal sealed class Irqfd : IPolled
{
    private readonly VmHealth _health;
    private readonly VmIrqchip _chip;
    private readonly RcuEventFd? _resample;
    private readonly Action? _acked;

    // One delivery at a time, as an edge is two changes of a line; and none after Close, which frees the descriptors.
    private readonly RankedLock _delivery = new(LockRank.IrqfdDelivery);
    private bool _closed;

    public Irqfd(VmHealth health, VmIrqchip chip, int clientFd, int fd, uint gsi, RcuEventFd? resample)
    {
        (_health, _chip, ClientFd, Fd, Gsi, _resample) = (health, chip, clientFd, fd, gsi, resample);
        if (resample is null)
            return;
        _acked = Acked;
        chip.AddAckNotifier(gsi, _acked);
    }

    /// <summary>The descriptor by the client's number, which names this irqfd; <see cref="Fd"/> is a duplicate.</summary>
    public int ClientFd { get; }
    public int Fd { get; }
    public uint Gsi { get; }

    public void Signalled()
    {
        using (_delivery.Enter())
            if (!_closed && EventFd.Drain(Fd) != 0)
                Deliver();
    }

    public void Failed(Exception e) => _health.Bug(e.ToString());

    /// <summary>
    /// Does what a write of 1 to the client's descriptor <paramref name="fd"/> would do, in the caller's thread and without the write: the counter would be
    /// taken at once. False, with nothing done, when the descriptor is not this eventfd.
    /// </summary>
    public bool TryDeliver(int fd)
    {
        using (_delivery.Enter())
        {
            if (_closed || !EventFd.IsSameFile(Fd, fd))
                return false;
            Deliver();
            return true;
        }
    }

    private void Deliver()
    {
        if (_resample is not null)
        {
            _chip.SetIrq(VmIrqchip.ResampleSourceId, Gsi, true);
            return;
        }
        _chip.SetIrq(VmIrqchip.UserSourceId, Gsi, true);
        _chip.SetIrq(VmIrqchip.UserSourceId, Gsi, false);
    }

    /// <summary>The guest has ended the interrupt. A vCPU's thread, which may have read the notifiers before <see cref="Remove"/>.</summary>
    internal void Acked()
    {
        using (Rcu.Read())
        {
            // A vCPU may still have the notifiers of before. The line can be another irqfd's by now. PAIRS-WITH: Irqfd.Remove.
            if (Volatile.Read(ref _closed))
                return;
            _chip.SetIrq(VmIrqchip.ResampleSourceId, Gsi, false);
            _resample!.Signal();
        }
    }

    /// <summary>Nothing is delivered any more, and no acknowledgement begins to be passed on. After the event loop has let go of it.</summary>
    public void Remove()
    {
        IrqfdWrites.Remove(this);
        using (_delivery.Enter())
            Volatile.Write(ref _closed, true);
        if (_acked is not null)
            _chip.RemoveAckNotifier(Gsi, _acked);
    }

    /// <summary>After <see cref="Remove"/>: waits until nobody uses the descriptors, and closes them.</summary>
    public void Close()
    {
        if (_resample is not null)
        {
            Rcu.Synchronize();
            _chip.SetIrq(VmIrqchip.ResampleSourceId, Gsi, false);
            _resample.Close();
        }
        EventFd.Close(Fd);
    }
}

/// <summary>KVM_IRQFD of one VM.</summary>
internal sealed class Irqfds(VmHealth health)
{
    private readonly RankedLock _lock = new(LockRank.Irqfds);
    private readonly List<Irqfd> _all = [];

    /// <summary>Attaches an eventfd to a GSI, or detaches it (KVM_IRQFD_FLAG_DEASSIGN). 0, -EINVAL, -EBUSY, -EBADF, -EMFILE.</summary>
    /// <param name="chip">The VM's controllers, if it has any.</param>
    public int Set(VmIrqchip? chip, in kvm_irqfd args)
    {
        if ((args.flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE)) != 0)
            return -Errno.EINVAL;
        if ((args.flags & KVM_IRQFD_FLAG_DEASSIGN) != 0)
            return Remove((int)args.fd, args.gsi);
        if (chip is null)
            return -Errno.EINVAL;
        bool resample = (args.flags & KVM_IRQFD_FLAG_RESAMPLE) != 0;
        // The end of a level interrupt is seen by an I/O APIC or PIC in the hypervisor only.
        if (resample && chip.Split)
            return -Errno.EINVAL;
        int e = EventFd.Check((int)args.fd);
        if (e == 0 && resample)
            e = EventFd.Check((int)args.resamplefd);
        return e != 0 ? e : Add(chip, args, resample);
    }

    private int Add(VmIrqchip chip, in kvm_irqfd args, bool resample)
    {
        using (_lock.Enter())
        {
            foreach (Irqfd other in _all)
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
            var irqfd = new Irqfd(health, chip, (int)args.fd, own, args.gsi, resampleFd);
            int r = EventLoop.Shared.Attach(irqfd);
            if (r != 0)
            {
                irqfd.Remove();
                irqfd.Close();
                return r;
            }
            _all.Add(irqfd);
            IrqfdWrites.Add(irqfd);
            return 0;
        }
    }

    private int Remove(int fd, uint gsi)
    {
        int e = EventFd.Check(fd);
        if (e != 0)
            return e;
        Irqfd? found;
        using (_lock.Enter())
        {
            found = _all.Find(i => i.Gsi == gsi && EventFd.IsSame(i.Fd, i.ClientFd, fd));
            if (found is null)
                return 0;
            _all.Remove(found);
        }
        Discard(found);
        return 0;
    }

    private static void Discard(Irqfd irqfd)
    {
        EventLoop.Shared.Detach(irqfd);
        irqfd.Remove();
        irqfd.Close();
    }

    /// <summary>At the VM's end. The vCPUs are stopped; acknowledgements of other threads, which may be on their way, are waited for.</summary>
    public void Close()
    {
        Irqfd[] all;
        using (_lock.Enter())
        {
            all = [.. _all];
            _all.Clear();
        }
        foreach (Irqfd irqfd in all)
            Discard(irqfd);
    }
}
