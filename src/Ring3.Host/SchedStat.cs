using System.Buffers.Text;
using Microsoft.Win32.SafeHandles;

namespace Ring3.Host;

/// <summary>How long a thread was runnable while the host ran something else (/proc, schedstat).</summary>
public sealed class SchedStat : IDisposable
{
    private readonly SafeFileHandle _file;

    private SchedStat(SafeFileHandle file) => _file = file;

    /// <summary>Null where the kernel does not say.</summary>
    public static SchedStat? OpenForCurrentThread()
    {
        try { return new(File.OpenHandle("/proc/thread-self/schedstat")); }
        catch (IOException) { return null; }
        catch (UnauthorizedAccessException) { return null; }
    }

    /// <summary>Nanoseconds waited on the run queue since the thread started; 0 when it cannot be read. Allocates nothing.</summary>
    public long RunDelayNs
    {
        get
        {
            Span<byte> text = stackalloc byte[96];
            int n;
            try { n = RandomAccess.Read(_file, text, 0); }
            catch (IOException) { return 0; }
            ReadOnlySpan<byte> rest = text[..n];
            int space = rest.IndexOf((byte)' ');
            return space >= 0 && Utf8Parser.TryParse(rest[(space + 1)..], out long delay, out _) ? delay : 0;
        }
    }

    public void Dispose() => _file.Dispose();
}
