using System.Globalization;
using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>The process itself.</summary>
/// <remarks>SAFETY: the vector and its strings live until execv has copied them or failed.</remarks>
public static class HostProcess
{
    private const int SIGPIPE = 13;
    /// <summary>USER_HZ, the unit of times in /proc.</summary>
    private const long TicksPerSecond = 100;

    /// <summary>Milliseconds since the process was started, in steps of 10; 0 where /proc does not tell. A program that has become another keeps its age. SPEC:
    /// proc(5), /proc/pid/stat, starttime.</summary>
    public static long AgeMs()
    {
        const int StartTimeBehindName = 20;
        try
        {
            string stat = File.ReadAllText("/proc/self/stat");
            // The name may have any character; what follows its last parenthesis has none of its own.
            string[] fields = stat[(stat.LastIndexOf(')') + 1)..].Split(' ', StringSplitOptions.RemoveEmptyEntries);
            return HostClock.BootNs() / 1_000_000 - long.Parse(fields[StartTimeBehindName - 1], CultureInfo.InvariantCulture) * 1000 / TicksPerSecond;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return 0;
        }
    }

    /// <summary>Becomes another program, with SIGPIPE as programs expect it, which the runtime ignores. Returns only to say why not.</summary>
    public static unsafe string Replace(string program, ReadOnlySpan<string> arguments)
    {
        nint* vector = (nint*)NativeMemory.AllocZeroed((nuint)(arguments.Length + 2), (nuint)sizeof(nint));
        nint path = Marshal.StringToCoTaskMemUTF8(program);
        vector[0] = path;
        for (int i = 0; i < arguments.Length; i++)
            vector[i + 1] = Marshal.StringToCoTaskMemUTF8(arguments[i]);
        nint before = Libc.signal(SIGPIPE, 0);
        _ = Libc.execv((byte*)path, (byte**)vector);
        string why = Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError());
        _ = Libc.signal(SIGPIPE, before);
        for (nint* p = vector; *p != 0; p++)
            Marshal.FreeCoTaskMem(*p);
        NativeMemory.Free(vector);
        return why;
    }
}
