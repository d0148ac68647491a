using System.Text;
using Ring3.Host;
using Ring3.Vmm;

namespace Ring3.Machines;

/// <summary>The end of what a console has said, and those who wait for it to say something.</summary>
internal sealed class ConsoleText : ISerialSink
{
    /// <summary>What is kept at least; twice as much at most.</summary>
    internal const int KeptBytes = 64 << 10;

    private sealed class Waiter(byte[] text)
    {
        public byte[] Text => text;
        public bool Found { get; set; }
        public ManualResetEventSlim Woken { get; } = new(false);
    }

    private readonly RankedLock _lock = new(LockRank.ConsoleText);
    private readonly byte[] _said = new byte[2 * KeptBytes];
    private readonly List<Waiter> _waiters = [];
    private int _length;
    private bool _over;

    /// <summary>What is kept. Half a character at its begin, and what is no UTF-8, is a replacement character.</summary>
    public string Text
    {
        get
        {
            using (_lock.Enter())
                return Encoding.UTF8.GetString(_said, 0, _length);
        }
    }

    public void Transmit(byte value)
    {
        using (_lock.Enter())
        {
            if (_length == _said.Length)
            {
                _said.AsSpan(KeptBytes).CopyTo(_said);
                _length = KeptBytes;
            }
            _said[_length++] = value;
            foreach (Waiter waiter in _waiters)
            {
                if (!waiter.Found && _said.AsSpan(0, _length).EndsWith(waiter.Text))
                {
                    waiter.Found = true;
                    waiter.Woken.Set();
                }
            }
        }
    }

    /// <summary>It says no more.</summary>
    public void End()
    {
        using (_lock.Enter())
        {
            _over = true;
            foreach (Waiter waiter in _waiters)
                waiter.Woken.Set();
        }
    }

    /// <summary>Waits until it says, or has said, a text. False: the time is over, or it says no more.</summary>
    public bool WaitFor(string text, TimeSpan timeout)
    {
        var waiter = new Waiter(Encoding.UTF8.GetBytes(text));
        using (waiter.Woken)
        {
            using (_lock.Enter())
            {
                if (_said.AsSpan(0, _length).IndexOf(waiter.Text) >= 0)
                    return true;
                if (_over)
                    return false;
                _waiters.Add(waiter);
            }
            _ = waiter.Woken.Wait(timeout);
            using (_lock.Enter())
            {
                _waiters.Remove(waiter);
                return waiter.Found;
            }
        }
    }
}
