namespace Ring3.Vmm.Boot;

/// <summary>LZMA2 chunks and the LZMA range decoder behind them. Reads past the input give zeros and are reported at the end of the chunk. SPEC: 7-Zip's LZMA specification.</summary>
internal sealed class Lzma2Decoder
{
    private const int States = 12, PosStatesMax = 16, LenToPosStates = 4, EndPosModel = 14, FullDistances = 1 << (EndPosModel / 2), AlignBits = 4, MatchMin = 2;
    private const ushort Half = 1 << 10;

    private readonly ushort[] _isMatch = new ushort[States * PosStatesMax], _isRep = new ushort[States], _isRep0 = new ushort[States], _isRep1 = new ushort[States], _isRep2 = new ushort[States];
    private readonly ushort[] _isRep0Long = new ushort[States * PosStatesMax], _posSlot = new ushort[LenToPosStates * 64], _posSpecial = new ushort[FullDistances], _align = new ushort[1 << AlignBits];
    private readonly LengthModel _length = new(), _repLength = new();
    private ushort[] _literal = [];
    private int _lc, _lp, _pb;
    private uint _state, _rep0, _rep1, _rep2, _rep3;
    private uint _range, _code;
    private int _in, _inEnd;

    private sealed class LengthModel
    {
        public readonly ushort[] Choice = new ushort[2], Low = new ushort[PosStatesMax * 8], Mid = new ushort[PosStatesMax * 8], High = new ushort[256];

        public void Reset()
        {
            Choice.AsSpan().Fill(Half);
            Low.AsSpan().Fill(Half);
            Mid.AsSpan().Fill(Half);
            High.AsSpan().Fill(Half);
        }
    }

    /// <summary>Unpacks chunks until the end marker. <paramref name="at"/> and <paramref name="done"/> advance; false when malformed.</summary>
    public bool Unpack(ReadOnlySpan<byte> input, ref int at, Span<byte> output, ref int done)
    {
        int dictionary = done;
        bool properties = false;
        while (at < input.Length)
        {
            byte control = input[at++];
            if (control == 0)
                return true;
            if (input.Length - at < 5)
                return false;
            int high = control >= 0x80 ? (control & 0x1f) << 16 : 0;
            int size = (high | input[at] << 8 | input[at + 1]) + 1;
            at += 2;
            if (size > output.Length - done)
                return false;
            if (control < 0x80)
            {
                if (control > 2 || size > input.Length - at)
                    return false;
                if (control == 1)
                    dictionary = done;
                input.Slice(at, size).CopyTo(output[done..]);
                at += size;
                done += size;
                continue;
            }
            int packed = (input[at] << 8 | input[at + 1]) + 1;
            at += 2;
            int reset = control >> 5 & 3;
            if (reset == 3)
                dictionary = done;
            if (reset >= 2)
            {
                if (!SetProperties(input[at++]))
                    return false;
                properties = true;
            }
            if (reset >= 1 && properties)
                ResetState();
            if (!properties || packed < 5 || packed > input.Length - at)
                return false;
            if (!Chunk(input, at, packed, output, dictionary, done, size))
                return false;
            at += packed;
            done += size;
        }
        return false;
    }

    private bool SetProperties(int value)
    {
        if (value >= 9 * 5 * 5)
            return false;
        (_lc, _lp, _pb) = (value % 9, value / 9 % 5, value / 45);
        if (_lc + _lp > 4)
            return false;
        _literal = new ushort[0x300 << (_lc + _lp)];
        return true;
    }

    private void ResetState()
    {
        foreach (ushort[] table in (ushort[][])[_isMatch, _isRep, _isRep0, _isRep1, _isRep2, _isRep0Long, _posSlot, _posSpecial, _align, _literal])
            table.AsSpan().Fill(Half);
        _length.Reset();
        _repLength.Reset();
        (_state, _rep0, _rep1, _rep2, _rep3) = (0, 0, 0, 0, 0);
    }

    private bool Chunk(ReadOnlySpan<byte> input, int at, int packed, Span<byte> output, int dictionary, int done, int size)
    {
        _in = at + 5;
        _inEnd = at + packed;
        _range = uint.MaxValue;
        _code = (uint)(input[at + 1] << 24 | input[at + 2] << 16 | input[at + 3] << 8 | input[at + 4]);
        int end = done + size;
        while (done < end)
        {
            uint posState = (uint)(done - dictionary) & (1u << _pb) - 1;
            if (Bit(input, ref _isMatch[(_state << 4) + posState]) == 0)
            {
                Literal(input, output, dictionary, done);
                done++;
                continue;
            }
            int length;
            if (Bit(input, ref _isRep[_state]) == 0)
            {
                (_rep3, _rep2, _rep1) = (_rep2, _rep1, _rep0);
                length = Length(input, _length, posState);
                _state = _state < 7 ? 7u : 10;
                _rep0 = Distance(input, length);
            }
            else if (Bit(input, ref _isRep0[_state]) == 0)
            {
                if (Bit(input, ref _isRep0Long[(_state << 4) + posState]) == 0)
                {
                    _state = _state < 7 ? 9u : 11;
                    if (_rep0 >= (uint)(done - dictionary))
                        return false;
                    output[done] = output[done - (int)_rep0 - 1];
                    done++;
                    continue;
                }
                length = Length(input, _repLength, posState);
                _state = _state < 7 ? 8u : 11;
            }
            else
            {
                uint distance;
                if (Bit(input, ref _isRep1[_state]) == 0)
                    distance = _rep1;
                else
                {
                    if (Bit(input, ref _isRep2[_state]) == 0)
                        distance = _rep2;
                    else
                        (distance, _rep3) = (_rep3, _rep2);
                    _rep2 = _rep1;
                }
                _rep1 = _rep0;
                _rep0 = distance;
                length = Length(input, _repLength, posState);
                _state = _state < 7 ? 8u : 11;
            }
            if (_rep0 >= (uint)(done - dictionary) || length > end - done)
                return false;
            for (int from = done - (int)_rep0 - 1; length > 0; length--)
                output[done++] = output[from++];
        }
        return _in <= _inEnd;
    }

    private void Literal(ReadOnlySpan<byte> input, Span<byte> output, int dictionary, int done)
    {
        int previous = done > dictionary ? output[done - 1] : 0;
        int table = 0x300 * (((done - dictionary & (1 << _lp) - 1) << _lc) + (previous >> (8 - _lc)));
        uint symbol = 1;
        if (_state >= 7 && _rep0 < (uint)(done - dictionary))
        {
            uint match = output[done - (int)_rep0 - 1];
            do
            {
                uint matchBit = match >> 7 & 1;
                match <<= 1;
                uint bit = Bit(input, ref _literal[table + (int)((1 + matchBit << 8) + symbol)]);
                symbol = symbol << 1 | bit;
                if (matchBit != bit)
                    break;
            }
            while (symbol < 0x100);
        }
        while (symbol < 0x100)
            symbol = symbol << 1 | Bit(input, ref _literal[table + (int)symbol]);
        output[done] = (byte)symbol;
        _state = _state < 4 ? 0 : _state < 10 ? _state - 3 : _state - 6;
    }

    private int Length(ReadOnlySpan<byte> input, LengthModel m, uint posState)
    {
        if (Bit(input, ref m.Choice[0]) == 0)
            return MatchMin + (int)Tree(input, m.Low, (int)posState * 8, 3);
        if (Bit(input, ref m.Choice[1]) == 0)
            return MatchMin + 8 + (int)Tree(input, m.Mid, (int)posState * 8, 3);
        return MatchMin + 16 + (int)Tree(input, m.High, 0, 8);
    }

    private uint Distance(ReadOnlySpan<byte> input, int length)
    {
        int lengthState = Math.Min(length - MatchMin, LenToPosStates - 1);
        uint slot = Tree(input, _posSlot, lengthState * 64, 6);
        if (slot < 4)
            return slot;
        int bits = (int)(slot >> 1) - 1;
        uint distance = (2 | slot & 1) << bits;
        if (slot < EndPosModel)
            return distance + ReverseTree(input, _posSpecial, (int)(distance - slot), bits);
        uint direct = 0;
        for (int i = bits - AlignBits; i > 0; i--)
        {
            Normalize(input);
            _range >>= 1;
            uint bit = _code >= _range ? 1u : 0;
            if (bit != 0)
                _code -= _range;
            direct = direct << 1 | bit;
        }
        return distance + (direct << AlignBits) + ReverseTree(input, _align, 0, AlignBits);
    }

    private uint Tree(ReadOnlySpan<byte> input, ushort[] table, int at, int bits)
    {
        uint m = 1;
        for (int i = 0; i < bits; i++)
            m = m << 1 | Bit(input, ref table[at + (int)m]);
        return m - (1u << bits);
    }

    /// <summary>Special distances share one table; index 0 of each tree is not used, so trees overlap by one.</summary>
    private uint ReverseTree(ReadOnlySpan<byte> input, ushort[] table, int at, int bits)
    {
        uint m = 1, symbol = 0;
        for (int i = 0; i < bits; i++)
        {
            uint bit = Bit(input, ref table[at + (int)m]);
            m = m << 1 | bit;
            symbol |= bit << i;
        }
        return symbol;
    }

    private uint Bit(ReadOnlySpan<byte> input, ref ushort probability)
    {
        Normalize(input);
        uint bound = (_range >> 11) * probability;
        if (_code < bound)
        {
            _range = bound;
            probability += (ushort)((1 << 11) - probability >> 5);
            return 0;
        }
        _range -= bound;
        _code -= bound;
        probability -= (ushort)(probability >> 5);
        return 1;
    }

    private void Normalize(ReadOnlySpan<byte> input)
    {
        if (_range >= 1 << 24)
            return;
        _range <<= 8;
        _code = _code << 8 | (_in < input.Length ? input[_in] : 0u);
        _in++;
    }
}
