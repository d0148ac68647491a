using System.Numerics;
using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Xen;

// Sending events to the guest.
public sealed partial class XenVm
{
    /// <summary>Delivery could not be tried without waiting.</summary>
    public const int WouldBlock = -Errno.EAGAIN;

    /// <summary>
    /// Delivers an event without waiting. Any thread, any context that may take a futex.
    /// </summary>
    /// <returns>1 delivered, 0 already pending, -ENOTCONN masked, -EINVAL no such vCPU or port, <see cref="WouldBlock"/> when a page has to be translated first
    /// and nothing has been done.</returns>
    public int TrySend(in EventTarget e)
    {
        if (_machine.FindVcpu(e.Vcpu) is not { } vcpu || e.Port >= MaxPorts)
            return -Errno.EINVAL;
        int r;
        bool kick;
        using (Rcu.Read())
        {
            if (Fifo is { } fifo)
                r = fifo.TrySet(vcpu, e, out kick);
            else
                r = SetTwoLevel(vcpu, e.Port, out kick);
        }
        if (r > 0 || r == -Errno.ENOTCONN)
            WakePoller(vcpu, e.Port);
        if (kick)
            vcpu.Notify();
        return r;
    }

    private int SetTwoLevel(XenVcpu vcpu, uint port, out bool kick)
    {
        kick = false;
        GfnToPfnCache gpc = SharedInfo;
        if (!TryAcquire(gpc, PageBytes))
            return WouldBlock;
        bool longMode = LongMode;
        ulong word = port / 64 * 8, bit = 1UL << (int)(port & 63);
        bool ok = GuestBits.Or64(gpc.Hva + XenAbi.SharedInfo.Pending + word, bit, out ulong pending);
        ulong mask = 0;
        // The locked instruction above orders this read after the pending bit. PAIRS-WITH: the guest's unmask, which clears the mask and then looks at the
        // pending bit.
        ok = ok && UserCopy.TryRead8(gpc.Hva + (ulong)(longMode ? XenAbi.SharedInfo.Mask64 : XenAbi.SharedInfo.Mask32) + word, out mask);
        gpc.Lock.ExitRead();
        if (!ok)
            return -Errno.EFAULT;
        if ((pending & bit) != 0)
            return 0;
        if ((mask & bit) != 0)
            return -Errno.ENOTCONN;
        kick = vcpu.MarkPending((int)(port / (longMode ? 64u : 32u)), longMode);
        return 1;
    }

    /// <summary>Delivers an event, waiting for translations if it must. Caller holds no lock of the VM and is in no RCU section. As <see cref="TrySend"/>, but
    /// never <see cref="WouldBlock"/>.</summary>
    public int Send(in EventTarget e)
    {
        while (true)
        {
            int r = TrySend(e);
            if (r != WouldBlock)
                return r;
            // Contention, an invalidated translation, or none at all: the refresh tells which.
            r = Fifo is { } fifo ? fifo.Refresh(_machine.FindVcpu(e.Vcpu), e) : SharedInfo.Refresh(PageBytes);
            if (r != 0)
                return r;
        }
    }

    /// <summary>For contexts that must not wait: delivers now, or on a worker.</summary>
    /// <returns>As <see cref="TrySend"/>; 1 when the worker will do it.</returns>
    public int SendOrDefer(in EventTarget e)
    {
        int r = TrySend(e);
        if (r != WouldBlock)
            return r;
        using (_deferredLock.Enter())
            _deferred.Add(e);
        _machine.QueueDeferred();
        return 1;
    }

    /// <summary>The worker's half of <see cref="SendOrDefer"/>. An event whose page has gone for good is dropped, as it would be by KVM.</summary>
    public void DeliverDeferred()
    {
        EventTarget[] all;
        using (_deferredLock.Enter())
        {
            all = [.. _deferred];
            _deferred.Clear();
        }
        foreach (EventTarget e in all)
            _ = Send(e);
    }

    /// <summary>KVM_XEN_HVM_EVTCHN_SEND: 0 or -errno. Masked is not an error.</summary>
    public int SendFromClient(in kvm_irq_routing_xen_evtchn e)
    {
        if (e.port == 0 || e.port >= MaxPorts || !IsAcceptablePriority(e.priority))
            return -Errno.EINVAL;
        int r = Send(new(e.port, e.vcpu, e.priority));
        return r > 0 || r == -Errno.ENOTCONN ? 0 : r;
    }

    /// <summary>Whether a KVM_IRQ_ROUTING_XEN_EVTCHN route is acceptable. Port and vCPU may come to exist later.</summary>
    public int ValidateRoute(in kvm_irq_routing_xen_evtchn e) => IsAcceptablePriority(e.priority) ? 0 : -Errno.EINVAL;

    /// <summary>EVTCHNOP_send by the guest. False: the client has to handle it.</summary>
    internal bool TrySendFromGuest(uint port)
    {
        EventTarget target;
        using (Rcu.Read())
        {
            if (_ports.Find(port) is not { } binding)
                return false;
            if (binding.Target.Port == 0)
            {
                binding.EventFd!.Signal();
                return true;
            }
            target = binding.Target;
        }
        int r = Send(target);
        return r >= 0 || r == -Errno.ENOTCONN;
    }

    // ---- SCHEDOP_poll ----

    internal void BeginPoll(XenVcpu vcpu) => Interlocked.Or(ref _pollMask[vcpu.Index >> 6], 1UL << (vcpu.Index & 63));

    internal void EndPoll(XenVcpu vcpu) => Interlocked.And(ref _pollMask[vcpu.Index >> 6], ~(1UL << (vcpu.Index & 63)));

    /// <summary>A masked event wakes a vCPU that polls for it.</summary>
    private void WakePoller(XenVcpu vcpu, uint port)
    {
        if (vcpu.PollsFor(port))
            WakeFromPoll(vcpu);
    }

    /// <summary>
    /// The shared info page is another one: a vCPU that polls, and sleeps because nothing was pending in the old one, looks again. KVM lets it sleep until an
    /// event comes.
    /// </summary>
    private void RecheckPollers()
    {
        for (int word = 0; word < _pollMask.Length; word++)
        {
            // PAIRS-WITH: BeginPoll, which is a full fence between the vCPU's bit and its look at the page: either that look finds the new page, or the bit is
            // seen here.
            for (ulong bits = Volatile.Read(ref _pollMask[word]); bits != 0; bits &= bits - 1)
            {
                if (_machine.VcpuAt(word * 64 + BitOperations.TrailingZeroCount(bits)) is { } vcpu && vcpu.HasPolledEvent())
                    WakeFromPoll(vcpu);
            }
        }
    }

    private void WakeFromPoll(XenVcpu vcpu)
    {
        ulong bit = 1UL << (vcpu.Index & 63);
        if ((Interlocked.And(ref _pollMask[vcpu.Index >> 6], ~bit) & bit) != 0)
            vcpu.Processor.KickForEvents();
    }

    /// <summary>Whether any of the ports is pending. True when that cannot be told without waiting: the guest looks again.</summary>
    internal bool AnyPending(ReadOnlySpan<uint> ports)
    {
        using var _ = Rcu.Read();
        if (Fifo is { } fifo)
            return fifo.AnyPending(ports);
        if (!TryAcquire(SharedInfo, PageBytes))
            return true;
        bool any = false;
        foreach (uint port in ports)
        {
            if (!UserCopy.TryRead8(SharedInfo.Hva + XenAbi.SharedInfo.Pending + port / 64 * 8, out ulong word) || (word >> (int)(port & 63) & 1) != 0)
            {
                any = true;
                break;
            }
        }
        SharedInfo.Lock.ExitRead();
        return any;
    }
}
