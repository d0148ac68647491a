using System.Buffers.Binary;
using Ring3.Host;

namespace Ring3.Virtio;

/// <summary>Where a device's interrupts go. Any thread; called with the device's interrupt lock held.</summary>
public interface IPciInterrupts
{
    /// <summary>Drives the pin INTA.</summary>
    void SetLine(bool level);

    /// <summary>Sends a message.</summary>
    void Send(ulong address, uint data);
}

/// <summary>
/// MSI-X: a table of messages, a mask for each and for all, and the bits of those that wait behind a mask. The caller locks. SPEC: PCI Local Bus 3.0,
/// "MSI-X Capability and Table Structure".
/// </summary>
internal sealed class MsixTable(int count, IPciInterrupts output)
{
    public const int EntryBytes = 16, MaskAt = 12;
    private const ushort EnableBit = 1 << 15, FunctionMaskBit = 1 << 14;

    private readonly byte[] _entries = Initial(count);
    private readonly ulong[] _pending = new ulong[(count + 63) / 64];
    private bool _masked;

    public int Count => count;
    public bool IsEnabled { get; private set; }
    public int TableBytes => count * EntryBytes;
    public int PendingBytes => _pending.Length * 8;

    private static byte[] Initial(int count)
    {
        var entries = new byte[count * EntryBytes];
        for (int i = 0; i < count; i++)
            entries[i * EntryBytes + MaskAt] = 1;
        return entries;
    }

    /// <summary>The driver has written the capability's message control.</summary>
    public void SetControl(ushort control)
    {
        IsEnabled = (control & EnableBit) != 0;
        _masked = (control & FunctionMaskBit) != 0;
        for (int i = 0; i < count; i++)
            SendPending(i);
    }

    /// <summary>The table of a snapshot; sends nothing.</summary>
    public void Transfer(StateTransfer state)
    {
        IsEnabled = state.Keep(IsEnabled);
        state.Value(ref _masked);
        state.Bytes(_entries);
        state.Bytes(System.Runtime.InteropServices.MemoryMarshal.AsBytes(_pending.AsSpan()));
    }

    public void Read(int offset, Span<byte> data) => _entries.AsSpan(offset, data.Length).CopyTo(data);

    /// <summary>Whole registers only: 4 bytes, or 8 at a multiple of 8.</summary>
    public void Write(int offset, ReadOnlySpan<byte> data)
    {
        if (data.Length is not (4 or 8) || offset % data.Length != 0)
            return;
        data.CopyTo(_entries.AsSpan(offset));
        int entry = offset / EntryBytes;
        // Of the vector control word the mask alone can be set.
        BinaryPrimitives.WriteUInt32LittleEndian(Word(entry, MaskAt), Mask(entry) & 1);
        SendPending(entry);
    }

    public void ReadPending(int offset, Span<byte> data)
    {
        for (int i = 0; i < data.Length; i++)
            data[i] = (byte)(_pending[(offset + i) / 8] >> (8 * ((offset + i) % 8)));
    }

    /// <summary>Sends a vector's message, or remembers it behind a mask.</summary>
    public void Raise(int vector)
    {
        if ((uint)vector >= (uint)count)
            return;
        if (_masked || (Mask(vector) & 1) != 0)
            _pending[vector / 64] |= 1UL << vector % 64;
        else
            Send(vector);
    }

    private void SendPending(int vector)
    {
        ulong bit = 1UL << vector % 64;
        if (!IsEnabled || _masked || (_pending[vector / 64] & bit) == 0 || (Mask(vector) & 1) != 0)
            return;
        _pending[vector / 64] &= ~bit;
        Send(vector);
    }

    private void Send(int vector)
    {
        ulong address = BinaryPrimitives.ReadUInt64LittleEndian(Word(vector, 0));
        output.Send(address, BinaryPrimitives.ReadUInt32LittleEndian(Word(vector, 8)));
    }

    private uint Mask(int entry) => BinaryPrimitives.ReadUInt32LittleEndian(Word(entry, MaskAt));

    private Span<byte> Word(int entry, int at) => _entries.AsSpan(entry * EntryBytes + at);
}
