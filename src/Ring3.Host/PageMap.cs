namespace Ring3.Host;

/// <summary>What the kernel says about pages of this process: /proc/self/pagemap, which needs no privilege for what is asked here. Closed when nobody refers to
/// it any more, so that late readers are safe.</summary>
/// <remarks>SAFETY: reads into the caller's span.</remarks>
public sealed class PageMap
{
    /// <summary>The page is in memory.</summary>
    public const ulong Present = 1UL << 63;
    /// <summary>The page is in the host's swap.</summary>
    public const ulong Swapped = 1UL << 62;
    /// <summary>The page is the file's own, not a private copy of it.</summary>
    public const ulong OfFile = 1UL << 61;

    private readonly Microsoft.Win32.SafeHandles.SafeFileHandle? _handle;

    public PageMap()
    {
        try { _handle = File.OpenHandle("/proc/self/pagemap"); }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException) { _handle = null; }
        if (_handle is not null)
            Fd = (int)_handle.DangerousGetHandle();
    }

    /// <summary>The descriptor, or -1 where the host has no such file.</summary>
    internal int Fd { get; } = -1;

    /// <summary>Whether the host tells.</summary>
    public bool IsAvailable => Fd >= 0;

    /// <summary>Reads one word for each page from <paramref name="address"/> on. False where the host does not tell.</summary>
    public unsafe bool Read(ulong address, Span<ulong> words)
    {
        if (Fd < 0)
            return false;
        nint bytes = words.Length * sizeof(ulong);
        fixed (ulong* p = words)
            return Libc.pread(Fd, p, (nuint)bytes, (long)(address / 4096 * sizeof(ulong))) == bytes;
    }
}
