namespace Ring3.Kvm;

/// <summary>
/// A device behind port I/O or memory-mapped I/O. Calls come from any vCPU thread, one access at a time per call; the device does its own locking.
/// A call never throws: an access the device does not know reads as all ones, or as the device's data sheet says, and writes to nothing.
/// </summary>
public interface IBusDevice
{
    /// <summary>Reads <c>data.Length</c> bytes (1, 2, 4 or 8; MMIO up to 64) at <paramref name="offset"/> bytes into the device's range.</summary>
    void Read(ulong offset, Span<byte> data);

    /// <summary>Writes <c>data.Length</c> bytes at <paramref name="offset"/> bytes into the device's range.</summary>
    void Write(ulong offset, ReadOnlySpan<byte> data);
}

/// <summary>Takes some of the writes to its range away from the device that may be there: an ioeventfd, a coalesced zone.</summary>
internal interface IBusTap
{
    /// <summary>Takes the write, or leaves it to who is next. Any vCPU thread, in an RCU section: waits for nothing.</summary>
    bool TryTake(ulong address, ReadOnlySpan<byte> data);
}
