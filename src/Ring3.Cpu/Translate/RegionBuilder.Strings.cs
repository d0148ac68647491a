using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

// REP MOVS, STOS, CMPS and SCAS.
// SAFETY: writes only to the assembler. The host's instruction gets no more elements than the pages of both operands hold from there, whose entries of level 1
// have matched.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>As many instructions take about as long as a page of a string.</summary>
    private const int InstructionsOfPage = 256;

    /// <summary>A site of an operand of a string instruction that misses. The handler is its too, where nothing can be filled.</summary>
    private int StringSite(Trace t, int i, AccessForm form, bool write, int again)
    {
        Site site = SiteAt(SiteKind.Miss, t, i);
        (site.Form, site.Size, site.Write) = (form, 1, write);
        return AddSite(site, again);
    }

    private int JumpIfCountIsZero()
    {
        _a.Add(Instruction.Create(Code.Test_rm64_r64, Register.RCX, Register.RCX));
        return _a.Jump(Equal);
    }

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
        int source = moves ? StringSite(t, i, AccessForm.StringSource, false, again) : -1, target = StringSite(t, i, AccessForm.StringTarget, true, again);
        CutAddresses();
        int done = JumpIfCountIsZero();
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.DF));
        UnlessToHandler(NotEqual, site);
        _a.CompareStateWithZero(StateLayout.ExitRequest, true);
        UnlessToHandler(NotEqual, site);
        if (moves)
        {
            // Two pages with one entry between them would drive each other out.
            _a.Move(Address, Source);
            _a.OnRegisters(HostOperation.Xor, Address, Target);
            _a.Add(Instruction.Create(Code.Test_rm32_imm32, HostRegisters.Sized(Address, 4), (uint)(Tlb.Level1Entries - 1) << 12));
            UnlessToHandler(Equal, site);
            _a.Move(Address, Source);
            BeginCheck(1, false);
            _stubs.Add((_a.Jump(NotEqual), source));
            _a.WithEntry(HostOperation.Move, Address, AddendOffset);
            _a.Store(StateLayout.Between, Address);
        }
        _a.Move(Address, Target);
        BeginCheck(1, true);
        _stubs.Add((_a.Jump(NotEqual), target));
        ElementsHere(moves, shift, site);
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
        int finished = JumpIfCountIsZero();
        // The loop is in the instruction: a page brings the next look at the timer nearer, which is the handler's.
        _a.Load(Rest, StateLayout.Retired);
        _a.Lea(Rest, Rest, InstructionsOfPage);
        _a.WithState(HostOperation.Compare, Rest, StateLayout.TimerLook);
        UnlessToHandler(NotBelow, site);
        _a.AddToState(StateLayout.TimerLook, -InstructionsOfPage);
        _a.Bind(_a.Jump(), again);
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

    // Slots of a comparison, for when it has to begin again.
    private const int CountSlot = 0, TargetSlot = 1, SourceSlot = 2, AddendSlot = 3;

    /// <summary>
    /// REP CMPS and REP SCAS upwards that end in the first pages of their operands, with the host's own instruction. What does not end there is the handler's
    /// from the begin: the flags of a comparison that stops on the way are another for some models.
    /// </summary>
    private void EmitCompare(Trace t, int i, in GuestInstruction g)
    {
        bool scans = g.Code.Mnemonic is Mnemonic.Scasb or Mnemonic.Scasw or Mnemonic.Scasd or Mnemonic.Scasq, untilEqual = g.Code.HasRepnePrefix;
        int shift = int.Log2(g.Code.MemorySize.GetSize());
        const Register Address = HostRegisters.Address, Rest = HostRegisters.Spare, Count = Register.RCX, Target = Register.RDI, Source = Register.RSI;
        int site = AddSite(SiteAt(SiteKind.Call, t, i));
        CutAddresses();
        _a.Add(Instruction.Create(Code.Test_rm64_r64, Count, Count));
        UnlessToHandler(Equal, site);
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.DF));
        UnlessToHandler(NotEqual, site);
        if (!scans)
        {
            _a.Move(Address, Source);
            BeginCheck(1, false);
            UnlessToHandler(NotEqual, site);
            _a.WithEntry(HostOperation.Move, Address, AddendOffset);
            _a.Store(StateLayout.Between, Address);
        }
        _a.Move(Address, Target);
        BeginCheck(1, false);
        UnlessToHandler(NotEqual, site);
        ElementsHere(!scans, shift, site);
        _a.StoreSlot(CountSlot, Count);
        _a.StoreSlot(TargetSlot, Target);
        if (!scans)
            _a.StoreSlot(SourceSlot, Source);
        _a.Move(Rest, Count);
        _a.OnRegisters(HostOperation.Sub, Rest, Address);
        _a.Move(Count, Address);
        _a.WithEntry(HostOperation.Move, Address, AddendOffset);
        _a.StoreSlot(AddendSlot, Address);
        _a.OnRegisters(HostOperation.Add, Target, Address);
        if (!scans)
            _a.WithState(HostOperation.Add, Source, StateLayout.Between);
        int fault = _a.Nop();
        _a.RepeatComparison(scans, untilEqual, shift);
        int ended = _a.Jump(untilEqual ? Equal : NotEqual);
        _a.Move(Count, Rest);
        int onward = _a.JumpUnlessCountIsZero(), finished = _a.Jump();
        _a.Bind(fault);
        _a.Bind(onward);
        _a.LoadSlot(Count, CountSlot);
        _a.LoadSlot(Target, TargetSlot);
        if (!scans)
            _a.LoadSlot(Source, SourceSlot);
        _handlerStubs.Add((_a.Jump(), site, -1));
        _a.Bind(ended);
        _a.Lea(Count, Count, Rest, 1, 0, sizeof(ulong));
        _a.Bind(finished);
        Pack();
        _a.WithState(HostOperation.Sub, Target, ProcessorMemory.Slot(AddendSlot));
        if (!scans)
            _a.WithState(HostOperation.Sub, Source, StateLayout.Between);
        CutAddresses();
        _a.Add(Instruction.Create(Code.Mov_rm8_imm8, RegionAssembler.State(StateLayout.BetweenIterations), 0u));
        // It goes on by the table, with the flags in the interpreter's words.
        HandlersReturn(site);
        _flags = s_packed;
        _hostFlags = _unpacked = false;
    }

    /// <summary>
    /// <see cref="HostRegisters.Address"/> = elements up to the nearer end of a page, and no more than RCX. Where not one fits, the handler has to do it.
    /// </summary>
    private void ElementsHere(bool hasSource, int shift, int site)
    {
        const Register Address = HostRegisters.Address, Count = Register.RCX;
        BytesLeft(Address, Register.RDI);
        if (hasSource)
            NearerEnd(Address, HostRegisters.Spare, Register.RSI);
        if (shift != 0)
        {
            _a.Add(Instruction.Create(Code.Shr_rm32_imm8, HostRegisters.Sized(Address, 4), shift));
            UnlessToHandler(Equal, site);
        }
        _a.OnRegisters(HostOperation.Compare, Address, Count);
        _a.Add(Instruction.Create(Code.Cmova_r64_rm64, Address, Count));
    }

    /// <summary>The lesser of <paramref name="left"/> and the bytes from an address to the end of its page.</summary>
    private void NearerEnd(Register left, Register scratch, Register address)
    {
        BytesLeft(scratch, address);
        _a.OnRegisters(HostOperation.Compare, scratch, left);
        _a.Add(Instruction.Create(Code.Cmovb_r64_rm64, left, scratch));
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
