using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>
/// Moves a serial port's output to a file descriptor on a thread of its own, so that the vCPU does not pay a system call per byte. The buffer is bounded: when
/// the reader of the descriptor is slow, the vCPU waits. When the reader is gone or the device is full, output is dropped; so is what does not fit any more
/// once the machine has ended, because a vCPU that waits for a reader who never reads again could not be stopped.
/// </summary>
public sealed class OutputPump : ISerialSink, IDisposable
{
    private const int Limit = 1 << 20;
    private readonly int _fd;
    private readonly RankedLock _lock = new(LockRank.OutputPump);
    private readonly AutoResetEvent _filled = new(false), _drained = new(false);
    private readonly Thread _thread;
    private byte[] _buffer = new byte[4096], _spare = new byte[4096];
    private int _count;
    private bool _writing;
    private volatile bool _stop, _broken;
    private readonly WaitHandle[] _room;

    /// <summary>Called once, on the pump's thread, when output cannot be written. Set before the first byte is sent.</summary>
    public Action? Failed { get; set; }

    /// <summary>Why output could not be written; null while all of it could. Final after <see cref="Dispose"/>.</summary>
    public string? Failure { get; private set; }

    /// <param name="fd">Descriptor to write to; stays open.</param>
    /// <param name="ended">When it is set nobody waits for room any more.</param>
    public OutputPump(int fd, string name, WaitHandle ended)
    {
        _fd = fd;
        _room = [_drained, ended];
        _thread = new Thread(Run) { IsBackground = true, Name = name };
        _thread.Start();
    }

    public void Transmit(byte value) => Transmit([value]);

    /// <summary>As <see cref="Transmit(byte)"/>, for many.</summary>
    public void Transmit(ReadOnlySpan<byte> data)
    {
        while (!data.IsEmpty)
        {
            using (_lock.Enter())
            {
                if (_broken || _stop)
                    return;
                int n = Math.Min(data.Length, Limit - _count);
                if (n > _buffer.Length - _count)
                    Array.Resize(ref _buffer, Math.Max(_buffer.Length * 2, _count + n));
                data[..n].CopyTo(_buffer.AsSpan(_count));
                if (_count == 0 && n != 0)
                    _filled.Set();
                _count += n;
                data = data[n..];
            }
            if (!data.IsEmpty && WaitHandle.WaitAny(_room, 100) == 1)
                return;
        }
    }

    /// <summary>Waits until everything is written, or cannot be; not any longer than the machine runs.</summary>
    public void WaitWritten()
    {
        while (true)
        {
            using (_lock.Enter())
            {
                if (_count == 0 && !_writing || _broken || _stop)
                    return;
            }
            if (WaitHandle.WaitAny(_room, 100) == 1)
                return;
        }
    }

    private void Run()
    {
        while (true)
        {
            byte[] data;
            int count;
            using (_lock.Enter())
            {
                data = _buffer;
                count = _count;
                _buffer = _spare;
                _spare = data;
                _count = 0;
                _writing = count != 0;
            }
            if (count == 0)
            {
                if (_stop)
                    return;
                _filled.WaitOne();
                continue;
            }
            if (!_broken && !Terminal.WriteAll(_fd, data.AsSpan(0, count), out string why))
            {
                Failure = why;
                _broken = true;
                Failed?.Invoke();
            }
            _drained.Set();
        }
    }

    /// <summary>Writes what is left (waiting at most two seconds for a stuck reader) and stops.</summary>
    public void Dispose()
    {
        if (_stop)
            return;
        _stop = true;
        _filled.Set();
        _thread.Join(2000);
    }
}

/// <summary>Keeps the last bytes of a port's output, for messages about a boot that failed; optionally passes them on.</summary>
public sealed class TailSink(ISerialSink? next) : ISerialSink
{
    private const int Keep = 1 << 15;
    private readonly byte[] _ring = new byte[Keep];
    private readonly RankedLock _lock = new(LockRank.TailSink);
    private long _total;

    public void Transmit(byte value)
    {
        using (_lock.Enter())
            _ring[_total++ % Keep] = value;
        next?.Transmit(value);
    }

    /// <summary>The last complete lines of text.</summary>
    public IReadOnlyList<string> LastLines(int count)
    {
        using (_lock.Enter())
        {
            int n = (int)Math.Min(_total, Keep);
            var bytes = new byte[n];
            for (int i = 0; i < n; i++)
                bytes[i] = _ring[(_total - n + i) % Keep];
            string[] lines = System.Text.Encoding.UTF8.GetString(bytes).Split('\n', StringSplitOptions.RemoveEmptyEntries);
            return [.. lines.Select(l => l.TrimEnd('\r')).TakeLast(count)];
        }
    }
}

/// <summary>The status port of the exec channel: a line "exit N" says that the command has ended with that status, "ready" that the guest waits for one
/// ("ready clones": and that a clone can have random numbers of its own).</summary>
public sealed class ExecStatusSink(Action<int> ended, Action<bool>? ready = null) : ISerialSink
{
    private const int LineLimit = 64;
    private readonly System.Text.StringBuilder _line = new();

    public void Transmit(byte value)
    {
        if (value != '\n')
        {
            if (_line.Length < LineLimit)
                _line.Append((char)value);
            return;
        }
        string[] words = _line.ToString().Trim().Split(' ');
        _line.Clear();
        if (words is ["exit", var number] && int.TryParse(number, out int status))
            ended(status & 0xff);
        else if (words is ["ready", ..])
            ready?.Invoke(words is [_, "clones"]);
    }
}

/// <summary>Passes output on, and says once when a text has been in it.</summary>
public sealed class TextWatch(ISerialSink next, string text, Action found) : ISerialSink
{
    private readonly byte[] _text = System.Text.Encoding.UTF8.GetBytes(text), _last = new byte[System.Text.Encoding.UTF8.GetByteCount(text)];
    private bool _found;

    public void Transmit(byte value)
    {
        next.Transmit(value);
        if (_found)
            return;
        _last.AsSpan(1).CopyTo(_last);
        _last[^1] = value;
        if (!_last.AsSpan().SequenceEqual(_text))
            return;
        _found = true;
        found();
    }
}

/// <summary>Discards output.</summary>
public sealed class NullSink : ISerialSink
{
    public void Transmit(byte value) { }
}
