using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Virtio;

/// <summary>
/// A queue of a device: registers that the driver sets, the ring that it then has in guest memory, and its doorbell. Registers belong to the transport,
/// under its lock; the ring belongs to whoever holds <see cref="Gate"/>.
/// </summary>
public sealed class VirtQueue
{
    private const ushort NoVector = 0xffff;

    private readonly GuestMemory _memory;
    private readonly DescriptorChain _chain;
    private Ring? _ring;
    private volatile bool _running, _stopping, _held;

    internal VirtQueue(GuestMemory memory, ushort maxSize)
    {
        (_memory, MaxSize) = (memory, maxSize);
        _chain = new DescriptorChain(memory, maxSize);
        Size = maxSize;
    }

    public ushort MaxSize { get; }

    internal ushort Size { get; set; }
    internal ushort Vector { get; set; } = NoVector;
    internal ulong Descriptors { get; set; }
    internal ulong DriverArea { get; set; }
    internal ulong DeviceArea { get; set; }
    internal bool IsEnabled { get; private set; }

    /// <summary>Held while chains are taken, served and given back.</summary>
    internal RankedLock Gate { get; } = new(LockRank.VirtQueue);

    /// <summary>Rung by the driver, and by whoever wants the queue's thread to look around.</summary>
    internal WaitQueue Doorbell { get; } = new();

    /// <summary>Who is called when the driver rings, on its vCPU, instead of the doorbell. Set before the driver is there.</summary>
    internal Action? Rung { get; set; }

    /// <summary>The driver says that there is something to look at.</summary>
    internal void Ring()
    {
        if (Rung is { } rung)
            rung();
        else
            Doorbell.WakeAll();
    }

    /// <summary>Why the driver's ring cannot be used.</summary>
    public string? Fault => _ring?.Fault;

    /// <summary>The device may take chains. Changes under the gate.</summary>
    internal bool IsRunning => IsStarted && !_held;

    /// <summary>The driver waits for the chains that were taken. Changes under the gate.</summary>
    internal bool IsStarted => _running && !_stopping;

    /// <summary>Takes the driver's word for the ring; false when it must not be so.</summary>
    internal bool TryEnable(ulong features)
    {
        bool packed = (features & VirtioFeature.PackedRing) != 0;
        ulong driverAlign = packed ? 4u : 2u;
        if (Size == 0 || Size > MaxSize || !packed && !ushort.IsPow2(Size))
            return false;
        if (Descriptors % Descriptor.Bytes != 0 || DriverArea % driverAlign != 0 || DeviceArea % 4 != 0)
            return false;
        var setup = new RingSetup(Size, Descriptors, DriverArea, DeviceArea, features);
        _ring = packed ? new PackedRing(_memory, setup) : new SplitRing(_memory, setup);
        IsEnabled = true;
        return true;
    }

    /// <summary>The driver is ready.</summary>
    internal void Start()
    {
        if (!IsEnabled)
            return;
        using (Gate.Enter())
            _running = true;
        Ring();
    }

    /// <summary>Forgets the driver. On return nothing of it is being served.</summary>
    internal void Reset()
    {
        _stopping = true;
        using (Gate.Enter())
        {
            _running = false;
            _ring = null;
            Generation++;
            _stopping = false;
        }
        Ring();
        (Size, Vector, Descriptors, DriverArea, DeviceArea, IsEnabled) = (MaxSize, NoVector, 0, 0, 0, false);
    }

    /// <summary>Nothing is taken until <see cref="Release"/>. On return nothing is being served.</summary>
    internal void Hold()
    {
        _held = true;
        using (Gate.Enter())
        {
        }
    }

    /// <summary>Ends <see cref="Hold"/>: the queue is looked at again.</summary>
    internal void Release()
    {
        using (Gate.Enter())
            _held = false;
        Ring();
    }

    /// <summary>The queue of a snapshot. It is held.</summary>
    internal void Transfer(StateTransfer state, ulong features)
    {
        Size = state.Keep(Size);
        Vector = state.Keep(Vector);
        Descriptors = state.Keep(Descriptors);
        DriverArea = state.Keep(DriverArea);
        DeviceArea = state.Keep(DeviceArea);
        bool enabled = state.Keep(IsEnabled);
        _running = state.Keep(_running) && enabled;
        if (!enabled)
            return;
        if (state.IsLoading && !TryEnable(features))
            throw new InvalidDataException("a queue has a size or an address that it must not have");
        _ring!.Transfer(state);
    }

    /// <summary>Takes the next chain, which is good until the next call. False: none is there, or the queue does not run. Under the gate.</summary>
    internal bool TryPop(out DescriptorChain chain)
    {
        chain = _chain;
        return IsRunning && _ring!.TryPop(_chain);
    }

    /// <summary>As <see cref="TryPop(out DescriptorChain)"/>, for who keeps several chains, in those of <see cref="NewChain"/>.</summary>
    internal bool TryPop(DescriptorChain chain) => IsRunning && _ring!.TryPop(chain);

    /// <summary>Undoes the last <see cref="TryPop(DescriptorChain)"/> that was not undone: the chain will be taken again. Under the gate.</summary>
    internal void Untake(DescriptorChain chain) => _ring?.Untake(chain);

    internal DescriptorChain NewChain() => new(_memory, MaxSize);

    /// <summary>Another number after each reset: chains of before are nobody's. Under the gate.</summary>
    internal int Generation { get; private set; }

    /// <summary>Gives a chain back. Under the gate.</summary>
    /// <param name="chain">The last that was taken.</param>
    /// <param name="written">Bytes that were written, from the begin of its writable part.</param>
    /// <returns>Whether the driver wants to be interrupted.</returns>
    internal bool Push(DescriptorChain chain, uint written)
    {
        _ring!.Stage(chain, written);
        return Publish();
    }

    /// <summary>Prepares to give a chain back together with others. Under the gate.</summary>
    internal void Stage(DescriptorChain chain, uint written) => _ring!.Stage(chain, written);

    /// <summary>Gives back what was prepared; whether the driver wants to be interrupted. Under the gate.</summary>
    internal bool Publish()
    {
        _ring!.Publish();
        return _ring.ShouldInterrupt();
    }

    /// <summary>The driver may save its notifications. Under the gate.</summary>
    internal void SuppressDoorbells()
    {
        if (IsRunning)
            _ring!.SuppressDoorbells();
    }

    /// <summary>Asks for the next notification; false when there is something to do. Under the gate.</summary>
    internal bool TryRest() => !IsRunning || _ring!.TryRest();

    /// <summary>The driver has sent what it must not send: the queue is served no more, and the device asks to be reset.</summary>
    internal void Break(string why) => _ring?.Break(why);
}
