namespace Ring3.Cpu;

/// <summary>
/// Improves a decoded block as a whole: status flags that nothing can see are left uncomputed. An op keeps its place and its one instruction.
/// </summary>
/// <remarks>SAFETY: works within the scratch ops of the decoder.</remarks>
internal static unsafe class OpOptimizer
{
    /// <summary>What a kind does to the status flags.</summary>
    private enum Effect : byte
    {
        /// <summary>May fault, leave, or is not known: the flags before it must be exact.</summary>
        Barrier,
        /// <summary>Register-only, flags neither read nor written, or some written and the others kept.</summary>
        Neutral,
        /// <summary>Register-only, writes all six.</summary>
        Writes,
        /// <summary>Register-only, reads some.</summary>
        Reads,
    }

    private static readonly Effect[] s_effects = new Effect[(int)OpKind.Last];
    private static readonly OpKind[] s_withoutFlags = new OpKind[(int)OpKind.Last];

    static OpOptimizer()
    {
        Dictionary<string, OpKind> byName = [];
        for (OpKind kind = 0; kind < OpKind.Last; kind++)
            byName[kind.ToString()] = kind;
        foreach ((string name, OpKind kind) in byName)
        {
            if (byName.TryGetValue(name + "Nf", out OpKind plain))
                s_withoutFlags[(int)kind] = plain;
        }
        s_withoutFlags[(int)OpKind.Inc64] = OpKind.AddRI64Nf;
        s_withoutFlags[(int)OpKind.Dec64] = OpKind.SubRI64Nf;
        s_withoutFlags[(int)OpKind.Inc32] = OpKind.AddRI32Nf;
        s_withoutFlags[(int)OpKind.Dec32] = OpKind.SubRI32Nf;
        Effects();
    }

    private static void Effects()
    {
        for (OpKind kind = OpKind.Nop; kind < OpKind.Last; kind++)
        {
            string name = kind.ToString();
            if (name.EndsWith("Nf", StringComparison.Ordinal))
                s_effects[(int)kind] = Effect.Neutral;
            else if (name.Contains("Cl64", StringComparison.Ordinal) || name.Contains("Cl32", StringComparison.Ordinal))
                s_effects[(int)kind] = Effect.Reads;
        }
        foreach (string name in (string[])["Add", "Sub", "And", "Or", "Xor", "Cmp", "Test"])
            foreach (string form in (string[])["RR64", "RI64", "RR32", "RI32", "RR8", "RI8"])
                if (Enum.TryParse(name + form, out OpKind kind))
                    s_effects[(int)kind] = Effect.Writes;
        foreach (OpKind kind in (OpKind[])[OpKind.ShlRI64, OpKind.ShrRI64, OpKind.SarRI64, OpKind.ShlRI32, OpKind.ShrRI32, OpKind.SarRI32, OpKind.Neg64,
            OpKind.Neg32])
            s_effects[(int)kind] = Effect.Writes;
        foreach (OpKind kind in (OpKind[])[OpKind.AdcRR64, OpKind.AdcRI64, OpKind.SbbRR64, OpKind.SbbRI64, OpKind.AdcxRR64, OpKind.AdoxRR64])
            s_effects[(int)kind] = Effect.Reads;
        foreach (OpKind kind in (OpKind[])
        [
            OpKind.Nop, OpKind.MovRR64, OpKind.MovRR32, OpKind.MovRR8, OpKind.MovRI, OpKind.MovzxB, OpKind.MovzxW, OpKind.MovsxB64, OpKind.MovsxW64,
                OpKind.MovsxD64, OpKind.MovsxB32, OpKind.MovsxW32,
            OpKind.Lea64, OpKind.Lea32, OpKind.LeaBase64, OpKind.Cqo, OpKind.Cdq, OpKind.Not64, OpKind.Not32, OpKind.MulR64, OpKind.MulxRR64,
            OpKind.Inc64, OpKind.Dec64, OpKind.Inc32, OpKind.Dec32, OpKind.ImulRR64, OpKind.ImulRR32, OpKind.ImulRRI64, OpKind.ImulRRI32,
            OpKind.RolRI64, OpKind.RolRI32, OpKind.RorRI64, OpKind.RorRI32,
        ])
            s_effects[(int)kind] = Effect.Neutral;
    }

    /// <summary>Works on <paramref name="count"/> ops; returns their number.</summary>
    public static int Run(Op* ops, int count)
    {
        bool live = true;
        for (int i = count - 1; i >= 0; i--)
        {
            Op* op = ops + i;
            if (!live && s_withoutFlags[op->Kind] != OpKind.Generic)
                DropFlags(op);
            live = s_effects[op->Kind] switch
            {
                Effect.Barrier or Effect.Reads => true,
                Effect.Writes => false,
                _ => live,
            };
        }
        return count;
    }

    private static void DropFlags(Op* op)
    {
        if ((OpKind)op->Kind is OpKind.Inc64 or OpKind.Dec64 or OpKind.Inc32 or OpKind.Dec32)
            op->Imm = 1;
        op->Kind = (ushort)s_withoutFlags[op->Kind];
    }
}
