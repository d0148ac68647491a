using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>
/// Handler of each instruction, by Iced's <see cref="Code"/>. A code without handler is #UD.
/// Each family registers its own from <c>Register()</c>; the table is complete before the first decode and constant afterwards.
/// </summary>
/// <remarks>SAFETY: indices are Iced's codes, all below <see cref="Count"/>; the pointers are of static methods.</remarks>
internal static unsafe class HandlerTable
{
    /// <summary>Number of codes that the decoder can produce.</summary>
    public const int Count = 5120;

    private static readonly nint[] s_handlers = new nint[Count];
    private static readonly nint[] s_registerHandlers = new nint[Count];
    private static readonly uint[] s_aux = new uint[Count];
    private static readonly bool[] s_endsBlock = new bool[Count];

    static HandlerTable()
    {
        IntegerHandlers.Register();
        SystemHandlers.Register();
        VectorHandlers.Register();
    }

    /// <summary>
    /// Registers the handler of <paramref name="code"/>. <paramref name="endsBlock"/>: decoding stops after the instruction, so its handler may return <see
    /// cref="OpResult.EndBlock"/> always or sometimes.
    /// </summary>
    public static void Set(Code code, delegate*<LogicalProcessor, CpuState*, Op*, OpResult> handler, bool endsBlock = false)
    {
        s_handlers[(int)code] = (nint)handler;
        s_endsBlock[(int)code] = endsBlock;
    }

    /// <summary>
    /// Registers an instruction that takes a register or memory: <paramref name="memory"/> runs when an operand is in memory, <paramref name="register"/>
    /// otherwise.
    /// <paramref name="aux"/> becomes <see cref="Op.Aux"/>.
    /// </summary>
    public static void Set(Code code, delegate*<LogicalProcessor, CpuState*, Op*, OpResult> memory,
        delegate*<LogicalProcessor, CpuState*, Op*, OpResult> register, bool endsBlock = false, uint aux = 0)
    {
        Set(code, memory != null ? memory : register, endsBlock);
        s_registerHandlers[(int)code] = (nint)register;
        s_aux[(int)code] = aux;
    }

    /// <summary>Handler of the form without memory operand, or null when there is no separate one.</summary>
    public static delegate*<LogicalProcessor, CpuState*, Op*, OpResult> GetRegisterForm(Code code) =>
        (delegate*<LogicalProcessor, CpuState*, Op*, OpResult>)s_registerHandlers[(int)code];

    public static uint Aux(Code code) => s_aux[(int)code];

    /// <summary>Handler, or null when the instruction does not exist in this machine.</summary>
    public static delegate*<LogicalProcessor, CpuState*, Op*, OpResult> Get(Code code) =>
        (delegate*<LogicalProcessor, CpuState*, Op*, OpResult>)s_handlers[(int)code];

    public static bool EndsBlock(Code code) => s_endsBlock[(int)code];
}
