namespace Ring3.Vmm;

/// <summary>
/// INT 10h's text screen on a serial terminal. The cursor follows the guest's; the terminal is told (ANSI) only when something is written elsewhere than behind
/// the last character, so that plain output stays plain. Colours are dropped.
/// </summary>
/// <param name="transmit">Bytes for the terminal.</param>
internal sealed class BiosScreen(Action<byte> transmit)
{
    public const int Columns = 80, Rows = 25;
    private (int Row, int Column) _cursor, _terminal;
    // A character written without moving the cursor (AH = 9); many programs write it again by teletype at once, and the terminal shall not see it twice.
    private (byte Value, int Count) _held;

    /// <summary>Cursor position, 0-based.</summary>
    public (int Row, int Column) Cursor
    {
        get => _cursor;
        set
        {
            Release();
            _cursor = (Math.Min(value.Row, Rows - 1), Math.Min(value.Column, Columns - 1));
        }
    }

    /// <summary>AH = 0Eh: writes and moves on.</summary>
    public void Teletype(byte value)
    {
        if (value < ' ')
            Release();
        _held = default;
        Place();
        transmit(value);
        Advance(ref _terminal, value);
        _cursor = _terminal;
    }

    /// <summary>AH = 9 and 0Ah: writes <paramref name="count"/> times from the cursor on, which stays.</summary>
    public void WriteInPlace(byte value, int count)
    {
        Release();
        _held = (value, Math.Min(count, Columns - _cursor.Column));
    }

    /// <summary>Blank screen, cursor at the top.</summary>
    public void Clear()
    {
        _held = default;
        foreach (byte b in "\e[2J\e[H"u8)
            transmit(b);
        _cursor = _terminal = default;
    }

    /// <summary>Writes what was held back.</summary>
    private void Release()
    {
        (byte value, int count) = _held;
        _held = default;
        if (count == 0)
            return;
        Place();
        for (int i = 0; i < count; i++)
        {
            transmit(value < ' ' ? (byte)' ' : value);
            Advance(ref _terminal, (byte)' ');
        }
    }

    private void Place()
    {
        if (_cursor == _terminal)
            return;
        foreach (char c in FormattableString.Invariant($"\e[{_cursor.Row + 1};{_cursor.Column + 1}H"))
            transmit((byte)c);
        _terminal = _cursor;
    }

    private static void Advance(ref (int Row, int Column) at, byte value)
    {
        at = value switch
        {
            (byte)'\r' => (at.Row, 0),
            (byte)'\n' => (at.Row + 1, at.Column),
            (byte)'\b' => (at.Row, Math.Max(at.Column - 1, 0)),
            < (byte)' ' => at,
            _ when at.Column + 1 == Columns => (at.Row + 1, 0),
            _ => (at.Row, at.Column + 1),
        };
        at.Row = Math.Min(at.Row, Rows - 1);
    }
}
