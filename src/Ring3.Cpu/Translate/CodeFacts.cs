using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>What Iced says about the operands of a code, whichever registers an instruction names: asked once.</summary>
internal struct CodeFacts
{
    /// <summary>Stored last.</summary>
    private byte _known;
    /// <summary>Bit n: operand n is written; is read.</summary>
    public byte OperandWrites, OperandReads;
    /// <summary>General-purpose registers that it writes without naming them.</summary>
    public ushort ImplicitWrites;
    /// <summary>Status flags: <see cref="InstructionRules.StatusOf"/>, unless <see cref="IsShift"/>.</summary>
    public bool ReadsStatus, WritesStatus, KeepsStatus, IsShift;

    // BENIGN-RACE: every thread computes the same facts.
    private static readonly CodeFacts[] s_facts = new CodeFacts[VectorHandlers.CodeCount];

    public static ref readonly CodeFacts Of(in Instruction i, InstructionInfoFactory factory)
    {
        ref CodeFacts f = ref s_facts[(int)i.Code];
        if (Volatile.Read(ref f._known) == 0)
            Learn(ref f, i, factory);
        return ref f;
    }

    private static void Learn(ref CodeFacts f, Instruction i, InstructionInfoFactory factory)
    {
        // Registers that no instruction names without saying so take the place of those that it names.
        for (int n = 0; n < i.OpCount; n++)
            if (i.GetOpKind(n) == Iced.Intel.OpKind.Register && i.GetOpRegister(n) is var r && r.IsGPR())
                i.SetOpRegister(n, HostRegisters.Sized(Register.R12 + n, r.GetSize()));
        InstructionInfo info = factory.GetInfo(i);
        for (int n = 0; n < i.OpCount; n++)
        {
            OpAccess access = info.GetOpAccess(n);
            if (access is OpAccess.Write or OpAccess.ReadWrite or OpAccess.CondWrite or OpAccess.ReadCondWrite)
                f.OperandWrites |= (byte)(1 << n);
            if (access != OpAccess.Write)
                f.OperandReads |= (byte)(1 << n);
        }
        ushort writes = 0;
        foreach (UsedRegister r in info.GetUsedRegisters())
            if (r.Register.IsGPR() && r.Register.GetFullRegister() < Register.R12
                && r.Access is not (OpAccess.Read or OpAccess.CondRead or OpAccess.NoMemAccess))
                writes |= (ushort)(1 << r.Register.GetFullRegister() - Register.RAX);
        f.ImplicitWrites = writes;
        f.IsShift = InstructionRules.IsShift(i.Mnemonic);
        (f.ReadsStatus, f.WritesStatus, f.KeepsStatus) = InstructionRules.StatusOf(i);
        Volatile.Write(ref f._known, 1);
    }

    /// <summary>Whether the instruction's memory operand is written.</summary>
    public readonly bool Stores(in Instruction i)
    {
        if (OperandWrites <= 1)
            return OperandWrites != 0 && i.Op0Kind == Iced.Intel.OpKind.Memory;
        for (int n = 0; n < i.OpCount; n++)
            if ((OperandWrites >> n & 1) != 0 && i.GetOpKind(n) == Iced.Intel.OpKind.Memory)
                return true;
        return false;
    }

    /// <summary>General-purpose registers that the instruction writes, as a mask.</summary>
    public readonly ushort Writes(in Instruction i)
    {
        int writes = ImplicitWrites;
        if (OperandWrites <= 1)
            return (ushort)(OperandWrites != 0 && i.Op0Kind == Iced.Intel.OpKind.Register ? writes | MaskOf(i.Op0Register) : writes);
        for (int n = 0, left = OperandWrites; left != 0 && n < i.OpCount; n++, left >>= 1)
            if ((left & 1) != 0 && i.GetOpKind(n) == Iced.Intel.OpKind.Register)
                writes |= MaskOf(i.GetOpRegister(n));
        return (ushort)writes;
    }

    private static int MaskOf(Register r) => HostRegisters.NumberOf(r) is var n and >= 0 ? 1 << n : 0;
}
