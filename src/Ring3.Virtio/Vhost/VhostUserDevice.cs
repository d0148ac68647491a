using System.Runtime.InteropServices;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>
/// A device whose requests another program serves, by the vhost-user protocol. That program sees no guest memory: requests are taken from the driver's queues
/// as for every other device, copied into memory that is shared with it, and offered on rings of our own; answers come back the same way. So a driver cannot
/// reach the program with a ring, nor the program the guest with an address; memory may be evicted or a clone's; and when the program has ended, what it owes
/// is answered here, as an error.
/// </summary>
/// <remarks>
/// Locks: a queue's gate is held for its ring, its slots and their buffers. Requests are taken by the vCPU that rings, as far as there is room; answers by a
/// thread of the device, which then takes what has found no room.
/// SAFETY: the shared mapping has the rings' bytes and lives until the thread has ended and nobody rings any more; its file cannot be cut.
/// </remarks>
public abstract class VhostUserDevice : VirtioDevice
{
    private const ulong StopKey = ulong.MaxValue, LinkKey = StopKey - 1, AgainKey = StopKey - 2;

    private readonly VhostUserLink _link;
    private readonly Action<string> _ended;
    private readonly VhostRing[] _rings;
    private readonly Slot[][] _slots;
    private readonly int[] _kicks, _calls;
    private readonly int _memory, _stopSignal, _again;
    private readonly unsafe byte* _shared;
    private readonly nuint _sharedBytes;
    private readonly Epoll _epoll = new();
    private readonly Thread _thread;
    private volatile bool _stop, _dead, _taken;

    /// <summary>A request that the other side has.</summary>
    private struct Slot
    {
        public DescriptorChain? Chain;
        public int Generation;
        public int Readable, Writable;
    }

    /// <param name="memory">The guest's.</param>
    /// <param name="type">Device type.</param>
    /// <param name="name">For threads and messages.</param>
    /// <param name="queueSizes">Largest size of each queue.</param>
    /// <param name="slotBytes">Bytes of the largest request, both parts; a multiple of a page.</param>
    /// <param name="link">Opened; belongs to the device from now on.</param>
    /// <param name="features">What is agreed with the other side.</param>
    /// <param name="ended">Told why the other side serves no more, a phrase, on a thread of the device.</param>
    /// <exception cref="VhostUserException">The other side ends.</exception>
    protected unsafe VhostUserDevice(GuestMemory memory, ushort type, string name, ushort[] queueSizes, int slotBytes, VhostUserLink link, ulong features,
        Action<string> ended)
        : base(memory, type, name, queueSizes)
    {
        (_link, _ended) = (link, ended);
        ulong ringBytes = VhostRing.BytesFor(slotBytes);
        _sharedBytes = (nuint)(ringBytes * (uint)Queues.Length);
        _memory = MemFd.Create("ring3-vhost", _sharedBytes);
        _shared = _memory < 0 ? null : MemFd.Map(_memory, _sharedBytes);
        if (_shared == null)
            throw new VhostUserException("there is no memory to share with it");
        (_rings, _slots, _kicks, _calls) = (new VhostRing[Queues.Length], new Slot[Queues.Length][], new int[Queues.Length], new int[Queues.Length]);
        (_stopSignal, _again) = (EventFd.Create(), EventFd.Create());
        Watch(_stopSignal, StopKey);
        Watch(_again, AgainKey);
        Watch(link.Descriptor, LinkKey);
        link.Use(features | VirtioFeature.Version1);
        link.SetMemory(_memory, (ulong)_shared, _sharedBytes);
        for (int i = 0; i < Queues.Length; i++)
        {
            int queue = i;
            _rings[i] = new VhostRing(_shared, ringBytes * (uint)i, slotBytes);
            _slots[i] = new Slot[VhostRing.Slots];
            (_kicks[i], _calls[i]) = (EventFd.Create(), EventFd.Create());
            Watch(_calls[i], (ulong)i);
            link.SetRing(i, VhostRing.Size, _rings[i].Addresses, _kicks[i], _calls[i]);
            Queues[i].Rung = () => Submit(queue);
        }
        _thread = new Thread(Run) { IsBackground = true, Name = $"ring3-{name}" };
        _thread.Start();
    }

    private void Watch(int descriptor, ulong key)
    {
        if (_epoll.Add(descriptor, key) != 0)
            throw new HostCallException("epoll_ctl");
    }

    protected internal override bool HasWorker(int queue) => false;

    /// <summary>Answers a request here when the other side is not to have it. The request has been copied.</summary>
    /// <param name="request">What the driver wrote; may be changed.</param>
    /// <param name="answer">What it reads, cleared as far as <paramref name="written"/> says.</param>
    /// <param name="written">Bytes of the answer.</param>
    protected abstract bool TryAnswer(Span<byte> request, Span<byte> answer, out int written);

    /// <summary>The answer to a request that cannot be served: how many bytes of <paramref name="answer"/>.</summary>
    /// <param name="request">As much of it as a header has; less when there is no more.</param>
    /// <param name="answer">What the driver reads, or its last <see cref="ErrorBytes"/> bytes when the request is too large for a slot.</param>
    protected abstract int Refuse(ReadOnlySpan<byte> request, Span<byte> answer);

    /// <summary>Bytes from the begin of the answer that are given to the driver when the other side says that it wrote <paramref name="written"/>.</summary>
    protected virtual int Given(int written, int writable) => written;

    /// <summary>Whether a refusal ends the writable part, not begins it.</summary>
    protected abstract bool ErrorIsLast { get; }

    private const int ErrorBytes = 16, HeaderBytes = 40;

    protected internal override uint Serve(int queue, DescriptorChain chain) => throw new InvalidOperationException("the queue has no thread");

    /// <summary>The driver has asked for something since it is there.</summary>
    protected bool HasTaken => _taken;

    /// <summary>Takes what the driver has sent, as far as there is room.</summary>
    internal void Submit(int index)
    {
        VirtQueue queue = Queues[index];
        bool kick = false;
        using (queue.Gate.Enter())
        {
            bool interrupt = false;
            // A driver that never stops keeps nobody here.
            int left = queue.MaxSize;
            queue.SuppressDoorbells();
            do
            {
                while (left > 0 && _rings[index].HasRoom && TakeOne(queue, index, ref kick, ref interrupt))
                    left--;
            } while (left > 0 && !_stop && _rings[index].HasRoom && queue.Fault is null && Transport is { IsStopped: false } && !queue.TryRest());
            if (left == 0)
                _ = EventFd.Signal(_again);
            if (interrupt && queue.Fault is null && queue.Publish())
                Transport!.Interrupt(queue);
            if (queue.Fault is { } why)
                Transport!.NeedReset(why);
            if (kick && _rings[index].ShouldKick())
                _ = EventFd.Signal(_kicks[index]);
        }
    }

    /// <summary>False: nothing is there.</summary>
    private bool TakeOne(VirtQueue queue, int index, ref bool kick, ref bool interrupt)
    {
        VhostRing ring = _rings[index];
        if (_stop || Transport is not { IsStopped: false })
            return false;
        int at = ring.Take();
        ref Slot slot = ref _slots[index][at];
        DescriptorChain chain = slot.Chain ??= queue.NewChain();
        if (!queue.TryPop(chain))
        {
            ring.Free(at);
            return false;
        }
        slot.Generation = queue.Generation;
        _taken = true;
        if (chain.ReadableBytes + chain.WritableBytes > (ulong)ring.SlotBytes)
        {
            ring.Free(at);
            RefuseLarge(queue, chain);
            interrupt = true;
            return true;
        }
        (slot.Readable, slot.Writable) = ((int)chain.ReadableBytes, (int)chain.WritableBytes);
        Span<byte> buffer = ring.Buffer(at), request = buffer[..slot.Readable], answer = buffer.Slice(slot.Readable, slot.Writable);
        if (!chain.TryRead(0, request))
        {
            ring.Free(at);
            queue.Break("a request is no memory");
            return false;
        }
        int written = 0;
        if (slot.Readable + slot.Writable != 0 && !_dead && !TryAnswer(request, answer, out written))
        {
            ring.Offer(at, slot.Readable, slot.Writable);
            kick = true;
            return true;
        }
        if (_dead)
            written = Refuse(request, answer);
        GiveBack(queue, chain, answer, written);
        ring.Free(at);
        interrupt = true;
        return true;
    }

    /// <summary>Refuses a request that no slot has room for.</summary>
    private void RefuseLarge(VirtQueue queue, DescriptorChain chain)
    {
        Span<byte> header = stackalloc byte[HeaderBytes], error = stackalloc byte[ErrorBytes];
        header = header[..(int)Math.Min(HeaderBytes, chain.ReadableBytes)];
        error = error[..(int)Math.Min(ErrorBytes, chain.WritableBytes)];
        if (!chain.TryRead(0, header))
        {
            queue.Break("a request is no memory");
            return;
        }
        error.Clear();
        int written = Refuse(header, error);
        ulong at = ErrorIsLast ? chain.WritableBytes - (uint)error.Length : 0;
        if (!chain.TryWrite(at, error[..written]))
            queue.Break("a request's answer is no memory");
        else
            queue.Stage(chain, (uint)Math.Min(uint.MaxValue, at + (uint)written));
    }

    private static void GiveBack(VirtQueue queue, DescriptorChain chain, ReadOnlySpan<byte> answer, int written)
    {
        if (!chain.TryWrite(0, answer[..written]))
            queue.Break("a request's answer is no memory");
        else
            queue.Stage(chain, (uint)written);
    }

    private void Run()
    {
        Span<ulong> keys = stackalloc ulong[16];
        try
        {
            while (!_stop)
            {
                int n = _epoll.Wait(keys, -1);
                for (int i = 0; i < n && !_stop; i++)
                    Hear(keys[i]);
            }
        }
        catch (Exception e)
        {
            Transport?.Fail(e);
        }
    }

    private void Hear(ulong key)
    {
        switch (key)
        {
            case StopKey:
                return;
            case AgainKey:
                _ = EventFd.Drain(_again);
                for (int i = 0; i < Queues.Length; i++)
                    Submit(i);
                return;
            case LinkKey:
                GiveUp("it has ended");
                return;
        }
        int index = (int)key;
        _ = EventFd.Drain(_calls[index]);
        if (!_dead)
            Collect(index);
    }

    /// <summary>Gives answers to the driver.</summary>
    internal void Collect(int index)
    {
        (VirtQueue queue, VhostRing ring) = (Queues[index], _rings[index]);
        string? fault;
        using (queue.Gate.Enter())
        {
            bool interrupt = false;
            while (ring.TryTake(out int at, out uint written, out fault))
            {
                ref Slot slot = ref _slots[index][at];
                if (written > (uint)slot.Writable)
                {
                    // Not given back: the driver gets an error with all the others.
                    fault = "it says that it has written more than it was asked for";
                    break;
                }
                interrupt |= Finish(queue, ref slot, ring.Buffer(at), Given((int)written, slot.Writable));
                ring.Free(at);
            }
            Tell(queue, interrupt);
        }
        if (fault is not null)
            GiveUp(fault);
        else
            Submit(index);
    }

    /// <summary>Gives an answer to the driver, unless it has reset the device meanwhile. Under the gate.</summary>
    private static bool Finish(VirtQueue queue, ref Slot slot, ReadOnlySpan<byte> buffer, int written)
    {
        if (slot.Generation != queue.Generation || !queue.IsStarted || queue.Fault is not null)
            return false;
        GiveBack(queue, slot.Chain!, buffer.Slice(slot.Readable, slot.Writable), written);
        return true;
    }

    private void Tell(VirtQueue queue, bool interrupt)
    {
        if (interrupt && queue.Fault is null && queue.Publish())
            Transport!.Interrupt(queue);
        if (queue.Fault is { } why)
            Transport?.NeedReset(why);
    }

    /// <summary>The other side serves no more: what it owes, and everything after it, is refused.</summary>
    private void GiveUp(string why)
    {
        if (_dead)
            return;
        _epoll.Remove(_link.Descriptor);
        _dead = true;
        for (int i = 0; i < Queues.Length; i++)
        {
            (VirtQueue queue, VhostRing ring) = (Queues[i], _rings[i]);
            using (queue.Gate.Enter())
            {
                bool interrupt = false;
                for (int at = 0; at < VhostRing.Slots; at++)
                {
                    if (!ring.IsBusy(at))
                        continue;
                    ref Slot slot = ref _slots[i][at];
                    Span<byte> buffer = ring.Buffer(at);
                    interrupt |= Finish(queue, ref slot, buffer, Refuse(buffer[..slot.Readable], buffer.Slice(slot.Readable, slot.Writable)));
                    ring.Free(at);
                }
                Tell(queue, interrupt);
            }
            Submit(i);
        }
        if (!_stop)
            _ended(why);
    }

    protected internal override void Stopping()
    {
        _stop = true;
        _ = EventFd.Signal(_stopSignal);
    }

    protected override unsafe void Dispose(bool disposing)
    {
        Stopping();
        _thread.Join();
        // A vCPU that rings late comes behind this, and touches nothing.
        foreach (VirtQueue queue in Queues)
            queue.Gate.Enter().Dispose();
        _link.Dispose();
        _epoll.Dispose();
        HostMemory.Unmap(_shared, _sharedBytes);
        MemFd.Close(_memory);
        foreach (int fd in (int[])[_stopSignal, _again, .. _kicks, .. _calls])
            EventFd.Close(fd);
    }
}
