using System.Buffers.Binary;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>
/// The 256-byte configuration space of one PCI function with a type 0 header. Each byte has a mask of the bits that the guest may write. SPEC: PCI Local Bus
/// 3.0, "Configuration Space".
/// </summary>
public class PciFunction
{
    public const int Command = 4, Status = 6, RevisionId = 8, HeaderType = 0xe, Bar0 = 0x10, SubsystemVendor = 0x2c, InterruptLine = 0x3c, InterruptPin = 0x3d;
    public const ushort CommandIo = 1, CommandMemory = 2, CommandMaster = 4, CommandIntxDisable = 1 << 10;

    private readonly RankedLock _lock = new(LockRank.PciFunction);
    private readonly byte[] _space = new byte[256], _writable = new byte[256];

    /// <param name="vendor">Vendor id.</param>
    /// <param name="device">Device id.</param>
    /// <param name="classCode">Base class, subclass and interface, 24 bits.</param>
    /// <param name="revision">Revision id.</param>
    public PciFunction(ushort vendor, ushort device, uint classCode, byte revision)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(_space, vendor);
        BinaryPrimitives.WriteUInt16LittleEndian(_space.AsSpan(2), device);
        BinaryPrimitives.WriteUInt32LittleEndian(_space.AsSpan(RevisionId), classCode << 8 | revision);
        SetWritable(Command, CommandIo | CommandMemory | CommandMaster | CommandIntxDisable, 2);
        _writable[InterruptLine] = 0xff;
    }

    /// <summary>Sets bytes of the space, whatever the guest may write.</summary>
    public void SetBytes(int offset, ReadOnlySpan<byte> value)
    {
        using (_lock.Enter())
            value.CopyTo(_space.AsSpan(offset));
    }

    /// <summary>Reads a 32-bit register without side effect.</summary>
    public uint Peek(int offset)
    {
        using (_lock.Enter())
            return BinaryPrimitives.ReadUInt32LittleEndian(_space.AsSpan(offset & 0xfc));
    }

    /// <summary>Lets the guest write the bits of <paramref name="mask"/> in a field of <paramref name="bytes"/> bytes.</summary>
    public void SetWritable(int offset, uint mask, int bytes)
    {
        using (_lock.Enter())
            for (int i = 0; i < bytes; i++)
                _writable[offset + i] = (byte)(mask >> (8 * i));
    }

    /// <summary>
    /// Declares base address register <paramref name="index"/> of a power-of-two size: its address bits are writable, the rest reads <paramref name="flags"/>,
    /// so that the guest can size it.
    /// </summary>
    /// <param name="index">0 to 5; a 64-bit memory BAR (flags 4) also takes the next.</param>
    /// <param name="size">Bytes; at least 16 for memory, 4 for ports.</param>
    /// <param name="flags">The low bits: 1 ports, 0 memory, 4 64-bit memory, 8 prefetchable.</param>
    public void AddBar(int index, ulong size, uint flags)
    {
        int at = Bar0 + 4 * index;
        ulong mask = ~(size - 1);
        SetWritable(at, (uint)mask, 4);
        using (_lock.Enter())
            _space[at] = (byte)flags;
        if ((flags & 5) == 4)
            SetWritable(at + 4, (uint)(mask >> 32), 4);
    }

    /// <summary>The space of a snapshot.</summary>
    public virtual void Transfer(StateTransfer state)
    {
        using (_lock.Enter())
            state.Bytes(_space);
    }

    /// <summary>Guest read of 1, 2 or 4 bytes that do not cross a register.</summary>
    public virtual void ReadConfig(int offset, Span<byte> data)
    {
        using (_lock.Enter())
            _space.AsSpan(offset, data.Length).CopyTo(data);
    }

    /// <summary>Guest write of 1, 2 or 4 bytes that do not cross a register. Read-only bits keep their value.</summary>
    public virtual void WriteConfig(int offset, ReadOnlySpan<byte> data)
    {
        using (_lock.Enter())
            for (int i = 0; i < data.Length; i++)
                _space[offset + i] = (byte)(_space[offset + i] & ~_writable[offset + i] | data[i] & _writable[offset + i]);
    }
}
