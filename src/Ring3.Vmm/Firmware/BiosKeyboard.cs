namespace Ring3.Vmm;

/// <summary>INT 16h's keys from a serial terminal: characters become the codes of a US keyboard, escape sequences of cursor keys those of the keys. SPEC: Ralf
/// Brown's Interrupt List, INT 16h.</summary>
/// <param name="peek">Byte of input that waits at a place (0 = the next), or -1.</param>
/// <param name="take">Removes bytes of input.</param>
internal sealed class BiosKeyboard(Func<int, int> peek, Action<int> take)
{
    private const byte Escape = 0x1b;

    // Characters by scan code from the first: without and with shift.
    private static readonly (int First, string Plain, string Shifted)[] s_rows =
        [(0x02, "1234567890-=", "!@#$%^&*()_+"), (0x10, "qwertyuiop[]", "QWERTYUIOP{}"), (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
        (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"), (0x39, " ", " ")];

    /// <summary>The next key as AX of INT 16h (scan code, character), or -1 when none waits.</summary>
    /// <param name="remove">Takes it out of the queue.</param>
    public int Next(bool remove)
    {
        int first = peek(0);
        if (first < 0)
            return -1;
        (int key, int length) = first == Escape && CursorKey() is var code and not 0 ? (code, 3) : (Encode((byte)first), 1);
        if (remove)
            take(length);
        return key;
    }

    /// <summary>ESC [ A and its like.</summary>
    private int CursorKey() => (peek(1), peek(2)) switch
    {
        ('[' or 'O', 'A') => 0x4800,
        ('[' or 'O', 'B') => 0x5000,
        ('[' or 'O', 'C') => 0x4d00,
        ('[' or 'O', 'D') => 0x4b00,
        ('[' or 'O', 'H') => 0x4700,
        ('[' or 'O', 'F') => 0x4f00,
        _ => 0,
    };

    private static int Encode(byte c)
    {
        switch (c)
        {
            case Escape: return 0x011b;
            case 0x7f or 8: return 0x0e08;
            case (byte)'\t': return 0x0f09;
            case (byte)'\r' or (byte)'\n': return 0x1c0d;
        }
        char letter = c is >= 1 and <= 26 ? (char)(c + 'a' - 1) : (char)c; // Ctrl-A to Ctrl-Z
        foreach ((int scan, string plain, string shifted) in s_rows)
        {
            int at = plain.IndexOf(letter) is var p and >= 0 ? p : shifted.IndexOf(letter);
            if (at >= 0)
                return scan + at << 8 | c;
        }
        return c;
    }
}
