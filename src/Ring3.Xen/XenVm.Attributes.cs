using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Xen;

// KVM_XEN_HVM_SET_ATTR and KVM_XEN_HVM_GET_ATTR.
public sealed partial class XenVm
{
    private const uint PageBytes = 4096;

    /// <summary>KVM_XEN_HVM_SET_ATTR: 0, -ENOENT for an unknown type, or what api.rst says for the attribute. Caller is in no RCU section.</summary>
    public int SetAttribute(in kvm_xen_hvm_attr attr)
    {
        switch (attr.type)
        {
            case KVM_XEN_ATTR_TYPE_LONG_MODE:
                using (Lock.Enter())
                {
                    Volatile.Write(ref _longMode, attr.long_mode != 0);
                    return SharedInfo.IsActive ? InitializeSharedInfo() : 0;
                }
            case KVM_XEN_ATTR_TYPE_SHARED_INFO or KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA:
                return SetSharedInfo(attr);
            case KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
                if (attr.vector is > 0 and < 0x10)
                    return -Errno.EINVAL;
                Volatile.Write(ref _upcallVector, attr.vector);
                return 0;
            case KVM_XEN_ATTR_TYPE_EVTCHN:
                return SetPort(attr.evtchn);
            case KVM_XEN_ATTR_TYPE_XEN_VERSION:
                Volatile.Write(ref _xenVersion, attr.xen_version);
                return 0;
            case KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG:
                Volatile.Write(ref _runstateUpdateFlag, attr.runstate_update_flag != 0);
                return 0;
            case RING3_XEN_ATTR_TYPE_FIFO:
                return SetFifo(attr.fifo);
            case RING3_XEN_ATTR_TYPE_PIRQ:
                return SetPirq(attr.pirq);
            default:
                return -Errno.ENOENT;
        }
    }

    /// <summary>
    /// KVM_XEN_HVM_GET_ATTR: 0, or -ENOENT for a type that cannot be read. Who asks where the shared info is may read it: events that were sent before are
    /// there.
    /// Caller is in no RCU section.
    /// </summary>
    public int GetAttribute(ref kvm_xen_hvm_attr attr)
    {
        if (attr.type == KVM_XEN_ATTR_TYPE_SHARED_INFO)
            _machine.FlushDeferred();
        using var _ = Lock.Enter();
        switch (attr.type)
        {
            case KVM_XEN_ATTR_TYPE_LONG_MODE:
                attr.long_mode = LongMode ? (byte)1 : (byte)0;
                return 0;
            case KVM_XEN_ATTR_TYPE_SHARED_INFO:
                attr.gfn = SharedInfo.IsActive && SharedInfo.Gpa != GfnToPfnCache.InvalidGpa ? SharedInfo.Gpa / PageBytes : KVM_XEN_INVALID_GFN;
                return 0;
            case KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA:
                attr.hva = SharedInfo.IsActive && SharedInfo.Gpa == GfnToPfnCache.InvalidGpa ? SharedInfo.Hva : 0;
                return 0;
            case KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
                attr.vector = UpcallVector;
                return 0;
            case KVM_XEN_ATTR_TYPE_XEN_VERSION:
                attr.xen_version = XenVersion;
                return 0;
            case KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG:
                attr.runstate_update_flag = RunstateUpdateFlag ? (byte)1 : (byte)0;
                return 0;
            case RING3_XEN_ATTR_TYPE_FIFO:
                attr.fifo = new() { command = _fifo is null ? RING3_XEN_FIFO_OFF : RING3_XEN_FIFO_ON, pages = _fifo?.Pages ?? 0 };
                return 0;
            default:
                return -Errno.ENOENT;
        }
    }

    private int SetSharedInfo(in kvm_xen_hvm_attr attr)
    {
        using var _ = Lock.Enter();
        int r;
        if (attr.type == KVM_XEN_ATTR_TYPE_SHARED_INFO)
        {
            if (attr.gfn == KVM_XEN_INVALID_GFN)
            {
                SharedInfo.Deactivate();
                return 0;
            }
            r = attr.gfn >= MemorySlots.MaxGfn ? -Errno.EFAULT : SharedInfo.Activate(attr.gfn * PageBytes, PageBytes);
        }
        else
        {
            if ((attr.hva & (PageBytes - 1)) != 0)
                return -Errno.EINVAL;
            if (attr.hva == 0)
            {
                SharedInfo.Deactivate();
                return 0;
            }
            r = SharedInfo.ActivateHva(attr.hva, PageBytes);
        }
        if (r == 0)
            r = InitializeSharedInfo();
        RecheckPollers();
        return r;
    }

    /// <summary>Writes the wall clock into the shared info page, where the guest's mode has it. Caller holds the lock; the cache is active.</summary>
    private int InitializeSharedInfo()
    {
        GfnToPfnCache gpc = SharedInfo;
        int r = Acquire(gpc, PageBytes);
        if (r != 0)
            return r;
        long epoch = Math.Max(0, _machine.WallClockEpochNs);
        ulong clock = gpc.Hva + (ulong)(LongMode ? XenAbi.SharedInfo.WallClock64 : XenAbi.SharedInfo.WallClock32);
        ulong high = gpc.Hva + (ulong)(LongMode ? XenAbi.SharedInfo.WallClockSecHi64 : XenAbi.SharedInfo.WallClockSecHi32);
        bool ok = UserCopy.TryRead4(clock, out uint version);
        version = version + 1 | 1;
        // PAIRS-WITH: the guest's read of version, contents, version. Stores of x86 become visible in their order.
        ok = ok && UserCopy.TryWrite4(clock, version);
        ulong seconds = (ulong)epoch / 1_000_000_000;
        ok = ok && UserCopy.TryWrite4(clock + 8, (uint)((ulong)epoch % 1_000_000_000)) && UserCopy.TryWrite4(clock + 4, (uint)seconds)
            && UserCopy.TryWrite4(high, (uint)(seconds >> 32));
        ok = ok && UserCopy.TryWrite4(clock, version + 1);
        gpc.Lock.ExitRead();
        _machine.RequestClockUpdate();
        return ok ? 0 : -Errno.EFAULT;
    }

    /// <summary>Enters the cache's lock for reading with a valid translation, waiting for one if needed. 0, or -errno without the lock.</summary>
    internal static int Acquire(GfnToPfnCache gpc, uint length)
    {
        gpc.Lock.EnterRead();
        while (!gpc.Check(length))
        {
            gpc.Lock.ExitRead();
            int r = gpc.Refresh(length);
            if (r != 0)
                return r;
            gpc.Lock.EnterRead();
        }
        return 0;
    }

    /// <summary>As <see cref="Acquire"/>, for contexts that cannot wait. False: nothing is held.</summary>
    internal static bool TryAcquire(GfnToPfnCache gpc, uint length)
    {
        if (!gpc.Lock.TryEnterRead())
            return false;
        if (gpc.Check(length))
            return true;
        gpc.Lock.ExitRead();
        return false;
    }

    // ---- Ports the guest sends on ----

    private bool IsAcceptablePriority(uint priority) => priority == KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL || Fifo is not null && priority < XenAbi.Fifo.Queues;

    private int SetPort(in kvm_xen_hvm_attr.evtchn_t e)
    {
        if (e.flags == KVM_XEN_EVTCHN_RESET)
            return ResetPorts();
        if (e.send_port == 0 || e.send_port >= MaxPorts)
            return -Errno.EINVAL;
        return e.flags switch
        {
            KVM_XEN_EVTCHN_DEASSIGN => DeassignPort(e.send_port),
            KVM_XEN_EVTCHN_UPDATE => UpdatePort(e),
            0 => AssignPort(e),
            _ => -Errno.EINVAL,
        };
    }

    private int AssignPort(in kvm_xen_hvm_attr.evtchn_t e)
    {
        bool eventFd = false;
        switch (e.type)
        {
            case XenAbi.EVTCHNSTAT_ipi:
                if (e.port != e.send_port)
                    return -Errno.EINVAL;
                break;
            case XenAbi.EVTCHNSTAT_interdomain:
                if (e.port >= MaxPorts)
                    return -Errno.EINVAL;
                eventFd = e.port == 0;
                break;
            default:
                return -Errno.EINVAL;
        }
        PortBinding binding;
        if (eventFd)
        {
            if (RcuEventFd.TryDuplicate((int)e.vcpu) is not { } fd)
                return -Errno.EBADF;
            if (!EventFd.IsEventFd(fd.Fd))
            {
                fd.Close();
                return -Errno.EINVAL;
            }
            binding = new() { SendPort = e.send_port, Type = e.type, EventFd = fd };
        }
        else if (!IsAcceptablePriority(e.priority))
            return -Errno.EINVAL;
        else
            binding = new() { SendPort = e.send_port, Type = e.type, Target = new(e.port, e.vcpu, e.priority) };
        using (Lock.Enter())
        {
            if (_ports.Find(e.send_port) is null)
            {
                _ports.Set(e.send_port, binding);
                return 0;
            }
        }
        Release(binding);
        return -Errno.EEXIST;
    }

    /// <summary>Only the vCPU and the priority of a port that leads to a port may change.</summary>
    private int UpdatePort(in kvm_xen_hvm_attr.evtchn_t e)
    {
        using var _ = Lock.Enter();
        if (_ports.Find(e.send_port) is not { } old)
            return -Errno.ENOENT;
        if (old.Type != e.type || old.Target.Port == 0 || old.Target.Port != e.port || !IsAcceptablePriority(e.priority))
            return -Errno.EINVAL;
        _ports.Set(e.send_port, new() { SendPort = old.SendPort, Type = old.Type, Target = new(e.port, e.vcpu, e.priority) });
        return 0;
    }

    private int DeassignPort(uint port)
    {
        PortBinding? old;
        using (Lock.Enter())
        {
            old = _ports.Find(port);
            _ports.Set(port, null);
        }
        if (old is null)
            return -Errno.ENOENT;
        Rcu.Synchronize();
        Release(old);
        return 0;
    }

    private int ResetPorts()
    {
        List<PortBinding> removed;
        using (Lock.Enter())
            removed = _ports.Clear();
        if (removed.Count == 0)
            return 0;
        Rcu.Synchronize();
        removed.ForEach(Release);
        return 0;
    }

    private static void Release(PortBinding b) => b.EventFd?.Close();

    // ---- FIFO ----

    private int SetFifo(in kvm_xen_hvm_attr.fifo_t fifo)
    {
        using var _ = Lock.Enter();
        switch (fifo.command)
        {
            case RING3_XEN_FIFO_OFF:
                FifoChannels? old = _fifo;
                Volatile.Write(ref _fifo, null);
                if (old is not null)
                {
                    Rcu.Synchronize();
                    old.Dispose();
                }
                return 0;
            case RING3_XEN_FIFO_ON:
                if (_fifo is null)
                    Volatile.Write(ref _fifo, new FifoChannels(Slots));
                return 0;
            case RING3_XEN_FIFO_EXPAND:
                return _fifo is null ? -Errno.EINVAL : _fifo.Expand(fifo.gfn);
            default:
                return -Errno.EINVAL;
        }
    }
}
