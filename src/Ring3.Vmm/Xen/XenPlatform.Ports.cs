using Ring3.Abi;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

// SAFETY: no pointer is followed here; the other parts of the type say why theirs are sound.
namespace Ring3.Vmm;

// Event-channel ports: who is behind which, and how KVM is told.
internal sealed partial class XenPlatform
{
    private enum PortKind : byte { Free, Unbound, Interdomain, Virq, Ipi, Pirq }

    private struct Port
    {
        public PortKind Kind;
        /// <summary>Virq: of a PIRQ's port its number.</summary>
        public uint Vcpu, Virq, Priority;
    }

    private const uint VirqTimer = 0, TwoLevel = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL;
    private readonly bool _fifoOffered;
    private readonly Port[] _ports = new Port[XenAbi.TwoLevelPorts64];
    private uint _storePort, _consolePort;
    private ulong _sharedGfn;
    private bool _fifo;
    private readonly List<ulong> _fifoPages = [];

    private void InitializePorts()
    {
        _storePort = Allocate(PortKind.Interdomain, 0);
        _consolePort = Allocate(PortKind.Interdomain, 0);
    }

    private uint Allocate(PortKind kind, uint vcpu)
    {
        for (uint p = 1; p < _ports.Length; p++)
        {
            if (_ports[p].Kind != PortKind.Free)
                continue;
            _ports[p] = new Port { Kind = kind, Vcpu = vcpu, Priority = XenAbi.Fifo.DefaultPriority };
            return p;
        }
        return 0;
    }

    private uint PriorityOf(uint port) => _fifo ? _ports[port].Priority : TwoLevel;

    /// <summary>An event for the guest from a device of ours. Any thread.</summary>
    private void Raise(uint port)
    {
        uint vcpu, priority;
        using (_lock.Enter())
            (vcpu, priority) = (_ports[port].Vcpu, PriorityOf(port));
        _ = _vm.XenEvtchnSend(new() { port = port, vcpu = vcpu, priority = priority });
    }

    private long EventChannel(uint command, GuestArgument a)
    {
        switch (command)
        {
            case XenAbi.EVTCHNOP_bind_virq:
                return BindVirq(a);
            case XenAbi.EVTCHNOP_bind_ipi:
                return BindIpi(a);
            case XenAbi.EVTCHNOP_bind_pirq:
                return BindPirq(a);
            case XenAbi.EVTCHNOP_alloc_unbound:
                return Answer(a, 4, Allocate(PortKind.Unbound, 0));
            case XenAbi.EVTCHNOP_reset:
                return Reset();
            case XenAbi.EVTCHNOP_init_control:
                return InitControl(a);
            case XenAbi.EVTCHNOP_expand_array:
                return ExpandArray(a);
            case XenAbi.EVTCHNOP_status:
                return Status(a);
            case XenAbi.EVTCHNOP_close or XenAbi.EVTCHNOP_send or XenAbi.EVTCHNOP_unmask or XenAbi.EVTCHNOP_bind_vcpu or XenAbi.EVTCHNOP_set_priority:
                if (!a.TryRead(out uint port))
                    return -Errno.EFAULT;
                return port == 0 || port >= _ports.Length || _ports[port].Kind == PortKind.Free ? -Errno.EINVAL : OnPort(command, port, a);
            default:
                return -Errno.ENOSYS;
        }
    }

    private static long Answer(GuestArgument a, int offset, uint port) => port == 0 ? -Errno.ENOSPC : a.TryWrite(port, offset) ? 0 : -Errno.EFAULT;

    private long OnPort(uint command, uint port, GuestArgument a)
    {
        switch (command)
        {
            case XenAbi.EVTCHNOP_close:
                return Close(port);
            case XenAbi.EVTCHNOP_send:
                return Sent(port);
            case XenAbi.EVTCHNOP_unmask:
                return Unmask(port);
            case XenAbi.EVTCHNOP_bind_vcpu:
                if (!a.TryRead(out uint vcpu, 4))
                    return -Errno.EFAULT;
                return BindVcpu(port, vcpu);
            default:
                if (!_fifo)
                    return -Errno.ENOSYS;
                if (!a.TryRead(out uint priority, 4))
                    return -Errno.EFAULT;
                if (priority >= XenAbi.Fifo.Queues)
                    return -Errno.EINVAL;
                _ports[port].Priority = priority;
                return Moved(port);
        }
    }

    private long BindVirq(GuestArgument a)
    {
        // { virq, vcpu, port out }
        if (!a.TryRead(out uint virq) || !a.TryRead(out uint id, 4))
            return -Errno.EFAULT;
        if (Find(id) is not { } vcpu)
            return -Errno.ENOENT;
        for (uint p = 1; p < _ports.Length; p++)
            if (_ports[p].Kind == PortKind.Virq && _ports[p].Virq == virq && _ports[p].Vcpu == id)
                return -Errno.EEXIST;
        uint port = Allocate(PortKind.Virq, id);
        if (port == 0)
            return -Errno.ENOSPC;
        _ports[port].Virq = virq;
        if (virq == VirqTimer)
            vcpu.XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_TIMER, timer = new() { port = port, priority = TwoLevel } });
        return Answer(a, 8, port);
    }

    private long BindIpi(GuestArgument a)
    {
        // { vcpu, port out }
        if (!a.TryRead(out uint id))
            return -Errno.EFAULT;
        if (Find(id) is null)
            return -Errno.ENOENT;
        uint port = Allocate(PortKind.Ipi, id);
        if (port == 0)
            return -Errno.ENOSPC;
        long r = BindInKernel(port, 0);
        if (r != 0)
        {
            _ports[port] = default;
            return r;
        }
        return Answer(a, 4, port);
    }

    /// <summary>An IPI never leaves the hypervisor: KVM is told where it goes.</summary>
    private int BindInKernel(uint port, uint flags) => _vm.XenSetAttr(new kvm_xen_hvm_attr
    {
        type = KVM_XEN_ATTR_TYPE_EVTCHN,
        evtchn = new() { send_port = port, type = XenAbi.EVTCHNSTAT_ipi, flags = flags, port = port, vcpu = _ports[port].Vcpu, priority = PriorityOf(port) },
    });

    private long BindVcpu(uint port, uint vcpu)
    {
        if (Find(vcpu) is null)
            return -Errno.ENOENT;
        // IPIs and per-vCPU VIRQs stay where they were bound.
        if (_ports[port].Kind == PortKind.Ipi || _ports[port].Kind == PortKind.Virq && _ports[port].Virq == VirqTimer)
            return -Errno.EINVAL;
        _ports[port].Vcpu = vcpu;
        return Moved(port);
    }

    /// <summary>The vCPU or the priority of a port has changed.</summary>
    private long Moved(uint port)
    {
        if (_ports[port].Kind == PortKind.Pirq)
            Route(_ports[port].Virq);
        return _ports[port].Kind == PortKind.Ipi ? BindInKernel(port, KVM_XEN_EVTCHN_UPDATE) : 0;
    }

    private long Close(uint port)
    {
        Port old = _ports[port];
        if (port == _storePort || port == _consolePort)
            return -Errno.EINVAL;
        _ports[port] = default;
        long r = 0;
        if (old.Kind == PortKind.Ipi)
            r = _vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_EVTCHN, evtchn = new() { send_port = port, flags = KVM_XEN_EVTCHN_DEASSIGN } });
        if (old.Kind == PortKind.Pirq)
            UnbindPirq(old.Virq);
        if (old is { Kind: PortKind.Virq, Virq: VirqTimer })
            _ = Find(old.Vcpu)?.XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_TIMER });
        // After the last sender is gone: whoever gets the port next must not find an event of its last owner.
        ClearPending(port);
        return r;
    }

    private void ClearPending(uint port)
    {
        if (_fifo)
        {
            if (FifoWord(port) is var word and not 0)
                _ = TryClear32(word, 1u << XenAbi.Fifo.PendingBit, out _);
        }
        else if (_sharedGfn != 0)
            _ = TryClear64(_sharedGfn * PageBytes + XenAbi.SharedInfo.Pending + port / 64 * 8, 1UL << (int)(port & 63));
    }

    /// <summary>Guest-physical address of a port's event word, or 0 when its page has not been given.</summary>
    private ulong FifoWord(uint port) =>
        _fifoPages.Count > port / XenAbi.Fifo.PortsPerPage
        ? _fifoPages[(int)(port / XenAbi.Fifo.PortsPerPage)] * PageBytes + port % XenAbi.Fifo.PortsPerPage * 4 : 0;

    private long Reset()
    {
        for (uint p = 1; p < _ports.Length; p++)
            if (_ports[p].Kind != PortKind.Free && p != _storePort && p != _consolePort)
                _ = Close(p);
        _ = TellFifo(RING3_XEN_FIFO_OFF);
        _fifo = false;
        _fifoPages.Clear();
        return 0;
    }

    /// <summary>The guest notifies a device of ours.</summary>
    private long Sent(uint port)
    {
        bool answer = port == _consolePort ? Console.Drain() : port == _storePort && Store.Serve();
        if (answer)
            _vm.XenEvtchnSend(new() { port = port, vcpu = _ports[port].Vcpu, priority = PriorityOf(port) });
        return 0;
    }

    /// <summary>Clears the mask; an event that came meanwhile is sent again. PAIRS-WITH: delivery sets pending, then looks at the mask.</summary>
    private long Unmask(uint port)
    {
        bool pending;
        if (_fifo)
        {
            ulong word = FifoWord(port);
            if (word == 0 || !TryClear32(word, 1u << XenAbi.Fifo.MaskedBit, out uint event32))
                return -Errno.EINVAL;
            pending = event32 >> XenAbi.Fifo.PendingBit != 0;
            if (!pending)
                return 0;
        }
        else
        {
            ulong shared = _sharedGfn * PageBytes, word = port / 64 * 8, bit = 1UL << (int)(port & 63);
            if (!TryClear64(shared + XenAbi.SharedInfo.Mask64 + word, bit) || !_vm.Memory.TryRead(shared + XenAbi.SharedInfo.Pending + word, out ulong bits))
                return -Errno.EFAULT;
            if ((bits & bit) == 0)
                return 0;
            // Sent anew, it has to be new.
            if (!TryClear64(shared + XenAbi.SharedInfo.Pending + word, bit))
                return -Errno.EFAULT;
        }
        return _vm.XenEvtchnSend(new() { port = port, vcpu = _ports[port].Vcpu, priority = PriorityOf(port) });
    }

    private bool TryClear64(ulong gpa, ulong bits)
    {
        while (_vm.Memory.TryRead(gpa, out ulong old))
            if (!_vm.Memory.CompareExchange(gpa, old & ~bits, old, out ulong seen))
                return false;
            else if (seen == old)
                return true;
        return false;
    }

    private bool TryClear32(ulong gpa, uint bits, out uint old)
    {
        while (_vm.Memory.TryRead(gpa, out old))
            if (!_vm.Memory.CompareExchange(gpa, old & ~bits, old, out uint seen))
                return false;
            else if (seen == old)
                return true;
        return false;
    }

    private long Status(GuestArgument a)
    {
        // { dom, port, status out, vcpu out, u.virq out }
        if (!a.TryRead(out uint port, 4))
            return -Errno.EFAULT;
        if (port >= _ports.Length)
            return -Errno.EINVAL;
        Port p = _ports[port];
        uint status = p.Kind switch
        {
            PortKind.Unbound => XenAbi.EVTCHNSTAT_unbound,
            PortKind.Interdomain => XenAbi.EVTCHNSTAT_interdomain,
            PortKind.Virq => XenAbi.EVTCHNSTAT_virq,
            PortKind.Ipi => XenAbi.EVTCHNSTAT_ipi,
            PortKind.Pirq => XenAbi.EVTCHNSTAT_pirq,
            _ => XenAbi.EVTCHNSTAT_closed,
        };
        return a.TryWrite(status, 8) && a.TryWrite(p.Vcpu, 12) && a.TryWrite(p.Virq, 16) ? 0 : -Errno.EFAULT;
    }

    // ---- FIFO ----

    private int TellFifo(uint command, ulong gfn = 0) =>
        _vm.XenSetAttr(new kvm_xen_hvm_attr { type = RING3_XEN_ATTR_TYPE_FIFO, fifo = new() { command = command, gfn = gfn } });

    private long InitControl(GuestArgument a)
    {
        // { control_gfn, offset, vcpu, link_bits out }
        if (!_fifoOffered)
            return -Errno.ENOSYS;
        if (!a.TryRead(out ulong gfn) || !a.TryRead(out uint offset, 8) || !a.TryRead(out uint id, 12))
            return -Errno.EFAULT;
        if (Find(id) is not { } vcpu)
            return -Errno.ENOENT;
        if (offset > 4096 - XenAbi.Fifo.ControlSize || (offset & 7) != 0)
            return -Errno.EINVAL;
        int r = TellFifo(RING3_XEN_FIFO_ON);
        if (r == 0)
            r = vcpu.XenSetAttr(new() { type = RING3_XEN_VCPU_ATTR_TYPE_FIFO_CONTROL, gpa = gfn * 4096 + offset });
        if (r != 0)
            return r;
        _fifo = true;
        const byte LinkBits = 17;
        return a.TryWrite(LinkBits, 16) ? 0 : -Errno.EFAULT;
    }

    private long ExpandArray(GuestArgument a)
    {
        if (!_fifo)
            return -Errno.ENOSYS;
        if (!a.TryRead(out ulong gfn))
            return -Errno.EFAULT;
        int r = TellFifo(RING3_XEN_FIFO_EXPAND, gfn);
        if (r == 0)
            _fifoPages.Add(gfn);
        return r;
    }

    /// <summary>Input for the guest's console: the bytes taken. Any thread.</summary>
    public int ConsoleInput(ReadOnlySpan<byte> data)
    {
        int n;
        using (_lock.Enter())
            n = Console.Receive(data);
        if (n != 0)
            Raise(_consolePort);
        return n;
    }
}
