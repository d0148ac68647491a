using Iced.Intel;

namespace Ring3.Cpu;

// Vector and x87 instructions: guest vector register n is host register n, loaded where a trace begins that needs it.
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
        bool memory = g.Memory, store = g.SiteAfter;
        Window? window = memory ? WindowOf(g) : null;
        // At most one general-purpose register beside memory, and three without.
        if (!Assign(ref code, memory, store, false))
            throw new InvalidOperationException($"no registers for {code}");
        if (LosesUnpacked(g, memory, window))
            PackNow();
        if (window is not null)
        {
            EnterWindow(i, g, window);
            LoadPassing();
            AddInWindow(i, g, window, ref code);
        }
        else if (!memory)
        {
            if (g.ReadsFlags)
                NeedHostFlags(HostRegisters.Address);
            LoadPassing();
            if (g.ReadsFlags || _passing.Count > 2)
                _atHand = null;
        }
        else
        {
            int size = code.MemorySize.GetSize();
            _atHand = null;
            int alignment = VectorRules.MustBeAligned(g.Code) ? size : 0;
            // A store of an MMX register that faults may have switched the unit over.
            bool only = VectorRules.IsMove(code) && (g.Units & Units.X87) == 0;
            int site = MissSite(t, i, only ? AccessForm.Operand : AccessForm.LateOperand, size, store, alignment);
            if (NotesEveryX87 && VectorRules.IsNoted(code.Code))
            {
                EmitAddress(g.Code, HostRegisters.Address, false);
                _a.Store(StateLayout.X87Operand, HostRegisters.Address);
            }
            EmitAddress(g.Code, HostRegisters.Address, true);
            BeginCheck(size, store, alignment);
            LoadPassing();
            EndCheck(site);
            if (alignment == 0 && (g.Units & Units.X87) == 0 && (!store || only))
                MaySplit(site);
        }
        if (window is null)
            _a.Add(code);
        StorePassing();
        if (VectorRules.IsNoted(code.Code))
            EmitPointers(t, i, memory);
        if (g.WritesFlags)
            Produced(g, !store);
        if (store && window is not null)
            EmitWindowCodeCheck(t, i, window, code.MemorySize.GetSize());
        else if (store)
            EmitCodeCheck(t, i, code.MemorySize.GetSize(), g.Next);
        else if (memory && window is null && !g.WritesFlags)
            _hostFlags = false;
    }

    /// <summary>
    /// What FSTENV shows of an x87 instruction, as X87Unit.Finish notes it while every exception is masked. Changes no flag; uses the spare register.
    /// </summary>
    private void EmitPointers(Trace t, int i, bool memory)
    {
        GuestInstruction g = t.Instructions[i];
        if (!NotesEveryX87)
        {
            // Nobody can look before the next one notes its own.
            if (i + 1 < t.Instructions.Count && t.Instructions[i + 1] is var next && !g.SiteAfter && !next.SiteBefore && VectorRules.IsNoted(next.Code.Code))
                return;
            EmitFip(g.Offset);
            return;
        }
        EmitFip(g.Offset);
        _a.Add(Instruction.Create(Code.Mov_rm16_imm16, RegionAssembler.State(StateLayout.Fop), (uint)g.Op->Imm2));
        if (identity.Model.HasX87Selectors)
            _a.Add(Instruction.Create(Code.Mov_rm16_imm16, RegionAssembler.State(StateLayout.FipSelector), 0u));
        if (!memory)
            return;
        _a.Load(HostRegisters.Spare, StateLayout.X87Operand);
        _a.Store(StateLayout.Fdp, HostRegisters.Spare);
        if (identity.Model.HasX87Selectors)
            _a.Add(Instruction.Create(Code.Mov_rm16_imm16, RegionAssembler.State(StateLayout.FdpSelector), 0u));
    }

    private void EmitFip(int offset)
    {
        _a.Load(HostRegisters.Spare, StateLayout.CodeBase);
        if (offset != 0)
            _a.Lea(HostRegisters.Spare, HostRegisters.Spare, offset);
        _a.Store(StateLayout.Fip, HostRegisters.Spare);
    }
}
