using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>
/// A kind of device: what it offers, its configuration, and what it does with requests. It knows no bus and no interrupt; <see cref="VirtioTransport"/> does.
/// </summary>
public abstract class VirtioDevice : IDisposable
{
    /// <param name="memory">The guest's.</param>
    /// <param name="type">Device type. SPEC: virtio 1.2, "Device Types".</param>
    /// <param name="name">For threads and messages.</param>
    /// <param name="queueSizes">Largest size of each queue; powers of two.</param>
    protected VirtioDevice(GuestMemory memory, ushort type, string name, ReadOnlySpan<ushort> queueSizes)
    {
        (Memory, Type, Name) = (memory, type, name);
        Queues = new VirtQueue[queueSizes.Length];
        for (int i = 0; i < Queues.Length; i++)
            Queues[i] = new VirtQueue(memory, queueSizes[i]);
    }

    protected GuestMemory Memory { get; }
    public ushort Type { get; }
    public string Name { get; }
    public VirtQueue[] Queues { get; }

    /// <summary>Features of this kind of device that the driver may take.</summary>
    public abstract ulong Features { get; }

    /// <summary>Whether features go together that the driver has taken, all of them offered.</summary>
    public virtual bool Accepts(ulong features) => true;

    /// <summary>The device's configuration space, of constant length.</summary>
    public abstract ReadOnlySpan<byte> Config { get; }

    /// <summary>The driver writes to the configuration space; most devices have nothing to write there.</summary>
    public virtual void WriteConfig(int offset, ReadOnlySpan<byte> data) { }

    /// <summary>Whether the queue's thread serves what the driver sends. Other queues are the device's own business.</summary>
    protected internal virtual bool HasWorker(int queue) => true;

    /// <summary>The driver is ready, with these features.</summary>
    protected internal virtual void Started(ulong features) { }

    /// <summary>Its queues are held: chains that it has taken and not used go back to them (<see cref="VirtQueue.Untake"/>).</summary>
    protected internal virtual void Held() { }

    /// <summary>What the device has beside its queues, of a snapshot; its queues are held.</summary>
    /// <exception cref="NotSupportedException">There is no snapshot of it now: the message says why.</exception>
    protected internal virtual void Transfer(StateTransfer state) => throw new NotSupportedException($"the state of {Name} is outside the machine");

    /// <summary>Does one request, on the queue's thread. A driver that breaks the rules: <see cref="VirtQueue.Break"/>.</summary>
    /// <returns>Bytes written, from the begin of the writable part.</returns>
    protected internal abstract uint Serve(int queue, DescriptorChain chain);

    /// <summary>How a queue's owner reaches the driver and the transport. Set by the transport.</summary>
    internal VirtioTransport? Transport { get; set; }

    public void Dispose()
    {
        Dispose(true);
        GC.SuppressFinalize(this);
    }

    /// <summary>The machine has ended: requests that wait for something outside give up.</summary>
    protected internal virtual void Stopping() { }

    /// <summary>After the last request.</summary>
    protected virtual void Dispose(bool disposing) { }
}
