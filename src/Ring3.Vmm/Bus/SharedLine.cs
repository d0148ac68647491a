using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>Several devices on one interrupt input: the line is high while any of them drives it.</summary>
public sealed class SharedLine(IInterruptLine line)
{
    private readonly RankedLock _lock = new(LockRank.SharedLine);
    private uint _inputs, _high;

    /// <summary>A new input of the line; at most 32.</summary>
    public IInterruptLine AddInput()
    {
        using (_lock.Enter())
        {
            uint bit = _inputs + 1 & ~_inputs;
            _inputs |= bit;
            return new Input(this, bit);
        }
    }

    private void Set(uint bit, bool level)
    {
        using (_lock.Enter())
        {
            bool before = _high != 0;
            _high = level ? _high | bit : _high & ~bit;
            if (before != (_high != 0))
                line.Set(_high != 0);
        }
    }

    private sealed class Input(SharedLine owner, uint bit) : IInterruptLine
    {
        public void Set(bool level) => owner.Set(bit, level);
    }
}
