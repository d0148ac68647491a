using Ring3.Host;
using Ring3.Irqchip;

namespace Ring3.Kvm;

/// <summary>An eventfd that raises a GSI. With a resample eventfd the line stays up until the guest's EOI, which signals the second descriptor.</summary>
internal sealed class Irqfd : IPolled
{
    private readonly VmIrqchip _chip;
    private readonly int _resampleFd = -1;
    private readonly Action? _acked;

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
        if (EventFd.Drain(Fd) == 0)
            return;
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
        if (_acked is not null)
        {
            _chip.RemoveAckNotifier(Gsi, _acked);
            _chip.SetIrq(VmIrqchip.ResampleSourceId, Gsi, false);
            EventFd.Close(_resampleFd);
        }
        EventFd.Close(Fd);
    }
}
