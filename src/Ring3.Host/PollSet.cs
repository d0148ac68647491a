using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>Descriptors that one thread waits for, chosen anew each time.</summary>
/// <remarks>SAFETY: the array is pinned for the call, which is told how many entries are in use.</remarks>
public sealed class PollSet
{
    private const short In = 1, Out = 4, Error = 8, HangUp = 16, Invalid = 32;
    // struct pollfd { int fd; short events; short revents; }
    private long[] _entries = new long[16];
    private int _count;

    public void Clear() => _count = 0;

    /// <summary>Adds a descriptor that is waited for until it can be read or written, or has ended; where it is in the set.</summary>
    public int Add(int fd, bool read, bool write)
    {
        if (_count == _entries.Length)
            Array.Resize(ref _entries, 2 * _count);
        _entries[_count] = (uint)fd | (long)(ushort)((read ? In : 0) | (write ? Out : 0)) << 32;
        return _count++;
    }

    /// <summary>Waits until something is there, or for so long; negative: for ever. 0, or -errno.</summary>
    public unsafe int Wait(int timeoutMs)
    {
        fixed (long* p = _entries)
        {
            while (Libc.poll(p, (nuint)_count, timeoutMs) < 0)
            {
                if (Marshal.GetLastPInvokeError() is var error and not Libc.EINTR)
                    return -error;
            }
        }
        return 0;
    }

    /// <summary>A read would not wait: there are bytes, or the end.</summary>
    public bool IsReadable(int at) => (_entries[at] >> 48 & (In | Error | HangUp | Invalid)) != 0;

    /// <summary>A write would not wait.</summary>
    public bool IsWritable(int at) => (_entries[at] >> 48 & (Out | Error | HangUp | Invalid)) != 0;
}
