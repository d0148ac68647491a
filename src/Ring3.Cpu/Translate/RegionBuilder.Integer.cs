using Iced.Intel;

namespace Ring3.Cpu;

// Integer instructions that need more than other registers.
// SAFETY: writes only to the assembler; accesses are checked as in RegionBuilder.Memory.cs.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>Jumps to a call of the instruction's handler out of line, and where that comes back to.</summary>
    private readonly List<(int Jump, int Site, int Back)> _handlerStubs = [];

    /// <summary>A conditional jump to the instruction's handler. It comes back where <see cref="HandlersReturn"/> says so, or nowhere.</summary>
    private void UnlessToHandler(byte condition, int site) => _handlerStubs.Add((_a.Jump(condition), site, -1));

    /// <summary>The handler of the site goes on here. What holds the flags by the site's account does so still.</summary>
    private void HandlersReturn(int site)
    {
        for (int n = _handlerStubs.Count - 1; n >= 0 && _handlerStubs[n].Site == site; n--)
            _handlerStubs[n] = _handlerStubs[n] with { Back = _a.Position };
    }

    private void EmitHandlerStubs()
    {
        for (int n = 0; n < _handlerStubs.Count; n++)
        {
            (int jump, int site, int back) = _handlerStubs[n];
            _a.Bind(jump);
            while (n + 1 < _handlerStubs.Count && _handlerStubs[n + 1].Site == site)
                _a.Bind(_handlerStubs[++n].Jump);
            CallSite(site);
            if (back < 0)
                continue;
            _resumes.Add((site, _a.Position));
            _a.Bind(_a.Jump(), back);
        }
    }

    /// <summary>
    /// DIV and IDIV. What may not fit is the handler's: it raises #DE, or divides. The flags are undefined afterwards: what the host has left of them.
    /// </summary>
    private void EmitDivide(Trace t, int i, in GuestInstruction g)
    {
        Instruction code = g.Code;
        int size = InstructionRules.HasMemory(code) ? code.MemorySize.GetSize() : code.Op0Register.GetSize(), bits = 8 * size;
        Register full = HostRegisters.Spare;
        if (InstructionRules.HasMemory(code))
        {
            int miss = MissSite(t, i, AccessForm.Operand, size, false);
            EmitAddress(code, HostRegisters.Address, true);
            EmitCheck(size, false, miss);
            EmitLoad(size);
        }
        else if (HostRegisters.HomeOf(Guest(code.Op0Register)) is var home && home != Register.None)
        {
            full = home;
        }
        else
        {
            _a.Load(full, StateLayout.Gpr(Guest(code.Op0Register)));
        }
        int site = AddSite(SiteAt(SiteKind.Call, t, i));
        Register divisor = HostRegisters.Sized(full, size), high = HostRegisters.Sized(Register.RDX, size);
        Register scratch = HostRegisters.Sized(HostRegisters.Address, size);
        (Code compare, Code compareImmediate, Code shift) = size switch
        {
            2 => (Code.Cmp_r16_rm16, Code.Cmp_rm16_imm8, Code.Sar_rm16_imm8),
            4 => (Code.Cmp_r32_rm32, Code.Cmp_rm32_imm8, Code.Sar_rm32_imm8),
            _ => (Code.Cmp_r64_rm64, Code.Cmp_rm64_imm8, Code.Sar_rm64_imm8),
        };
        if (code.Mnemonic == Mnemonic.Div)
        {
            // The quotient fits exactly when the upper half is below the divisor.
            _a.Add(Instruction.Create(compare, high, divisor));
            UnlessToHandler(NotBelow, site);
        }
        else
        {
            // A dividend of one half, and a divisor that is neither 0 nor -1.
            _a.Move(HostRegisters.Address, Register.RAX);
            _a.Add(Instruction.Create(shift, scratch, bits - 1));
            _a.Add(Instruction.Create(compare, scratch, high));
            UnlessToHandler(NotEqual, site);
            _a.Lea(HostRegisters.Address, full, 1);
            _a.Add(Instruction.Create(compareImmediate, scratch, 1));
            UnlessToHandler(NotAbove, site);
        }
        _a.Add(Instruction.Create(code.Code, divisor));
        HandlersReturn(site);
        Produced(g);
    }

    /// <summary>BT, BTS, BTR and BTC with a bit string in memory: the index, signed, moves the address by whole operands.</summary>
    private void EmitBitString(Trace t, int i, in GuestInstruction g)
    {
        Instruction code = g.Code;
        int size = code.MemorySize.GetSize();
        bool store = g.SiteAfter;
        int site = MissSite(t, i, AccessForm.BitString, size, store);
        EmitAddress(code, HostRegisters.Address, true, code.Op1Register);
        if (code.HasLockPrefix)
            EmitSplitCheck(t, i, size);
        Register spare = HostRegisters.Spare;
        if (store)
        {
            // The index within the operand.
            AddressPart(code.Op1Register, spare, true);
            _a.Add(Instruction.Create(Code.And_rm32_imm8, HostRegisters.Sized(spare, 4), 8 * size - 1));
            _a.Store(StateLayout.Between, spare);
        }
        EmitCheck(size, store, site);
        if (!store)
            EmitLoad(size);
        _hostFlags = false;
        if (g.KeepsFlags && g.FlagsNeeded)
            NeedHostFlags(store ? spare : HostRegisters.Address);
        if (store)
        {
            _a.Load(spare, StateLayout.Between);
            code.SetOpRegister(1, HostRegisters.Sized(spare, size));
            AtCheckedAddress(ref code);
            FaultsTo(site);
        }
        else
        {
            code.Op0Kind = Iced.Intel.OpKind.Register;
            code.Op0Register = HostRegisters.Sized(spare, size);
            code.SetOpRegister(1, HostRegisters.Sized(AddressPart(code.Op1Register, HostRegisters.Address), size));
            code.MemoryBase = Register.None;
        }
        _a.Add(code);
        Produced(g);
        if (store)
            EmitCodeCheck(t, i, size, g.Next);
    }

    private void EmitPushMemory(Trace t, int i, in GuestInstruction g)
    {
        int site = MissSite(t, i, AccessForm.Operand, _word, false);
        EmitAddress(g.Code, HostRegisters.Address, true);
        EmitCheck(_word, false, site);
        EmitLoad(_word);
        _hostFlags = false;
        PushSpare(t, i, g);
    }

    /// <summary>Pushes what the spare register has. Flags are lost.</summary>
    private void PushSpare(Trace t, int i, in GuestInstruction g)
    {
        _a.Store(StateLayout.Between, HostRegisters.Spare);
        int site = MissSite(t, i, AccessForm.Push, _word, true);
        _a.Lea(HostRegisters.Address, Stack, -_word, _word);
        BeginCheck(_word, true);
        _a.Load(HostRegisters.Spare, StateLayout.Between);
        EndCheck(site);
        _a.StoreTo(HostRegisters.Address, HostRegisters.Spare, _word);
        _a.Lea(Stack, Stack, -_word, _word);
        EmitCodeCheck(t, i, _word, g.Next);
    }
}
