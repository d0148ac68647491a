using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Sync;

namespace Ring3.Kvm;

/// <summary>An eventfd that raises a GSI. With a resample eventfd the line stays up until the guest's EOI, which signals the second descriptor.</summary>
internal sealed class Irqfd : IPolled
{
    private readonly VmIrqchip _chip;
    private readonly RcuEventFd? _resample;
    private readonly Action? _acked;

    // One delivery at a time, as an edge is two changes of a line; and none after Close, which frees the descriptors.
    private readonly Lock _delivery = new();
    private bool _closed;

    public Irqfd(Vm vm, VmIrqchip chip, int clientFd, int fd, uint gsi, RcuEventFd? resample)
    {
        (Vm, _chip, ClientFd, Fd, Gsi, _resample) = (vm, chip, clientFd, fd, gsi, resample);
        if (resample is null)
            return;
        _acked = Acked;
        chip.AddAckNotifier(gsi, _acked);
    }

    public Vm Vm { get; }
    /// <summary>The descriptor by the client's number, which names this irqfd; <see cref="Fd"/> is a duplicate.</summary>
    public int ClientFd { get; }
    public int Fd { get; }
    public uint Gsi { get; }

    public void Signalled()
    {
        lock (_delivery)
            if (!_closed && EventFd.Drain(Fd) != 0)
                Deliver();
    }

    /// <summary>
    /// Does what a write of 1 to the client's descriptor <paramref name="fd"/> would do, in the caller's thread and without the write: the counter would be taken at once. False, with nothing done, when the
    /// descriptor is not this eventfd.
    /// </summary>
    public bool TryDeliver(int fd)
    {
        lock (_delivery)
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

    /// <summary>Nothing is delivered any more, and no acknowledgement begins to be passed on. After the poller has let go of it.</summary>
    public void Remove()
    {
        IrqfdWrites.Remove(this);
        lock (_delivery)
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
