using System.Buffers.Binary;

namespace Ring3.Vmm;

/// <summary>The compressed vmlinux inside a bzImage. Unpacking it on the host saves the guest hundreds of millions of instructions; what is not unpacked here
/// the kernel unpacks itself.</summary>
internal static class LinuxPayload
{
    private const int MaxBytes = 512 << 20;

    /// <summary>Unpacks to an ELF image; null when the format is not known or the data is damaged (the guest's own unpacker then has its say).</summary>
    public static byte[]? TryUnpack(ReadOnlySpan<byte> payload)
    {
        if (payload.Length < 8)
            return null;
        // The last four bytes are the unpacked size: gzip's own trailer, appended to the other formats by the kernel's build.
        uint size = BinaryPrimitives.ReadUInt32LittleEndian(payload[^4..]);
        if (size is 0 or > MaxBytes)
            return null;
        byte[]? image = CompressedImage.TryUnpack(payload.StartsWith((ReadOnlySpan<byte>)[0x1f, 0x8b]) ? payload : payload[..^4], (int)size, (int)size);
        return image is not null && image.Length == size && image.AsSpan().StartsWith(ElfImage.Magic) ? image : null;
    }
}
