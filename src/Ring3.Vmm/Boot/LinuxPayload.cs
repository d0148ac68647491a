using System.Buffers.Binary;
using System.IO.Compression;

namespace Ring3.Vmm.Boot;

/// <summary>
/// The compressed vmlinux inside a bzImage. Unpacking it on the host saves the guest hundreds of millions of instructions. Formats: LZ4 (legacy frames, as kernels use), xz and gzip; for
/// others the kernel unpacks itself.
/// </summary>
internal static class LinuxPayload
{
    private const uint Lz4LegacyMagic = 0x184c_2102;
    private const int Lz4BlockBytes = 8 << 20;
    private const int MaxBytes = 512 << 20;

    /// <summary>Unpacks to an ELF image; null when the format is not known or the data is damaged (the guest's own unpacker then has its say).</summary>
    public static byte[]? TryUnpack(ReadOnlySpan<byte> payload)
    {
        if (payload.Length < 8)
            return null;
        // The last four bytes are the unpacked size, appended by the kernel's build.
        uint size = BinaryPrimitives.ReadUInt32LittleEndian(payload[^4..]);
        if (size is 0 or > MaxBytes)
            return null;
        byte[]? image = BinaryPrimitives.ReadUInt32LittleEndian(payload) == Lz4LegacyMagic ? UnpackLz4(payload[4..], (int)size)
            : payload.StartsWith(XzDecoder.Magic) ? UnpackXz(payload[..^4], (int)size)
            : payload[0] == 0x1f && payload[1] == 0x8b ? UnpackGzip(payload, (int)size)
            : null;
        return image is not null && image.AsSpan().StartsWith(ElfImage.Magic) ? image : null;
    }

    private static byte[]? UnpackXz(ReadOnlySpan<byte> payload, int size)
    {
        var image = new byte[size];
        return XzDecoder.TryUnpack(payload, image) ? image : null;
    }

    private static byte[]? UnpackGzip(ReadOnlySpan<byte> payload, int size)
    {
        var image = new byte[size];
        try
        {
            using var gzip = new GZipStream(new MemoryStream(payload.ToArray()), CompressionMode.Decompress);
            return gzip.ReadAtLeast(image, size, throwOnEndOfStream: false) == size ? image : null;
        }
        catch (InvalidDataException) { return null; }
    }

    /// <summary>Legacy frames: blocks of [compressed size, data], each unpacking to at most 8 MiB. SPEC: LZ4 frame and block format descriptions.</summary>
    private static byte[]? UnpackLz4(ReadOnlySpan<byte> data, int size)
    {
        var image = new byte[size];
        int done = 0;
        while (done < size)
        {
            if (data.Length < 4)
                return null;
            uint block = BinaryPrimitives.ReadUInt32LittleEndian(data);
            if (block == Lz4LegacyMagic)
            {
                data = data[4..];
                continue;
            }
            if (block > (uint)data.Length - 4)
                return null;
            int n = UnpackBlock(data.Slice(4, (int)block), image.AsSpan(done, Math.Min(Lz4BlockBytes, size - done)));
            if (n <= 0)
                return null;
            done += n;
            data = data[(4 + (int)block)..];
        }
        return image;
    }

    /// <summary>One block; returns the bytes written, or -1 when it is malformed.</summary>
    private static int UnpackBlock(ReadOnlySpan<byte> from, Span<byte> to)
    {
        const int MinMatch = 4;
        int at = 0, done = 0;
        while (at < from.Length)
        {
            int token = from[at++];
            if (!Length(from, ref at, token >> 4, out int literals) || literals > from.Length - at || literals > to.Length - done)
                return -1;
            from.Slice(at, literals).CopyTo(to[done..]);
            at += literals;
            done += literals;
            if (at == from.Length)
                return done;
            if (from.Length - at < 2)
                return -1;
            int distance = from[at] | from[at + 1] << 8;
            at += 2;
            if (!Length(from, ref at, token & 15, out int match) || distance == 0 || distance > done || match > to.Length - done - MinMatch)
                return -1;
            match += MinMatch;
            if (distance >= match)
                to.Slice(done - distance, match).CopyTo(to[done..]);
            else
            {
                for (int i = 0; i < match; i++)
                    to[done + i] = to[done - distance + i];
            }
            done += match;
        }
        return done;
    }

    private static bool Length(ReadOnlySpan<byte> from, ref int at, int nibble, out int length)
    {
        length = nibble;
        if (nibble != 15)
            return true;
        while (at < from.Length && length < MaxBytes)
        {
            byte b = from[at++];
            length += b;
            if (b != 255)
                return true;
        }
        return false;
    }
}
