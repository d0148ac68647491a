using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Xen;

/// <summary>
/// FIFO event channels: up to 131,072 ports, one 32-bit event word each, linked into 16 queues a vCPU by priority. An extension of Ring3; Linux's KVM has two
/// levels only. SPEC: Xen's "Event Channel FIFO ABI".
/// </summary>
/// <remarks>
/// A word is PENDING (has happened), MASKED (by the guest), LINKED (is in a queue) and names the next port of its queue. The hypervisor appends, the guest
/// takes from the head; the head lives in the vCPU's control block and only changes here when the queue is empty. Queue tails are private to this side. One
/// lock serialises appenders; the guest's concurrent changes are met with compare-exchange.
/// </remarks>
internal sealed class FifoChannels(MemorySlots slots)
{
    private const uint Pending = 1u << XenAbi.Fifo.PendingBit, Masked = 1u << XenAbi.Fifo.MaskedBit, Linked = 1u << XenAbi.Fifo.LinkedBit,
        Busy = 1u << XenAbi.Fifo.BusyBit;
    private const uint PageBytes = 4096, LinkMask = XenAbi.Fifo.LinkMask;
    /// <summary>A guest can disturb a link at most by masking, unmasking, taking and clearing; more often is a guest that plays with its own words.</summary>
    private const int LinkTries = 4;

    private sealed class Queue
    {
        public uint Tail;
    }

    private readonly GfnToPfnCache?[] _pages = new GfnToPfnCache?[XenAbi.Fifo.MaxPages];
    private readonly Queue?[] _lastQueue = new Queue?[XenAbi.Fifo.Ports];
    private readonly Dictionary<(int Vcpu, uint Priority), Queue> _queues = [];
    private TinyLock _lock = new(LockRank.FifoChannels);
    private uint _count;

    /// <summary>Pages of the event array.</summary>
    public uint Pages => Volatile.Read(ref _count);

    /// <summary>Adds the next page of the event array: 0, -ENOSPC when all are there, -EFAULT. The caller serialises.</summary>
    public int Expand(ulong gfn)
    {
        if (_count == XenAbi.Fifo.MaxPages)
            return -Errno.ENOSPC;
        if (gfn >= MemorySlots.MaxGfn)
            return -Errno.EFAULT;
        var page = new GfnToPfnCache(slots);
        int r = page.Activate(gfn * PageBytes, PageBytes);
        if (r != 0)
        {
            page.Deactivate();
            return r;
        }
        Volatile.Write(ref _pages[_count], page);
        Volatile.Write(ref _count, _count + 1);
        return 0;
    }

    private GfnToPfnCache? PageOf(uint port) => port < XenAbi.Fifo.Ports ? Volatile.Read(ref _pages[port / XenAbi.Fifo.PortsPerPage]) : null;

    private static ulong WordOf(GfnToPfnCache page, uint port) => page.Hva + port % XenAbi.Fifo.PortsPerPage * 4;

    /// <summary>Makes a port pending and, unless it is masked or already in a queue, appends it. Never waits; caller is in an RCU section.</summary>
    /// <returns>As XenVm.TrySend; after WouldBlock nothing has changed.</returns>
    public int TrySet(XenVcpu vcpu, in EventTarget e, out bool kick)
    {
        kick = false;
        if (PageOf(e.Port) is not { } page)
            return -Errno.EINVAL;
        if (!XenVm.TryAcquire(page, PageBytes))
            return XenVm.WouldBlock;
        int r = SetLocked(vcpu, e, page, out kick);
        page.Lock.ExitRead();
        if (kick)
            kick = vcpu.MarkUpcall();
        return r;
    }

    private int SetLocked(XenVcpu vcpu, in EventTarget e, GfnToPfnCache page, out bool kick)
    {
        kick = false;
        if (!XenVm.TryAcquire(vcpu.FifoControl, XenAbi.Fifo.ControlSize))
            return vcpu.FifoControl.IsActive ? XenVm.WouldBlock : -Errno.EINVAL;
        uint priority = e.Priority < XenAbi.Fifo.Queues ? e.Priority : XenAbi.Fifo.DefaultPriority;
        _lock.Enter();
        int r = Append(vcpu.Index, vcpu.FifoControl.Hva, priority, e.Port, page, out kick);
        _lock.Exit();
        vcpu.FifoControl.Lock.ExitRead();
        return r;
    }

    private int Append(int vcpu, ulong control, uint priority, uint port, GfnToPfnCache page, out bool newlyReady)
    {
        newlyReady = false;
        Queue queue = QueueOf(vcpu, priority);
        // The tail's page first: without it nothing may change.
        uint tail = queue.Tail;
        GfnToPfnCache? tailPage = tail != 0 && tail != port ? PageOf(tail) : null;
        bool heldTail = tailPage is not null && tailPage != page;
        if (heldTail && !XenVm.TryAcquire(tailPage!, PageBytes))
            return XenVm.WouldBlock;
        int r = AppendHeld(queue, control, priority, port, page, tail, tailPage, out newlyReady);
        if (heldTail)
            tailPage!.Lock.ExitRead();
        return r;
    }

    private int AppendHeld(Queue queue, ulong control, uint priority, uint port, GfnToPfnCache page, uint tail, GfnToPfnCache? tailPage, out bool newlyReady)
    {
        newlyReady = false;
        ulong word = WordOf(page, port);
        // PAIRS-WITH: the guest's unmask: clears MASKED, then looks at PENDING. The locked instruction orders the look at MASKED after PENDING.
        if (!GuestBits.Or32(word, Pending, out uint old))
            return -Errno.EFAULT;
        if ((old & Pending) != 0 && (old & Linked) != 0)
            return 0;
        if ((old & Masked) != 0)
            return -Errno.ENOTCONN;
        if ((old & Linked) != 0)
            return 1;
        if (!GuestBits.Or32(word, Linked, out old))
            return -Errno.EFAULT;
        if ((old & Linked) != 0)
            return 1;
        // The guest has taken the event out of the queue it was in; if it was that queue's tail, nothing may be linked behind it there.
        if (_lastQueue[port] is { } last && last != queue && last.Tail == port)
            last.Tail = 0;
        bool linked = tailPage is not null && TryLink(WordOf(tailPage, tail), port);
        if (!linked && !UserCopy.TryWrite4(control + XenAbi.Fifo.ControlHead + priority * 4, port))
            return -Errno.EFAULT;
        queue.Tail = port;
        _lastQueue[port] = queue;
        // After the head: a guest that sees the bit sees the queue. The locked instruction is the fence.
        if (!linked)
            newlyReady = GuestBits.Or32(control + XenAbi.Fifo.ControlReady, 1u << (int)priority, out uint ready) && (ready >> (int)priority & 1) == 0;
        return 1;
    }

    /// <summary>Names the next port in the tail's word. False: the guest has consumed the tail, so the queue is empty.</summary>
    private static bool TryLink(ulong word, uint next)
    {
        if (!UserCopy.TryRead4(word, out uint seen))
            return false;
        for (int i = 0; i <= LinkTries; i++)
        {
            if ((seen & Linked) == 0)
                return false;
            if (!UserCopy.CompareExchange(word, seen & ~(Busy | LinkMask) | next, seen, out uint now))
                return false;
            if (now == seen)
                return true;
            // BUSY asks the guest not to unmask meanwhile, so the next tries meet fewer changes.
            if (i == 0 && !GuestBits.Or32(word, Busy, out now))
                return false;
            seen = i == 0 ? now | Busy : now;
        }
        _ = GuestBits.AndNot32(word, Busy, out _);
        // The guest keeps rewriting its word: its queue, its loss.
        return true;
    }

    private Queue QueueOf(int vcpu, uint priority)
    {
        if (!_queues.TryGetValue((vcpu, priority), out Queue? queue))
            _queues[(vcpu, priority)] = queue = new Queue();
        return queue;
    }

    /// <summary>The last port of each queue of a vCPU, by which a client that saves the VM can have them appended to again.</summary>
    public kvm_xen_vcpu_attr.fifo_tails_t Tails(int vcpu)
    {
        var tails = new kvm_xen_vcpu_attr.fifo_tails_t();
        _lock.Enter();
        for (int i = 0; i < XenAbi.Fifo.Queues; i++)
            tails[i] = _queues.TryGetValue((vcpu, (uint)i), out Queue? queue) ? queue.Tail : 0;
        _lock.Exit();
        return tails;
    }

    /// <summary>
    /// Continues queues that are in the guest's memory: 0, or -EINVAL for a port that cannot be. Tails that are none break the guest's queues only.
    /// </summary>
    public int SetTails(int vcpu, in kvm_xen_vcpu_attr.fifo_tails_t tails)
    {
        foreach (uint port in tails)
            if (port >= XenAbi.Fifo.Ports)
                return -Errno.EINVAL;
        _lock.Enter();
        for (int i = 0; i < XenAbi.Fifo.Queues; i++)
        {
            Queue queue = QueueOf(vcpu, (uint)i);
            queue.Tail = tails[i];
            // A port is the tail of one queue at most, and no other than its last.
            if (tails[i] != 0)
                _lastQueue[tails[i]] = queue;
        }
        _lock.Exit();
        return 0;
    }

    /// <summary>Translates again what a delivery needs: 0 or -errno. May wait.</summary>
    public int Refresh(XenVcpu? vcpu, in EventTarget e)
    {
        if (vcpu is null || PageOf(e.Port) is not { } page)
            return -Errno.EINVAL;
        int r = page.Refresh(PageBytes);
        if (r == 0)
            r = vcpu.FifoControl.Refresh(XenAbi.Fifo.ControlSize);
        // Any page may hold a tail.
        for (uint i = 0; r == 0 && i < Pages; i++)
            if (_pages[i] is { } other && other != page)
                r = other.Refresh(PageBytes);
        return r;
    }

    /// <summary>Whether any of the ports is pending; true when that cannot be told without waiting.</summary>
    public bool AnyPending(ReadOnlySpan<uint> ports)
    {
        foreach (uint port in ports)
        {
            if (PageOf(port) is not { } page)
                continue;
            if (!XenVm.TryAcquire(page, PageBytes))
                return true;
            bool ok = UserCopy.TryRead4(WordOf(page, port), out uint word);
            page.Lock.ExitRead();
            if (!ok || (word & Pending) != 0)
                return true;
        }
        return false;
    }

    public void Dispose()
    {
        foreach (GfnToPfnCache? page in _pages)
            page?.Deactivate();
    }
}
