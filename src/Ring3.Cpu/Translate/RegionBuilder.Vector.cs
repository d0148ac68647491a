using Iced.Intel;

namespace Ring3.Cpu;

// Vector instructions: guest register n is host register n, loaded where a trace begins that needs it.
// SAFETY: writes only to the assembler; accesses are checked as in RegionBuilder.Memory.cs.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>Where a trace begins: leaves to the site when the host's units are not the guest's.</summary>
    private void EmitUnits(Trace t)
    {
        if (t.Units != Units.None)
        {
            int offset = (int)((nuint)t.Head->Host & 0xfff);
            Site site = new() { Kind = SiteKind.Units, PageOffset = offset, Block = t.Head, Op = Block.FirstOp(t.Head), Size = (byte)t.Units };
            MemoryOperand units = RegionAssembler.State(StateLayout.Units);
            byte leave = Equal;
            if (System.Numerics.BitOperations.IsPow2((uint)t.Units))
            {
                _a.Add(Instruction.Create(Code.Test_rm8_imm8, units, (uint)t.Units));
            }
            else
            {
                Register spare = HostRegisters.Sized(HostRegisters.Spare, 4);
                _a.Add(Instruction.Create(Code.Movzx_r32_rm8, spare, units));
                _a.Add(Instruction.Create(Code.Not_rm32, spare));
                _a.Add(Instruction.Create(Code.Test_rm32_imm32, spare, (uint)t.Units));
                leave = NotEqual;
            }
            int number = AddSite(site);
            _stubs.Add((_a.Jump(leave), number));
            _resumes.Add((number, _a.Position));
        }
        t.Live = _a.Position;
        foreach (int jump in t.PendingLive)
            _a.Bind(jump);
    }

    private void EmitVector(Trace t, int i, in GuestInstruction g)
    {
        Instruction code = g.Code;
        code.Code = VectorRules.Emitted(code.Code);
        bool memory = InstructionRules.HasMemory(code), store = g.SiteAfter;
        _passing.Clear();
        // At most one general-purpose register beside memory, and three without.
        if (!Assign(ref code, memory, store, false))
            throw new InvalidOperationException($"no registers for {code}");
        if (!memory)
        {
            LoadPassing();
        }
        else
        {
            int size = code.MemorySize.GetSize();
            int site = MissSite(t, i, AccessForm.Operand, size, store);
            EmitAddress(g.Code, HostRegisters.Address, true);
            EmitCheck(size, store, site, LoadPassing, VectorFacts.MustBeAligned(g.Code.Code, g.Code.Encoding == EncodingKind.VEX));
        }
        _a.Add(code);
        StorePassing();
        if (g.WritesFlags)
            Produced(g);
        if (store)
            EmitCodeCheck(t, i, code.MemorySize.GetSize(), g.Next);
        else if (memory && !g.WritesFlags)
            _hostFlags = false;
    }
}
