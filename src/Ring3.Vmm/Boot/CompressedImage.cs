using System.Buffers.Binary;
using System.IO.Compression;
using K4os.Compression.LZ4;
using SharpCompress.Compressors.BZip2;
using SharpCompress.Compressors.LZMA;
using SharpCompress.Compressors.Xz;
using ZstdSharp;

namespace Ring3.Vmm;

/// <summary>
/// Unpacks images on the host: gzip, bzip2, LZMA, xz, zstd and the legacy LZ4 frames of kernels, recognised by their first bytes. Host code does it some ten
/// times faster than the guest's own unpacker.
/// </summary>
internal static class CompressedImage
{
    private const uint Lz4LegacyMagic = 0x184c_2102, ZstdMagic = 0xfd2f_b528;
    /// <summary>A block of a legacy LZ4 frame unpacks to no more. SPEC: LZ4 frame format, "Legacy frame".</summary>
    private const int Lz4BlockBytes = 8 << 20;
    private const int LzmaHeaderBytes = 13;

    private static ReadOnlySpan<byte> XzMagic => [0xfd, (byte)'7', (byte)'z', (byte)'X', (byte)'Z', 0];

    /// <summary>Whether the first bytes are those of a format that <see cref="TryUnpack"/> knows.</summary>
    public static bool IsKnown(ReadOnlySpan<byte> data) => FormatOf(data) != Format.None;

    /// <summary>
    /// Unpacks <paramref name="data"/> until its end or until <paramref name="maxBytes"/> are there; what follows a finished stream is ignored. Null when the
    /// format is not known or the data is damaged.
    /// </summary>
    /// <param name="expectedBytes">The unpacked size where it is known: saves copies.</param>
    public static byte[]? TryUnpack(ReadOnlySpan<byte> data, int maxBytes, int expectedBytes = 0)
    {
        Format format = FormatOf(data);
        if (format == Format.None)
            return null;
        var image = new MemoryStream(expectedBytes);
        try
        {
            if (format == Format.Lz4)
                return UnpackLz4(data[4..], image, maxBytes) ? Bytes(image) : null;
            using Stream stream = Open(format, data.ToArray());
            var buffer = new byte[1 << 20];
            while (image.Length < maxBytes)
            {
                int n = stream.Read(buffer, 0, (int)Math.Min(buffer.Length, maxBytes - image.Length));
                if (n <= 0)
                    break;
                image.Write(buffer, 0, n);
            }
        }
        // The libraries name no closed set of exceptions for damaged data: invalid format, index, arithmetic, end of stream, a dictionary larger than any
        // array.
        catch (Exception)
        {
            return null;
        }
        return Bytes(image);
    }

    private static byte[] Bytes(MemoryStream image) => image.Length == image.Capacity ? image.GetBuffer() : image.ToArray();

    private enum Format { None, Gzip, Bzip2, Lzma, Xz, Zstd, Lz4 }

    private static Format FormatOf(ReadOnlySpan<byte> data)
    {
        if (data.Length < LzmaHeaderBytes)
            return Format.None;
        uint first = BinaryPrimitives.ReadUInt32LittleEndian(data);
        return first switch
        {
            Lz4LegacyMagic => Format.Lz4,
            ZstdMagic => Format.Zstd,
            _ when (first & 0xff_ffff) == 0x08_8b1f => Format.Gzip,
            _ when data.StartsWith("BZh"u8) => Format.Bzip2,
            _ when data.StartsWith(XzMagic) => Format.Xz,
            // The old format has no magic: the usual properties byte, and a dictionary of 64 KiB to 128 MiB that is a power of two.
            _ when data[0] == 0x5d && BinaryPrimitives.ReadUInt32LittleEndian(data[1..]) is >= 1 << 16 and <= 1 << 27 and var d
                && (d & d - 1) == 0 => Format.Lzma,
            _ => Format.None,
        };
    }

    private static Stream Open(Format format, byte[] data) => format switch
    {
        Format.Gzip => new GZipStream(new MemoryStream(data), CompressionMode.Decompress),
        Format.Bzip2 => BZip2Stream.Create(new MemoryStream(data), SharpCompress.Compressors.CompressionMode.Decompress, decompressConcatenated: false),
        Format.Xz => new XZStream(new MemoryStream(data)),
        Format.Zstd => new DecompressionStream(new MemoryStream(data)),
        _ => OpenLzma(data),
    };

    /// <summary>The header is properties (5 bytes) and the unpacked size (8 bytes, all ones when the stream has an end mark).</summary>
    private static LzmaStream OpenLzma(byte[] data)
    {
        long size = BinaryPrimitives.ReadInt64LittleEndian(data.AsSpan(5));
        return LzmaStream.Create(data[..5], new MemoryStream(data, LzmaHeaderBytes, data.Length - LzmaHeaderBytes), data.Length - LzmaHeaderBytes, size);
    }

    /// <summary>Blocks of [compressed size, data]; ends before what cannot be a block, such as a kernel's appended size.</summary>
    private static bool UnpackLz4(ReadOnlySpan<byte> data, MemoryStream image, int maxBytes)
    {
        var block = new byte[Lz4BlockBytes];
        while (data.Length > 4 && image.Length < maxBytes)
        {
            uint size = BinaryPrimitives.ReadUInt32LittleEndian(data);
            data = data[4..];
            if (size == Lz4LegacyMagic)
                continue;
            if (size > (uint)data.Length)
                return false;
            int n = LZ4Codec.Decode(data[..(int)size], block);
            if (n <= 0)
                return false;
            image.Write(block, 0, (int)Math.Min(n, maxBytes - image.Length));
            data = data[(int)size..];
        }
        return true;
    }
}
