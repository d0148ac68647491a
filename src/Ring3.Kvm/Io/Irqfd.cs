using Ring3.Host;
using Ring3.Irqchip;

namespace Ring3.Kvm;

/// <summary>An eventfd that raises a GSI. With a resample eventfd the line stays up until the guest's EOI, which signals the second descriptor.</summary>
internal sealed class Irqfd : IPolled
{
    private readonly VmIrqchip _chip;
    private readonly int _resampleFd = -1;
    private readonly Action? _acked;

    // One delivery at a time, as an edge is two changes of a line; and none after Close, which frees the descriptors.
    private readonly Lock _delivery = new();
    private bool _closed;

    public Irqfd(Vm vm, VmIrqchip chip, int clientFd, int fd, uint gsi, int resampleFd)
    {
        (Vm, _chip, ClientFd, Fd, Gsi, _resampleFd) = (vm, chip, clientFd, fd, gsi, resampleFd);
        if (resampleFd < 0)
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
        if (_resampleFd >= 0)
        {
            _chip.SetIrq(VmIrqchip.ResampleSourceId, Gsi, true);
            return;
        }
        _chip.SetIrq(VmIrqchip.UserSourceId, Gsi, true);
        _chip.SetIrq(VmIrqchip.UserSourceId, Gsi, false);
    }

    private void Acked()
    {
        _chip.SetIrq(VmIrqchip.ResampleSourceId, Gsi, false);
        EventFd.Signal(_resampleFd);
    }

    /// <summary>After the poller has let go of it.</summary>
    public void Close()
    {
        IrqfdWrites.Remove(this);
        lock (_delivery)
            _closed = true;
        if (_acked is not null)
        {
            _chip.RemoveAckNotifier(Gsi, _acked);
            _chip.SetIrq(VmIrqchip.ResampleSourceId, Gsi, false);
            EventFd.Close(_resampleFd);
        }
        EventFd.Close(Fd);
    }
}
