namespace Ring3.Cpu;

/// <summary>x87 status and control word bits, and the tag word's two forms. SPEC: SDM volume 1, "x87 FPU Execution Environment".</summary>
/// <remarks>SAFETY: works on the processor's own state; physical register numbers are masked to 0-7.</remarks>
internal static unsafe class X87Status
{
    public const ushort Exceptions = 0x3f, Precision = 0x20, StackFault = 0x40, ES = 0x80, Top = 0x3800, B = 0x8000;
    public const int TopShift = 11;
    public const ushort InitialControl = 0x37f;

    public static int TopOf(ushort fsw) => fsw >> TopShift & 7;

    /// <summary>Status word with ES and B as the other fields demand.</summary>
    public static ushort WithSummary(ushort fsw, ushort fcw)
        => (fsw & ~fcw & Exceptions) != 0 ? (ushort)(fsw | ES | B) : (ushort)(fsw & ~(ES | B));

    /// <summary>Two-bit tags of the eight physical registers (0 valid, 1 zero, 2 special, 3 empty).</summary>
    public static ushort FullTag(CpuState* c)
    {
        int tag = 0;
        for (int i = 0; i < 8; i++)
        {
            int t = 3;
            if ((c->Ftw >> i & 1) != 0)
            {
                ulong significand = *(ulong*)(c->X87 + 16 * i);
                int exponent = *(ushort*)(c->X87 + 16 * i + 8) & 0x7fff;
                t = exponent == 0x7fff ? 2 : (long)significand < 0 && exponent != 0 ? 0 : exponent == 0 && significand == 0 ? 1 : 2;
            }
            tag |= t << 2 * i;
        }
        return (ushort)tag;
    }

    public static byte AbridgedTag(ushort full)
    {
        int tag = 0;
        for (int i = 0; i < 8; i++)
            if ((full >> 2 * i & 3) != 3)
                tag |= 1 << i;
        return (byte)tag;
    }
}
