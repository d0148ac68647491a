using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

// REP MOVS and REP STOS.
// SAFETY: writes only to the assembler. The host's instruction gets no more elements than the pages of both operands hold from there, whose entries of level 1
// have matched.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>
    /// Page by page with the host's own instruction, upwards. What else there is (the other direction, a miss, an element across a page's end, somebody
    /// waiting, code that has been overwritten, host memory that is gone) is the handler's, which goes on where this stopped: the registers say how far it
    /// has come.
    /// </summary>
    private void EmitString(Trace t, int i, in GuestInstruction g)
    {
        bool moves = g.Code.Mnemonic is Mnemonic.Movsb or Mnemonic.Movsw or Mnemonic.Movsd or Mnemonic.Movsq;
        int shift = int.Log2(g.Code.MemorySize.GetSize());
        const Register Address = HostRegisters.Address, Rest = HostRegisters.Spare, Count = Register.RCX, Target = Register.RDI, Source = Register.RSI;
        int site = AddSite(SiteAt(SiteKind.Call, t, i));
        Site overwritten = SiteAt(SiteKind.Overwritten, t, i);
        int again = _a.Position;
        CutAddresses();
        _a.Add(Instruction.Create(Code.Test_rm64_r64, Count, Count));
        int done = _a.Jump(Equal);
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.DF));
        UnlessToHandler(NotEqual, site);
        _a.CompareStateWithZero(StateLayout.ExitRequest, true);
        UnlessToHandler(NotEqual, site);
        if (moves)
        {
            _a.Move(Address, Source);
            BeginCheck(1, false);
            UnlessToHandler(NotEqual, site);
            _a.WithEntry(HostOperation.Move, Address, AddendOffset);
            _a.Store(StateLayout.Between, Address);
        }
        _a.Move(Address, Target);
        BeginCheck(1, true);
        UnlessToHandler(NotEqual, site);
        // Elements up to the nearer end of a page.
        BytesLeft(Address, Target);
        if (moves)
        {
            BytesLeft(Rest, Source);
            _a.OnRegisters(HostOperation.Compare, Rest, Address);
            _a.Add(Instruction.Create(Code.Cmovb_r64_rm64, Address, Rest));
        }
        if (shift != 0)
        {
            _a.Add(Instruction.Create(Code.Shr_rm32_imm8, HostRegisters.Sized(Address, 4), shift));
            UnlessToHandler(Equal, site);
        }
        _a.OnRegisters(HostOperation.Compare, Address, Count);
        _a.Add(Instruction.Create(Code.Cmova_r64_rm64, Address, Count));
        _a.Move(Rest, Count);
        _a.OnRegisters(HostOperation.Sub, Rest, Address);
        _a.Move(Count, Address);
        _a.WithEntry(HostOperation.Add, Target, AddendOffset);
        if (moves)
            _a.WithState(HostOperation.Add, Source, StateLayout.Between);
        int fault = _a.Nop();
        _a.RepeatString(moves, shift);
        BackToGuest(moves);
        _a.Move(Count, Rest);
        _a.WithEntry(HostOperation.Move, Address, CodeBitsOffset);
        _a.CompareWithZero(Address, 0, true);
        int code = _a.Jump(NotEqual);
        // The loop is in the instruction: it looks at the timer here.
        _a.CompareStateWithZero(StateLayout.TimerDeadline, true);
        _a.Bind(_a.Jump(Equal), again);
        _a.Add(Instruction.Create(Code.Test_rm64_r64, Count, Count));
        UnlessToHandler(NotEqual, site);
        int finished = _a.Jump();
        // The host's memory is gone: the host's registers say how far it has come.
        _a.Bind(fault);
        BackToGuest(moves);
        _a.OnRegisters(HostOperation.Add, Count, Rest);
        _a.Move(Address, Target);
        int common = _a.Jump();
        _a.Bind(code);
        _a.Lea(Address, Target, -1);
        _a.Bind(common);
        _a.WithEntry(HostOperation.Add, Address, AddendOffset);
        _a.And64(Address, -4096);
        int number = AddSite(overwritten);
        CallSite(number);
        _resumes.Add((number, _a.Position));
        _handlerStubs.Add((_a.Jump(), site, -1));
        _a.Bind(done);
        _a.Bind(finished);
        CutAddresses();
        _a.Add(Instruction.Create(Code.Mov_rm8_imm8, RegionAssembler.State(StateLayout.BetweenIterations), 0u));
        HandlersReturn(site);
        _hostFlags = false;
    }

    /// <summary>Outside 64-bit mode a page may have been the last: the addresses go on at 0.</summary>
    private void CutAddresses()
    {
        if (Is64)
            return;
        foreach (Register r in (ReadOnlySpan<Register>)[Register.RCX, Register.RSI, Register.RDI])
            _a.Move32(r, r);
    }

    private void BackToGuest(bool moves)
    {
        _a.WithEntry(HostOperation.Sub, Register.RDI, AddendOffset);
        if (moves)
            _a.WithState(HostOperation.Sub, Register.RSI, StateLayout.Between);
    }

    /// <summary>Bytes from an address to the end of its page.</summary>
    private void BytesLeft(Register to, Register address)
    {
        Register to4 = HostRegisters.Sized(to, 4);
        _a.Add(Instruction.Create(Code.Mov_r32_rm32, to4, HostRegisters.Sized(address, 4)));
        _a.Add(Instruction.Create(Code.Or_rm32_imm32, to4, ~0xfffu));
        _a.Add(Instruction.Create(Code.Neg_rm32, to4));
    }
}
