using Ring3.Abi;
using Ring3.Irqchip;
using static Ring3.Abi.KvmApi;

// SAFETY: no pointer is followed here; the other parts of the type say why theirs are sound.
namespace Ring3.Vmm;

// PIRQs: interrupts of devices that arrive as event channels. A bound PIRQ's GSI is routed to the port (KVM_IRQ_ROUTING_XEN_EVTCHN), so that lines and irqfds
// are delivered by the hypervisor; without a port it is wired as in any PC.
// A PIRQ without a GSI is named by the messages of a device.
internal sealed partial class XenPlatform
{
    /// <summary>Below are the ISA interrupts, which a guest may know by their own numbers.</summary>
    private const uint FirstPirq = 16, PirqCount = 256;
    private const int Gsis = Ioapic.PinCount;

    private struct Pirq
    {
        public bool InUse;
        /// <summary>The GSI behind it, or -1: a message will name it.</summary>
        public int Gsi;
        public uint Port;
    }

    private readonly Pirq[] _pirqs = new Pirq[PirqCount];
    private readonly int[] _levels = new int[Gsis];

    /// <summary>A device drives a GSI. Any thread.</summary>
    public void SetGsi(int gsi, bool level)
    {
        // An event is an edge: the line's level is kept here for the guest's EOI. PAIRS-WITH: Resend (the exchange orders the level before the look at the
        // route).
        bool edge = Interlocked.Exchange(ref _levels[gsi], level ? 1 : 0) != (level ? 1 : 0) || !level;
        if (!edge)
            return;
        // PAIRS-WITH: Hold, which sets the flag and then waits for who has not seen it.
        Interlocked.Increment(ref _raising);
        if (Volatile.Read(ref _holding) && level)
            Interlocked.Or(ref _heldEdges, 1u << gsi);
        // While a machine gets its state back, what the event channels have of the line is there already, or comes.
        else if (!(_restoring && IsBound(gsi)))
            _ = _vm.IrqLine((uint)gsi, level);
        if (Interlocked.Decrement(ref _raising) == 0 && Volatile.Read(ref _holding))
            _raised.WakeAll();
    }

    private bool IsBound(int gsi) => Array.Exists(_pirqs, p => p.Port != 0 && p.Gsi == gsi);

    /// <summary>Lines that stay high until their device is served: the guest has to say when, to hear of them again.</summary>
    private static bool IsLevel(int gsi) => gsi == AcpiTables.SciIrq || gsi >= 16;

    private long PhysdevOp(uint command, GuestArgument a)
    {
        const uint IrqStatusQuery = 5, Eoi = 12, MapPirq = 13, UnmapPirq = 14, GetFreePirq = 23;
        uint pirq;
        switch (command)
        {
            case IrqStatusQuery:
                // { irq, flags out }
                if (!a.TryRead(out pirq))
                    return -Errno.EFAULT;
                const uint NeedsEoi = 1;
                return !InUse(pirq) ? -Errno.EINVAL : a.TryWrite(_pirqs[pirq].Gsi >= 0 && IsLevel(_pirqs[pirq].Gsi) ? NeedsEoi : 0, 4) ? 0 : -Errno.EFAULT;
            case Eoi:
                if (!a.TryRead(out pirq))
                    return -Errno.EFAULT;
                if (!InUse(pirq))
                    return -Errno.EINVAL;
                Resend(pirq);
                return 0;
            case MapPirq:
                return Map(a);
            case UnmapPirq:
                // { domid, pirq }
                if (!a.TryRead(out ushort domid) || !a.TryRead(out pirq, 4))
                    return -Errno.EFAULT;
                if (domid != DomidSelf || !InUse(pirq) || _pirqs[pirq].Port != 0)
                    return -Errno.EINVAL;
                _pirqs[pirq] = default;
                return 0;
            case GetFreePirq:
                // { type, pirq out }
                return TakePirq(-1) is var free and not 0 ? a.TryWrite(free, 4) ? 0 : -Errno.EFAULT : -Errno.ENOSPC;
            default:
                return -Errno.ENOSYS;
        }
    }

    private bool InUse(uint pirq) => pirq < PirqCount && _pirqs[pirq].InUse;

    private uint TakePirq(int gsi)
    {
        for (uint p = FirstPirq; p < PirqCount; p++)
        {
            if (_pirqs[p].InUse)
                continue;
            _pirqs[p] = new Pirq { InUse = true, Gsi = gsi };
            return p;
        }
        return 0;
    }

    private long Map(GuestArgument a)
    {
        // { domid, type, index, pirq in and out, ... }
        const int TypeGsi = 1, Any = -1;
        if (!a.TryRead(out ushort domid) || !a.TryRead(out int type, 4) || !a.TryRead(out int index, 8) || !a.TryRead(out int pirq, 12))
            return -Errno.EFAULT;
        if (domid != DomidSelf || type != TypeGsi || (uint)index >= Gsis)
            return -Errno.EINVAL;
        uint known = (uint)Math.Max(Array.FindIndex(_pirqs, p => p.InUse && p.Gsi == index), 0);
        if (pirq != Any && ((uint)pirq >= PirqCount || known != 0 && known != (uint)pirq || known == 0 && _pirqs[pirq].InUse))
            return -Errno.EINVAL;
        if (known == 0 && pirq != Any)
            _pirqs[pirq] = new Pirq { InUse = true, Gsi = index };
        uint given = known != 0 ? known : pirq != Any ? (uint)pirq : TakePirq(index);
        return given == 0 && pirq == Any ? -Errno.ENOSPC : a.TryWrite(given, 12) ? 0 : -Errno.EFAULT;
    }

    private long BindPirq(GuestArgument a)
    {
        // { pirq, flags, port out }
        if (!a.TryRead(out uint pirq))
            return -Errno.EFAULT;
        if (!InUse(pirq))
            return -Errno.EINVAL;
        if (_pirqs[pirq].Port != 0)
            return -Errno.EEXIST;
        uint port = Allocate(PortKind.Pirq, 0);
        if (port == 0)
            return -Errno.ENOSPC;
        _ports[port].Virq = pirq;
        _pirqs[pirq].Port = port;
        // The I/O APIC hears nothing more of the line.
        if (_pirqs[pirq].Gsi is var gsi and >= 0)
            _ = _vm.IrqLine((uint)gsi, false);
        Route(pirq);
        Resend(pirq);
        return Answer(a, 8, port);
    }

    private void UnbindPirq(uint pirq)
    {
        _pirqs[pirq].Port = 0;
        Route(pirq);
        if (_pirqs[pirq].Gsi is var gsi and >= 0)
            _ = _vm.IrqLine((uint)gsi, Volatile.Read(ref _levels[gsi]) != 0);
    }

    /// <summary>A line that is high is an event again, after the guest has begun to listen or has served the last one.</summary>
    private void Resend(uint pirq)
    {
        ref readonly Pirq p = ref _pirqs[pirq];
        // Edges are not repeated: their device lowers the line or raises it anew.
        if (p.Port != 0 && p.Gsi >= 0 && IsLevel(p.Gsi) && Volatile.Read(ref _levels[p.Gsi]) != 0)
            _ = _vm.XenEvtchnSend(new() { port = p.Port, vcpu = _ports[p.Port].Vcpu, priority = PriorityOf(p.Port) });
    }

    /// <summary>Tells KVM where a PIRQ's interrupts go: its messages to its port; each GSI to the port of its PIRQ, or as in any PC.</summary>
    private void Route(uint pirq)
    {
        if (_pirqs[pirq] is { Gsi: < 0, Port: var port })
        {
            Check(_vm.XenSetAttr(new kvm_xen_hvm_attr { type = RING3_XEN_ATTR_TYPE_PIRQ,
                pirq = new() { pirq = pirq, port = port, vcpu = _ports[port].Vcpu, priority = PriorityOf(port) } }), "bind a PIRQ");
            return;
        }
        var routes = new List<kvm_irq_routing_entry>();
        foreach (kvm_irq_routing_entry e in IrqRouting.PcWiring())
            if (!IsBound((int)e.gsi))
                routes.Add(e);
        foreach (Pirq p in _pirqs)
            if (p.Port != 0 && p.Gsi >= 0)
                routes.Add(new() { gsi = (uint)p.Gsi, type = KVM_IRQ_ROUTING_XEN_EVTCHN,
                    xen_evtchn = new() { port = p.Port, vcpu = _ports[p.Port].Vcpu, priority = PriorityOf(p.Port) } });
        Check(_vm.SetGsiRouting(routes.ToArray()), "route a PIRQ");
    }
}
