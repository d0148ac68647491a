using System.Runtime.InteropServices;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>Where a driver has put a queue, and how it is to be used.</summary>
internal readonly record struct RingSetup(ushort Size, ulong Descriptors, ulong DriverArea, ulong DeviceArea, ulong Features)
{
    public bool EventIndex => (Features & VirtioFeature.EventIndex) != 0;
    public bool Indirect => (Features & VirtioFeature.IndirectDescriptors) != 0;
}

/// <summary>A descriptor as it is in memory. The last two fields: flags and next in a split ring, id and flags in a packed one.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct Descriptor(ulong Address, uint Length, ushort First, ushort Second)
{
    public const int Bytes = 16;
    public const ushort Next = 1, Write = 2, Indirect = 4;
}

/// <summary>
/// The device's side of one layout of a queue in guest memory. A driver that breaks the rules, or whose ring is no memory, gives a <see cref="Fault"/>,
/// after which nothing is taken from the ring any more.
/// </summary>
/// <remarks>
/// Everything is read once and then judged: the guest can change it at any time. Loads and stores of the ring's words are calls that the compiler does not
/// reorder, and the processor keeps their order but for a load that follows a
/// store of another word; there are fences where that matters.
/// </remarks>
internal abstract class Ring(GuestMemory memory, RingSetup setup)
{
    protected readonly GuestMemory Memory = memory;
    protected readonly RingSetup Setup = setup;

    /// <summary>Why the ring cannot be used any more.</summary>
    public string? Fault { get; private set; }

    /// <summary>Takes the next chain. False: there is none, or a fault.</summary>
    public abstract bool TryPop(DescriptorChain chain);

    /// <summary>The chain that was taken last, and is not given back, is the next one again.</summary>
    public abstract void Untake(DescriptorChain chain);

    /// <summary>Prepares to give a chain back, behind those that were prepared before. The driver does not see it yet.</summary>
    public abstract void Stage(DescriptorChain chain, uint written);

    /// <summary>Gives everything back that was prepared, at once.</summary>
    public abstract void Publish();

    /// <summary>Whether the driver wants to be interrupted for what has been pushed since the last call.</summary>
    public abstract bool ShouldInterrupt();

    /// <summary>Tells the driver that nobody waits for its notifications.</summary>
    public abstract void SuppressDoorbells();

    /// <summary>Asks for the notification of what comes next. False: something has come already.</summary>
    public abstract bool TryRest();

    /// <summary>Places in the ring, of a snapshot.</summary>
    public virtual void Transfer(StateTransfer state) => Fault = state.Text(Fault);

    public bool Break(string why)
    {
        Fault ??= why;
        return false;
    }

    protected bool NoMemory() => Break("the ring is no memory");

    /// <summary>Looks at a table of descriptors: how many it has, 0 after a fault.</summary>
    protected int IndirectCount(Descriptor d, ushort flags)
    {
        if (!Setup.Indirect || (flags & Descriptor.Next) != 0)
            Break("an indirect descriptor where none may be");
        else if (d.Length == 0 || d.Length % Descriptor.Bytes != 0 || d.Length > ulong.MaxValue - d.Address)
            Break("an indirect table has a wrong size");
        else
            return (int)Math.Min(d.Length / Descriptor.Bytes, int.MaxValue);
        return 0;
    }
}
