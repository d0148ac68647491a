namespace Ring3.Cpu;

/// <summary>Operands of a size that only the run knows, where speed does not matter: see <see cref="IWidth"/> for the others.</summary>
/// <remarks>SAFETY: register offsets come from the decoder; pointers to memory are those of the checked accessors.</remarks>
internal static unsafe class SlowOperands
{
    public static ulong Load(byte* p, int size) => size switch
    {
        1 => Volatile.Read(ref *p),
        2 => Volatile.Read(ref *(ushort*)p),
        4 => Volatile.Read(ref *(uint*)p),
        _ => Volatile.Read(ref *(ulong*)p),
    };

    public static void Store(byte* p, int size, ulong value)
    {
        switch (size)
        {
            case 1: Volatile.Write(ref *p, (byte)value); break;
            case 2: Volatile.Write(ref *(ushort*)p, (ushort)value); break;
            case 4: Volatile.Write(ref *(uint*)p, (uint)value); break;
            default: Volatile.Write(ref *(ulong*)p, value); break;
        }
    }

    /// <summary>Writes a register; 32-bit writes clear the upper half.</summary>
    public static void Set(CpuState* c, byte register, int size, ulong value)
    {
        if (size == 4)
            *(ulong*)((byte*)c + register) = (uint)value;
        else
            Store((byte*)c + register, size, value);
    }
}
