namespace Ring3.Host;

/// <summary>Standard input and output as a terminal: raw mode with its undo, window size, and reads that can be cancelled.</summary>
public static class Terminal
{
    /// <summary>Room for struct termios of glibc (60 bytes) and of musl.</summary>
    private const int TermiosBytes = 128;
    private const nuint TIOCGWINSZ = 0x5413;
    private const int TCSAFLUSH = 2, TCSADRAIN = 1;
    private const short POLLIN = 1;

    /// <summary>Attributes of a terminal, to be given back to <see cref="Restore"/>.</summary>
    public sealed class Attributes
    {
        internal readonly byte[] Bytes = new byte[TermiosBytes];
    }

    public static bool IsTerminal(int fd) => Libc.isatty(fd) == 1;

    /// <summary>Makes the terminal raw (no echo, no signals from keys, no output processing); null when <paramref name="fd"/> is not a terminal.</summary>
    public static unsafe Attributes? MakeRaw(int fd)
    {
        // SAFETY: both buffers are larger than any libc's struct termios.
        var saved = new Attributes();
        byte* raw = stackalloc byte[TermiosBytes];
        fixed (byte* s = saved.Bytes)
        {
            if (Libc.tcgetattr(fd, s) != 0)
                return null;
            Buffer.MemoryCopy(s, raw, TermiosBytes, TermiosBytes);
        }
        Libc.cfmakeraw(raw);
        return Libc.tcsetattr(fd, TCSAFLUSH, raw) == 0 ? saved : null;
    }

    public static unsafe void Restore(int fd, Attributes attributes)
    {
        // SAFETY: the bytes came from tcgetattr.
        fixed (byte* s = attributes.Bytes)
            _ = Libc.tcsetattr(fd, TCSADRAIN, s);
    }

    /// <summary>Rows and columns; (0, 0) when unknown.</summary>
    public static unsafe (int Rows, int Columns) Size(int fd)
    {
        ushort* size = stackalloc ushort[4];
        return Libc.ioctl(fd, TIOCGWINSZ, size) == 0 ? (size[0], size[1]) : (0, 0);
    }

    /// <summary>Reads what is there, waiting at most <paramref name="timeoutMs"/>. Returns bytes read, 0 at end of file, -1 when nothing came in time or the
    /// read was interrupted.</summary>
    public static unsafe int Read(int fd, Span<byte> buffer, int timeoutMs)
    {
        // SAFETY: one struct pollfd { int fd; short events; short revents; } on the stack; the span is pinned for the read.
        long entry = (uint)fd | (long)POLLIN << 32;
        if (Libc.poll(&entry, 1, timeoutMs) <= 0)
            return -1;
        fixed (byte* b = buffer)
        {
            nint n = Libc.read(fd, b, (nuint)buffer.Length);
            return n >= 0 ? (int)n : System.Runtime.InteropServices.Marshal.GetLastPInvokeError() is Libc.EINTR or Libc.EAGAIN ? -1 : 0;
        }
    }

    /// <summary>Writes everything; false, and the system's reason in <paramref name="why"/>, when the reader is gone or the device is full.</summary>
    public static unsafe bool WriteAll(int fd, ReadOnlySpan<byte> data, out string why)
    {
        why = "";
        // SAFETY: the span is pinned for the writes.
        fixed (byte* b = data)
        {
            for (int done = 0; done < data.Length;)
            {
                nint n = Libc.write(fd, b + done, (nuint)(data.Length - done));
                if (n > 0)
                    done += (int)n;
                else if (n == 0 || System.Runtime.InteropServices.Marshal.GetLastPInvokeError() is not (Libc.EINTR or Libc.EAGAIN))
                {
                    why = System.Runtime.InteropServices.Marshal.GetLastPInvokeErrorMessage();
                    return false;
                }
                else
                    Thread.Yield();
            }
        }
        return true;
    }
}
