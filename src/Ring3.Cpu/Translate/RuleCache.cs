using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>What <see cref="InstructionRules.Classify"/> has said of codes in one mode, where that follows from the code alone.</summary>
internal sealed class RuleCache(bool is64)
{
    private const byte Unknown = 255;

    /// <summary>By code, twice: without and with a memory operand.</summary>
    private readonly byte[] _lowerings = Create();

    private static byte[] Create()
    {
        byte[] lowerings = new byte[2 * VectorHandlers.CodeCount];
        lowerings.AsSpan().Fill(Unknown);
        return lowerings;
    }

    /// <summary>False: the rules are to be asked.</summary>
    public bool TryGet(in Instruction i, bool memory, out Lowering lowering)
    {
        byte known = _lowerings[IndexOf(i, memory)];
        lowering = (Lowering)known;
        return known != Unknown && Follows(i, memory);
    }

    public void Note(in Instruction i, bool memory, Lowering lowering)
    {
        if (Follows(i, memory))
            _lowerings[IndexOf(i, memory)] = (byte)lowering;
    }

    private static int IndexOf(in Instruction i, bool memory) => 2 * (int)i.Code + (memory ? 1 : 0);

    /// <summary>Prefixes and AH to BH make a difference, and outside 64-bit mode what an address is made of.</summary>
    private bool Follows(in Instruction i, bool memory)
        => (is64 || !memory && i.Mnemonic != Mnemonic.Lea)
        && !(i.HasRepPrefix || i.HasRepnePrefix || i.HasLockPrefix || i.HasXacquirePrefix || i.HasXreleasePrefix)
        && !IsHigh(i.Op0Register) && !IsHigh(i.Op1Register);

    private static bool IsHigh(Register r) => r is >= Register.AH and <= Register.BH;
}
