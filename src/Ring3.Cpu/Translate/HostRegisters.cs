using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>
/// Where guest registers are while translated code runs. The map is the same at every edge, so that regions link without moves. Registers that are not listed
/// stay in <see cref="CpuState.Gpr"/> and pass through scratch registers.
/// </summary>
/// <remarks>
/// RAX, RCX, RDX, RBX, RSI and RDI are themselves, because instructions name them implicitly. The host's RSP stays the thread's stack: signal handlers may
/// arrive on it.
/// </remarks>
internal static class HostRegisters
{
    /// <summary>Address of the level-1 TLB; the state lies before it, the translated jumps behind it (see <see cref="ProcessorMemory"/>).</summary>
    public const Register Base = Register.R15;

    /// <summary>Scratch: the address of an access, then the host's; the TLB entry's offset, then the site; anything.</summary>
    public const Register Address = Register.R14, Entry = Register.R11, Spare = Register.R9;

    private static readonly Register[] s_homes =
    [
        Register.RAX, Register.RCX, Register.RDX, Register.RBX, Register.R10, Register.RBP, Register.RSI, Register.RDI,
        Register.R8, Register.None, Register.None, Register.None, Register.R12, Register.R13, Register.None, Register.None,
    ];

    /// <summary>64-bit host register of a guest register, or None.</summary>
    public static Register HomeOf(int guest) => s_homes[guest];

    private static readonly sbyte[] s_numbers = Numbers();

    private static sbyte[] Numbers()
    {
        sbyte[] numbers = new sbyte[256];
        numbers.AsSpan().Fill(-1);
        for (Register r = Register.AL; r <= Register.R15; r++)
            numbers[(int)r] = (sbyte)(r.GetFullRegister() - Register.RAX);
        return numbers;
    }

    /// <summary>Number of the general-purpose register that this one is or is part of, or -1.</summary>
    public static int NumberOf(Register r) => s_numbers[(int)r];

    /// <summary>The part of a 64-bit register that has <paramref name="bytes"/> bytes.</summary>
    public static Register Sized(Register full, int bytes) => bytes switch
    {
        1 => full < Register.RSP ? Register.AL + (full - Register.RAX) : Register.SPL + (full - Register.RSP),
        2 => Register.AX + (full - Register.RAX),
        4 => Register.EAX + (full - Register.RAX),
        _ => full,
    };
}
