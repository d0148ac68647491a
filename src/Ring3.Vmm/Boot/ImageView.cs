using System.Buffers.Binary;

namespace Ring3.Vmm;

/// <summary>A boot image's bytes with checked little-endian reads: anything outside the file is a <see cref="BootException"/> that names the part.</summary>
public readonly ref struct ImageView(ReadOnlySpan<byte> bytes, string name)
{
    public readonly ReadOnlySpan<byte> Bytes = bytes;
    public readonly string Name = name;

    public int Length => Bytes.Length;

    /// <summary>[offset, offset + length) of the file.</summary>
    public ReadOnlySpan<byte> Slice(ulong offset, ulong length, string part)
    {
        if (offset > (ulong)Bytes.Length || length > (ulong)Bytes.Length - offset)
            throw BootException.BadImage($"{Name}: {part} lies outside the file (offset 0x{offset:x}, {length} bytes, file has {Bytes.Length})");
        return Bytes.Slice((int)offset, (int)length);
    }

    public bool Has(ulong offset, ulong length) => offset <= (ulong)Bytes.Length && length <= (ulong)Bytes.Length - offset;
    public byte U8(ulong offset, string part) => Slice(offset, 1, part)[0];
    public ushort U16(ulong offset, string part) => BinaryPrimitives.ReadUInt16LittleEndian(Slice(offset, 2, part));
    public uint U32(ulong offset, string part) => BinaryPrimitives.ReadUInt32LittleEndian(Slice(offset, 4, part));
    public ulong U64(ulong offset, string part) => BinaryPrimitives.ReadUInt64LittleEndian(Slice(offset, 8, part));
}
