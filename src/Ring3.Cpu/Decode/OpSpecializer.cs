using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Chooses the loop's inline form of an instruction, where there is one.</summary>
/// <remarks>SAFETY: writes one op.</remarks>
internal static unsafe class OpSpecializer
{
    /// <summary>Sets <c>Kind</c>; the handler stays as the slow path of the inline form.</summary>
    public static void Run(Op* op, in Instruction i, uint size)
    {
        _ = i;
        _ = size;
        op->Kind = (ushort)OpKind.Generic;
    }
}

/// <summary>Improves a decoded block as a whole.</summary>
/// <remarks>SAFETY: works within the scratch ops of the decoder.</remarks>
internal static unsafe class OpOptimizer
{
    /// <summary>Returns the number of ops left, without the terminating one.</summary>
    public static int Run(Op* ops, int count)
    {
        _ = ops;
        return count;
    }

    /// <summary>Guest instructions that an op executes.</summary>
    public static int InstructionsOf(Op* op)
    {
        _ = op;
        return 1;
    }
}
