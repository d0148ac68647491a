using System.Buffers.Binary;

namespace Ring3.Vmm.Boot;

/// <summary>
/// Unpacks an xz stream of one or more blocks into a buffer of known size: LZMA2, optionally behind the x86 branch filter, which is what kernels use. Integrity checks are not
/// verified; a damaged stream ends in "false" or in an image that its reader refuses. SPEC: The .xz File Format 1.0.4 and 7-Zip's LZMA specification.
/// </summary>
internal static class XzDecoder
{
    private const int StreamHeaderBytes = 12;
    private const ulong FilterLzma2 = 0x21, FilterX86 = 0x04;

    public static ReadOnlySpan<byte> Magic => [0xfd, (byte)'7', (byte)'z', (byte)'X', (byte)'Z', 0];

    /// <summary>Fills <paramref name="output"/>; false when the stream is malformed, uses another filter, or is not exactly that long.</summary>
    public static bool TryUnpack(ReadOnlySpan<byte> stream, Span<byte> output)
    {
        if (stream.Length < StreamHeaderBytes || !stream.StartsWith(Magic))
            return false;
        int checkBytes = (stream[7] & 15) switch { 0 => 0, 1 => 4, 4 => 8, 10 => 32, _ => -1 };
        if (checkBytes < 0)
            return false;
        int at = StreamHeaderBytes, done = 0;
        while (at < stream.Length && stream[at] != 0)
        {
            int headerBytes = (stream[at] + 1) * 4;
            if (headerBytes > stream.Length - at || !ReadBlockHeader(stream.Slice(at, headerBytes), out bool x86))
                return false;
            at += headerBytes;
            var lzma = new Lzma2Decoder();
            int start = done;
            if (!lzma.Unpack(stream, ref at, output, ref done))
                return false;
            if (x86)
                UndoBranches(output[start..done]);
            at = (at + 3 & ~3) + checkBytes; // blocks start at multiples of four, as the stream header is twelve bytes
        }
        return done == output.Length;
    }

    private static bool ReadBlockHeader(ReadOnlySpan<byte> header, out bool x86)
    {
        x86 = false;
        int flags = header[1], at = 2;
        if ((flags & 0x3c) != 0)
            return false;
        for (int sizes = (flags >> 6 & 1) + (flags >> 7); sizes > 0; sizes--)
            if (!ReadNumber(header, ref at, out _))
                return false;
        bool lzma2 = false;
        for (int filters = (flags & 3) + 1; filters > 0; filters--)
        {
            if (!ReadNumber(header, ref at, out ulong id) || !ReadNumber(header, ref at, out ulong bytes) || bytes > (ulong)(header.Length - at))
                return false;
            at += (int)bytes;
            if (id == FilterX86 && bytes == 0)
                x86 = true;
            else if (id == FilterLzma2)
                lzma2 = true;
            else
                return false;
        }
        return lzma2;
    }

    private static bool ReadNumber(ReadOnlySpan<byte> data, ref int at, out ulong value)
    {
        value = 0;
        for (int shift = 0; shift < 63; shift += 7)
        {
            if (at >= data.Length)
                return false;
            byte b = data[at++];
            value |= (ulong)(b & 0x7f) << shift;
            if (b < 0x80)
                return true;
        }
        return false;
    }

    /// <summary>Makes the targets of CALL and JMP relative again. The filter looks at E8 and E9 bytes whose operand's top byte is 00 or FF, and remembers such bytes that lie within the last operand.</summary>
    private static void UndoBranches(Span<byte> data)
    {
        ReadOnlySpan<bool> allowed = [true, true, true, false, true, false, false, false];
        ReadOnlySpan<byte> bitOf = [0, 1, 2, 2, 3, 3, 3, 3];
        uint mask = 0;
        int previous = -1;
        for (int i = 0; i + 4 < data.Length;)
        {
            if ((data[i] & 0xfe) != 0xe8)
            {
                i++;
                continue;
            }
            int distance = i - previous;
            previous = i;
            if (distance > 3)
                mask = 0;
            else
            {
                mask = mask << (distance - 1) & 7;
                if (mask != 0 && (!allowed[(int)mask] || data[i + 4 - bitOf[(int)mask]] is 0 or 0xff))
                {
                    mask = mask << 1 | 1;
                    i++;
                    continue;
                }
            }
            if (data[i + 4] is not (0 or 0xff))
            {
                mask = mask << 1 | 1;
                i++;
                continue;
            }
            uint source = BinaryPrimitives.ReadUInt32LittleEndian(data[(i + 1)..]), target;
            while (true)
            {
                target = source - ((uint)i + 5);
                if (mask == 0)
                    break;
                int bit = bitOf[(int)mask] * 8;
                byte b = (byte)(target >> (24 - bit));
                if (b is not (0 or 0xff))
                    break;
                source = target ^ (1u << (32 - bit)) - 1;
            }
            target = target & 0x01ff_ffff | (uint)-(int)(target & 0x0100_0000);
            BinaryPrimitives.WriteUInt32LittleEndian(data[(i + 1)..], target);
            i += 5;
            mask = 0;
        }
    }
}
