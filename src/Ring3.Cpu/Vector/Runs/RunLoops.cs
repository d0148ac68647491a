using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>
/// Runs that are a whole loop: a block that branches back to itself and consists of vector instructions and integer ops that a run can take along. The emitted
/// code goes round by itself, with every vector register in a host register.
/// It leaves at the branch, which the run loop then executes, when the branch falls through, an exit is requested, the block goes stale, or after some thousand
/// rounds (the runtime cannot suspend the thread meanwhile).
/// </summary>
/// <remarks>
/// SAFETY: the block's header and first op are read by the emitted code, which is reachable only through ops of that block; blocks are freed only after every
/// processor has left them.
/// </remarks>
internal sealed unsafe partial class RunBuilder
{
    private const int MaxRounds = 2000;
    private const Register Rounds = Register.R11D, X = Register.R8, Y = Register.R9;

    /// <summary>The compare and the condition of a fused branch.</summary>
    private readonly record struct Branch(bool IsTest, bool Immediate, bool Wide, byte Condition);

    private static readonly Dictionary<OpKind, Branch> s_branches = Branches();

    private static Dictionary<OpKind, Branch> Branches()
    {
        // Condition codes as in the encoding of Jcc.
        (string Name, byte Code)[] conditions = [("JZ", 4), ("JNz", 5), ("JB", 2), ("JAe", 3), ("JBe", 6), ("JA", 7), ("JL", 12), ("JGe", 13), ("JLe", 14),
            ("JG", 15), ("JS", 8), ("JNs", 9)];
        Dictionary<OpKind, Branch> branches = [];
        foreach (string operation in (string[])["Cmp", "Test"])
            foreach (string operands in (string[])["RR64", "RI64", "RR32", "RI32"])
                foreach ((string name, byte code) in conditions)
                    if (Enum.TryParse(operation + operands + name, out OpKind kind))
                        branches.Add(kind, new Branch(operation == "Test", operands[1] == 'I', operands.EndsWith("64", StringComparison.Ordinal), code));
        return branches;
    }

    /// <summary>
    /// First op of the block when the block is a loop of which the run of <paramref name="count"/> ops from <paramref name="head"/> on is all but leading
    /// integer ops; else null.
    /// </summary>
    private static Op* LoopStart(Op* head, int count)
    {
        Op* end = head + count;
        if (!s_branches.ContainsKey((OpKind)end->Kind) || end->Disp != 0)
            return null;
        Op* start = head;
        while (start->Offset != 0)
        {
            start--;
            if (!CanTakeAlong(start))
                return null;
        }
        Block* block = (Block*)start - 1;
        return end - start <= 2 * VectorRun.MaxOps && block->Taken == block ? start : null;
    }

    private void EmitLoop(LogicalProcessor p, Op* start, Op* head, int count)
    {
        for (int n = 0; n < 16; n++)
            if ((_loaded & 1u << n) != 0)
                LoadRegister(n);
        _a.Add(Instruction.Create(Code.Mov_r32_imm32, Rounds, MaxRounds));
        int enter = _a.Jump();
        int top = _a.Position;
        EmitOps(p, head, (int)(start - head), 0);
        _a.Bind(enter);
        EmitOps(p, head, 0, count);
        EmitBranch(head + count, start, count, top);
        EmitExits();
    }

    private void EmitBranch(Op* branch, Op* start, int index, int top)
    {
        Branch b = s_branches[(OpKind)branch->Kind];
        LoadPair(branch, b.Immediate, b.Wide);
        Compare(b);
        LeaveIf((byte)(b.Condition ^ 1), index);

        CpuState c;
        byte* state = (byte*)&c;
        _a.Add(Instruction.Create(Code.Cmp_rm64_imm8, ThunkAssembler.Memory(State, (int)((byte*)&c.ExitRequest - state)), 0));
        LeaveIf(NotEqual, index);
        _a.Add(Instruction.Create(Code.Mov_r64_imm64, Scratch, (ulong)&start->Kind));
        _a.Add(Instruction.Create(Code.Cmp_rm16_imm16, ThunkAssembler.Memory(Scratch), (uint)OpKind.Stale));
        LeaveIf(Equal, index);
        _a.Add(Instruction.Create(Code.Dec_rm32, Rounds));
        LeaveIf(Equal, index);
        // A fault in the next round may look at the flags.
        Combine(b.IsTest ? Arithmetic.And : Arithmetic.Sub);
        StoreFlags(b.IsTest ? Arithmetic.And : Arithmetic.Sub, b.Wide);
        _a.Add(Instruction.Create(Code.Add_rm64_imm32, ThunkAssembler.Memory(State, (int)((byte*)&c.InstructionsRetired - state)),
            ((Block*)start - 1)->Instructions));
        _a.JumpTo(top);
    }

    private void Compare(Branch b)
    {
        Code code = (b.IsTest, b.Wide) switch
        {
            (true, true) => Code.Test_rm64_r64,
            (true, false) => Code.Test_rm32_r32,
            (false, true) => Code.Cmp_rm64_r64,
            _ => Code.Cmp_rm32_r32,
        };
        int narrow = b.Wide ? 0 : Register.R8D - Register.R8;
        _a.Add(Instruction.Create(code, X + narrow, Y + narrow));
    }
}
