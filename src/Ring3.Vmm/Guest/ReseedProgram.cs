using System.Buffers.Binary;

namespace Ring3.Vmm;

/// <summary>
/// A program for the guest, which no busybox of today has: it takes 64 random bytes from its standard input, adds them to the kernel's random numbers and makes
/// the kernel begin anew with them. A clone runs it before its command: two clones of one machine would have the same numbers. Static ELF for x86-64; status 1
/// when it could not.
/// </summary>
internal static class ReseedProgram
{
    /// <summary>Where it is in the guest.</summary>
    public const string Path = "/.ring3/reseed";

    /// <summary>Where a guest that waits has it take them from.</summary>
    public const string Pipe = "/run/.seed";

    /// <summary>Bytes that it takes.</summary>
    public const int SeedBytes = 64;

    private const ulong Base = 0x40_0000;
    private const int HeaderBytes = 64, SegmentBytes = 56;

    private static ReadOnlySpan<byte> Code =>
    [
        0x48, 0x81, 0xec, 0x80, 0x00, 0x00, 0x00, // sub rsp, 128
        0x31, 0xc0, // xor eax, eax: read
        0x31, 0xff, // xor edi, edi
        0x48, 0x8d, 0x74, 0x24, 0x08, // lea rsi, [rsp + 8]
        0xba, 0x40, 0x00, 0x00, 0x00, // mov edx, 64
        0x0f, 0x05, // syscall
        0x83, 0xf8, 0x40, // cmp eax, 64
        0x75, 0x53, // jne fail
        0xc7, 0x04, 0x24, 0x00, 0x02, 0x00, 0x00, // mov dword [rsp], 512: bits
        0xc7, 0x44, 0x24, 0x04, 0x40, 0x00, 0x00, 0x00, // mov dword [rsp + 4], 64: bytes
        0xb8, 0x02, 0x00, 0x00, 0x00, // mov eax, 2: open
        0x48, 0x8d, 0x3d, 0x44, 0x00, 0x00, 0x00, // lea rdi, [path]
        0xbe, 0x01, 0x00, 0x00, 0x00, // mov esi, O_WRONLY
        0x31, 0xd2, // xor edx, edx
        0x0f, 0x05, // syscall
        0x85, 0xc0, // test eax, eax
        0x78, 0x2b, // js fail
        0x89, 0xc7, // mov edi, eax
        0xb8, 0x10, 0x00, 0x00, 0x00, // mov eax, 16: ioctl
        0xbe, 0x03, 0x52, 0x08, 0x40, // mov esi, RNDADDENTROPY
        0x48, 0x89, 0xe2, // mov rdx, rsp
        0x0f, 0x05, // syscall
        0x85, 0xc0, // test eax, eax
        0x75, 0x16, // jne fail
        0xb8, 0x10, 0x00, 0x00, 0x00, // mov eax, 16: ioctl
        0xbe, 0x07, 0x52, 0x00, 0x00, // mov esi, RNDRESEEDCRNG
        0x31, 0xd2, // xor edx, edx
        0x0f, 0x05, // syscall
        0x85, 0xc0, // test eax, eax
        0x75, 0x04, // jne fail
        0x31, 0xff, // xor edi, edi
        0xeb, 0x05, // jmp exit
        0xbf, 0x01, 0x00, 0x00, 0x00, // fail: mov edi, 1
        0xb8, 0x3c, 0x00, 0x00, 0x00, // exit: mov eax, 60
        0x0f, 0x05, // syscall
    ];

    public static byte[] Build()
    {
        byte[] body = [.. Code, .. "/dev/random\0"u8], file = new byte[HeaderBytes + SegmentBytes + body.Length];
        Span<byte> header = file, segment = file.AsSpan(HeaderBytes);
        ((ReadOnlySpan<byte>)[0x7f, (byte)'E', (byte)'L', (byte)'F', 2, 1, 1]).CopyTo(header);
        BinaryPrimitives.WriteUInt16LittleEndian(header[16..], 2); // executable
        BinaryPrimitives.WriteUInt16LittleEndian(header[18..], 62); // x86-64
        BinaryPrimitives.WriteUInt32LittleEndian(header[20..], 1);
        BinaryPrimitives.WriteUInt64LittleEndian(header[24..], Base + HeaderBytes + SegmentBytes);
        BinaryPrimitives.WriteUInt64LittleEndian(header[32..], HeaderBytes);
        BinaryPrimitives.WriteUInt16LittleEndian(header[52..], HeaderBytes);
        BinaryPrimitives.WriteUInt16LittleEndian(header[54..], SegmentBytes);
        BinaryPrimitives.WriteUInt16LittleEndian(header[56..], 1);
        BinaryPrimitives.WriteUInt32LittleEndian(segment, 1); // load
        BinaryPrimitives.WriteUInt32LittleEndian(segment[4..], 5); // read and execute
        BinaryPrimitives.WriteUInt64LittleEndian(segment[16..], Base);
        BinaryPrimitives.WriteUInt64LittleEndian(segment[24..], Base);
        BinaryPrimitives.WriteUInt64LittleEndian(segment[32..], (ulong)file.Length);
        BinaryPrimitives.WriteUInt64LittleEndian(segment[40..], (ulong)file.Length);
        BinaryPrimitives.WriteUInt64LittleEndian(segment[48..], 0x1000);
        body.CopyTo(file.AsSpan(HeaderBytes + SegmentBytes));
        return file;
    }

    /// <summary>What a shell runs: new random numbers, or no command.</summary>
    public static string Script(ReadOnlySpan<byte> seed)
    {
        var octal = new System.Text.StringBuilder();
        foreach (byte b in seed)
            octal.Append('\\').Append(Convert.ToString(b, 8).PadLeft(3, '0'));
        const string Refuse = "{ echo 'ring3: this clone has no random numbers of its own' >&9; exec 8>&- 9>&-; wait $o $e; echo 'exit 126' >$status;"
            + " $b sleep 1000000; }";
        return $"[ -n \"$seed\" ] && printf '{octal}' >{Pipe} && wait $seed || {Refuse}\n";
    }
}
