using System.Numerics;
using Ring3.Abi;

namespace Ring3.Irqchip;

/// <summary>One 8259A. The state is kept in KVM's layout. SPEC: 8259A data sheet. Not thread-safe.</summary>
internal sealed class PicChip(bool isMaster)
{
    private const int None = 8;
    private kvm_pic_state _s = new() { elcr_mask = isMaster ? (byte)0xf8 : (byte)0xde };

    internal bool IsMaster => isMaster;
    internal ref readonly kvm_pic_state State => ref _s;
    internal int VectorBase => _s.irq_base;
    internal byte Mask => _s.imr;

    internal byte Elcr { get => _s.elcr; set => _s.elcr = (byte)(value & _s.elcr_mask); }

    internal void PowerOn() => _s = new kvm_pic_state { elcr_mask = _s.elcr_mask };

    internal void Load(in kvm_pic_state state) => _s = state;

    /// <summary>Sets the level of an input. 1: new request or lowered; 0: already requested; -1: masked.</summary>
    internal int SetLine(int irq, bool level)
    {
        byte bit = (byte)(1 << irq);
        bool isLevel = (_s.elcr & bit) != 0, rising = level && (_s.last_irr & bit) == 0;
        int result = 1;
        if (level && (isLevel || rising))
        {
            result = (_s.irr & bit) == 0 ? 1 : 0;
            _s.irr |= bit;
        }
        else if (!level && isLevel)
        {
            _s.irr &= (byte)~bit;
        }
        _s.last_irr = level ? (byte)(_s.last_irr | bit) : (byte)(_s.last_irr & ~bit);
        return (_s.imr & bit) != 0 ? -1 : result;
    }

    /// <summary>Rank of the best input in a set: 0 is the highest priority, 8 is none.</summary>
    private int BestRank(int set) => set == 0 ? None : BitOperations.TrailingZeroCount((byte)(set >> _s.priority_add | set << (8 - _s.priority_add)));

    /// <summary>The input that may interrupt now, or -1: the best unmasked request that outranks what is in service.</summary>
    internal int HighestRequest()
    {
        int rank = BestRank(_s.irr & ~_s.imr & 0xff);
        if (rank == None)
            return -1;
        int inService = _s.isr;
        if (_s.special_mask != 0)
            inService &= ~_s.imr;
        // Special fully nested mode: a further request of the slave passes although the cascade input is in service.
        if (_s.special_fully_nested_mode != 0 && isMaster)
            inService &= ~(1 << 2);
        return rank < BestRank(inService & 0xff) ? rank + _s.priority_add & 7 : -1;
    }

    /// <summary>Acknowledge cycle for an input. True if automatic EOI ended it at once.</summary>
    internal bool Acknowledge(int irq)
    {
        byte bit = (byte)(1 << irq);
        if ((_s.elcr & bit) == 0)
            _s.irr &= (byte)~bit;
        if (_s.auto_eoi == 0)
        {
            _s.isr |= bit;
            return false;
        }
        if (_s.rotate_on_auto_eoi != 0)
            _s.priority_add = (byte)(irq + 1 & 7);
        return true;
    }

    /// <summary>Consumes a pending poll command.</summary>
    internal bool TakePoll()
    {
        bool poll = _s.poll != 0;
        _s.poll = 0;
        return poll;
    }

    internal byte ReadStatus() => _s.read_reg_select != 0 ? _s.isr : _s.irr;

    /// <summary>Write with A0 = 0: ICW1, OCW2 or OCW3. Returns the inputs that were ended.</summary>
    internal uint WriteCommand(byte value)
    {
        if ((value & 0x10) != 0)
            return Initialize(value);
        if ((value & 8) == 0)
            return WriteOcw2(value);
        if ((value & 4) != 0)
            _s.poll = 1;
        if ((value & 2) != 0)
            _s.read_reg_select = (byte)(value & 1);
        if ((value & 0x40) != 0)
            _s.special_mask = (byte)(value >> 5 & 1);
        return 0;
    }

    private uint Initialize(byte icw1)
    {
        // Edge requests are forgotten; who waits for their acknowledgement must not wait for ever.
        uint forgotten = (uint)(_s.irr & ~_s.elcr) | _s.isr;
        _s.init4 = (byte)(icw1 & 1);
        _s.last_irr = 0;
        _s.irr &= _s.elcr;
        _s.isr = 0;
        _s.imr = 0;
        _s.priority_add = 0;
        _s.special_mask = 0;
        _s.read_reg_select = 0;
        _s.poll = 0;
        _s.rotate_on_auto_eoi = 0;
        if (_s.init4 == 0)
        {
            _s.special_fully_nested_mode = 0;
            _s.auto_eoi = 0;
        }
        _s.init_state = 1;
        return forgotten;
    }

    private uint WriteOcw2(byte value)
    {
        int irq = value & 7;
        switch (value >> 5)
        {
            case 0 or 4:
                _s.rotate_on_auto_eoi = (byte)(value >> 7);
                return 0;
            case 1 or 5:
                int rank = BestRank(_s.isr);
                return rank == None ? 0 : EndOfInterrupt(rank + _s.priority_add & 7, value >> 5 == 5);
            case 3 or 7:
                return EndOfInterrupt(irq, value >> 5 == 7);
            case 6:
                _s.priority_add = (byte)(irq + 1 & 7);
                return 0;
            default:
                return 0;
        }
    }

    private uint EndOfInterrupt(int irq, bool rotate)
    {
        if (rotate)
            _s.priority_add = (byte)(irq + 1 & 7);
        uint ended = _s.isr & 1u << irq;
        _s.isr &= (byte)~(1 << irq);
        return ended;
    }

    /// <summary>Write with A0 = 1: the mask, or ICW2-4 during initialization. Returns the inputs whose mask changed.</summary>
    internal uint WriteData(byte value)
    {
        uint changed = 0;
        switch (_s.init_state)
        {
            case 1:
                _s.irq_base = (byte)(value & 0xf8);
                _s.init_state = 2;
                break;
            case 2:
                _s.init_state = (byte)(_s.init4 != 0 ? 3 : 0);
                break;
            case 3:
                _s.special_fully_nested_mode = (byte)(value >> 4 & 1);
                _s.auto_eoi = (byte)(value >> 1 & 1);
                _s.init_state = 0;
                break;
            default:
                changed = (uint)(_s.imr ^ value);
                _s.imr = value;
                break;
        }
        return changed;
    }
}
