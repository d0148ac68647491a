using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

// SYSCALL, SYSRET and IRET of 64-bit code between the kernel and itself or 64-bit programs. What is not common is the handler's, before anything has changed.
// SAFETY: writes only to the assembler; the frame and descriptors are read behind checks as in RegionBuilder.Memory.cs. Slots of the frame hold values between
// the checks and the changes: no window is open, because these instructions end them all.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>Slots: an IRET's frame from RIP to SS; or of SYSCALL, what becomes R11 and RFLAGS. Then the contexts of accesses and of fetches.</summary>
    private const int RipSlot = 0, CsSlot = 1, FlagsSlot = 2, RspSlot = 3, SsSlot = 4, FrameWords = 5, ImageSlot = 0, ContextSlot = 5, CodeContextSlot = 6;

    /// <summary>Flags with which more depends on a change of RFLAGS than where interrupts are taken.</summary>
    private const ulong UnusualFlags = Rflags.TF | Rflags.RF | Rflags.VM | Rflags.AC | Rflags.VIF | Rflags.VIP;

    private const Register Address = HostRegisters.Address, Entry = HostRegisters.Entry, Spare = HostRegisters.Spare;
    private static readonly Register s_entry4 = HostRegisters.Sized(Entry, 4), s_spare4 = HostRegisters.Sized(Spare, 4);

    private void EmitTransition(Trace t, int i, in GuestInstruction g)
    {
        int site = AddSite(SiteAt(SiteKind.Call, t, i));
        switch (g.Code.Code)
        {
            case Code.Syscall:
                EmitSyscall(site, g.Next);
                break;
            case Code.Sysretq:
                EmitSysret(site);
                break;
            default:
                EmitInterruptReturn(t, i, site);
                break;
        }
        StoreFlags();
        EmitJump(new Site { Kind = SiteKind.Jump, PageOffset = -1 });
    }

    private void EmitSyscall(int site, int next)
    {
        NeedHostFlags(Spare);
        _a.Add(Instruction.Create(Code.Pushfq));
        _a.Add(Instruction.Create(Code.Pop_r64, Spare));
        _hostFlags = false;
        _a.Add(Instruction.Create(Code.And_rm32_imm32, s_spare4, (uint)Rflags.Status));
        _a.Add(Instruction.Create(Code.Or_r32_rm32, s_spare4, RegionAssembler.State(StateLayout.Rflags)));
        Unless(Spare, Rflags.TF | Rflags.RF, site);
        _a.StoreSlot(ImageSlot, Spare);
        _a.Add(Instruction.Create(Code.Mov_r32_rm32, s_entry4, RegionAssembler.State(StateLayout.Sfmask)));
        _a.Add(Instruction.Create(Code.Not_rm32, s_entry4));
        _a.Add(Instruction.Create(Code.And_r32_rm32, s_spare4, s_entry4));
        Unless(Spare, Rflags.AC, site);
        _a.StoreSlot(FlagsSlot, Spare);
        FastCallsEnabled(site);
        _a.Load(Address, StateLayout.Lstar);
        Canonical(site);
        KernelContexts(site);

        _a.Load(Register.RCX, StateLayout.CodeBase);
        _a.Lea(Register.RCX, Register.RCX, next);
        _a.LoadSlot(Spare, ImageSlot);
        _a.Store(StateLayout.Gpr(11), Spare);
        _a.Add(Instruction.Create(Code.Mov_r32_rm32, s_spare4, RegionAssembler.State(StateLayout.Star + 4)));
        _a.And32(Spare, 0xfffc);
        StoreFlat(SegmentIndex.CS, FastCalls.KernelCode64, 0, 0);
        StoreFlat(SegmentIndex.SS, FastCalls.KernelData, 8, 0);
        _a.StoreImmediate(StateLayout.Cpl, 0);
        StoreContexts(true);
        LoadFlags();
    }

    private void EmitSysret(int site)
    {
        KernelOnly(site);
        FastCallsEnabled(site);
        _a.Load(Spare, StateLayout.Gpr(11));
        _a.And32(Spare, (int)FastCalls.SysretFlags);
        UsualFlags(site);
        _a.StoreSlot(FlagsSlot, Spare);
        _a.Move(Address, Register.RCX);
        Canonical(site);
        UserContext(site);

        _a.Add(Instruction.Create(Code.Movzx_r32_rm16, s_spare4, RegionAssembler.State(StateLayout.Star + 6)));
        StoreFlat(SegmentIndex.CS, FastCalls.UserCode64, 16, 3);
        StoreFlat(SegmentIndex.SS, FastCalls.UserData, 8, 3);
        _a.StoreImmediate(StateLayout.Cpl, 3);
        StoreContexts(false);
        LoadFlags();
    }

    /// <summary>IRET. What CS and SS lead to in the GDT is compared with what they led to the last time that the handler loaded them.</summary>
    private void EmitInterruptReturn(Trace t, int i, int site)
    {
        const ulong Loaded = Rflags.Status | Rflags.DF | Rflags.NT | Rflags.ID | Rflags.IF | Rflags.IOPL;
        KernelOnly(site);
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.NT));
        UnlessToHandler(NotEqual, site);
        _a.Add(Instruction.Create(Code.Cmp_rm8_imm8, RegionAssembler.State(StateLayout.CodeBreakpoints), 0));
        UnlessToHandler(NotEqual, site);
        _a.Add(Instruction.Create(Code.Cmp_rm8_imm8, RegionAssembler.State(StateLayout.RequestNmiWindow), 0));
        UnlessToHandler(NotEqual, site);
        int miss = MissSite(t, i, AccessForm.Pop, FrameWords * sizeof(long), false);
        _a.Move(Address, Stack);
        EmitCheck(FrameWords * sizeof(long), false, miss);
        for (int n = 0; n < FrameWords; n++)
        {
            if (n != 0)
                FaultsTo(miss);
            _a.Add(Instruction.Create(Code.Mov_r64_rm64, Spare, HostAssembler.Memory(Address, sizeof(long) * n)));
            _a.StoreSlot(n, Spare);
        }
        _a.LoadSlot(Spare, FlagsSlot);
        // RF means nothing without instruction breakpoints.
        _a.Add(Instruction.Create(Code.And_rm32_imm32, s_spare4, ~(uint)Rflags.RF));
        UsualFlags(site);
        _a.And32(Spare, (int)Loaded);
        _a.StoreSlot(FlagsSlot, Spare);
        _a.LoadSlot(Address, RipSlot);
        Canonical(site);
        _a.LoadSlot(Spare, CsSlot);
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, s_spare4, 3u));
        int outer = _a.Jump(NotEqual);
        ToKernel(site);
        int done = _a.Jump();
        _a.Bind(outer);
        ToUser(site);
        _a.Bind(done);
        _a.Add(Instruction.Create(Code.Mov_rm8_imm8, RegionAssembler.State(StateLayout.NmiBlocked), 0u));
        LoadFlags();
        _a.LoadSlot(Stack, RspSlot);
        _a.LoadSlot(Address, RipSlot);
    }

    private void ToKernel(int site)
    {
        IsDescriptor(CsSlot, StateLayout.KernelCode, site);
        _a.LoadSlot(Spare, SsSlot);
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, s_spare4, 0xffffu));
        int none = _a.Jump(Equal);
        IsDescriptor(SsSlot, StateLayout.KernelStack, site);
        StoreReturned(SegmentIndex.SS, StateLayout.KernelStack);
        int loaded = _a.Jump();
        _a.Bind(none);
        _a.Immediate(Spare, 0);
        _a.Add(Instruction.Create(Code.Mov_rm16_r16, RegionAssembler.State(SelectorOf(SegmentIndex.SS)), HostRegisters.Sized(Spare, 2)));
        StoreHidden(SegmentIndex.SS, 0, Segment.Unusable);
        _a.Bind(loaded);
        StoreReturned(SegmentIndex.CS, StateLayout.KernelCode);
    }

    private void ToUser(int site)
    {
        const uint Kept = Segment.DplMask;
        IsDescriptor(CsSlot, StateLayout.UserCode, site);
        IsDescriptor(SsSlot, StateLayout.UserStack, site);
        foreach (int segment in (ReadOnlySpan<int>)[SegmentIndex.ES, SegmentIndex.DS, SegmentIndex.FS, SegmentIndex.GS])
        {
            // None that the outer level may not use: it has DPL 3 or is unusable.
            _a.Add(Instruction.Create(Code.Mov_r32_rm32, s_spare4, RegionAssembler.State(SelectorOf(segment) - sizeof(uint))));
            _a.And32(Spare, (int)(Segment.DplMask | Segment.Unusable));
            _a.Add(Instruction.Create(Code.Cmp_rm32_imm8, s_spare4, (int)Kept));
            UnlessToHandler(Below, site);
        }
        UserContext(site);
        StoreReturned(SegmentIndex.CS, StateLayout.UserCode);
        StoreReturned(SegmentIndex.SS, StateLayout.UserStack);
        _a.StoreImmediate(StateLayout.Cpl, 3);
        StoreContexts(false);
    }

    // ---- Checks ----

    /// <summary>Leaves the rest to the handler when one of the flags is set in a register.</summary>
    private void Unless(Register register, ulong flags, int site)
    {
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, HostRegisters.Sized(register, 4), (uint)flags));
        UnlessToHandler(NotEqual, site);
    }

    /// <summary>Neither RFLAGS nor the flags to be loaded, in the spare register, are unusual; no interrupt waits that these would let in.</summary>
    private void UsualFlags(int site)
    {
        Unless(Spare, UnusualFlags, site);
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)UnusualFlags));
        UnlessToHandler(NotEqual, site);
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, s_spare4, (uint)Rflags.IF));
        int disabled = _a.Jump(Equal);
        NobodyWaits(site);
        _a.Bind(disabled);
    }

    private void FastCallsEnabled(int site)
    {
        _a.Add(Instruction.Create(Code.Test_rm8_imm8, RegionAssembler.State(StateLayout.Efer), (uint)Efer.SCE));
        UnlessToHandler(Equal, site);
    }

    /// <summary>The target in the address register is canonical with 48 bits.</summary>
    private void Canonical(int site)
    {
        _a.Move(Spare, Address);
        _a.Add(Instruction.Create(Code.Shl_rm64_imm8, Spare, 16));
        _a.Add(Instruction.Create(Code.Sar_rm64_imm8, Spare, 16));
        _a.OnRegisters(HostOperation.Compare, Spare, Address);
        UnlessToHandler(NotEqual, site);
    }

    /// <summary>The selector in a slot is the noted one (<see cref="ReturnSegment"/>), and so is its descriptor. The address register is lost.</summary>
    private void IsDescriptor(int slot, int noted, int site)
    {
        _a.Add(Instruction.Create(Code.Movzx_r32_rm16, s_spare4, RegionAssembler.State(ProcessorMemory.Slot(slot))));
        _a.Lea(Entry, Spare, 1, 4);
        _a.Add(Instruction.Create(Code.Cmp_r32_rm32, s_entry4, RegionAssembler.State(noted + sizeof(ulong))));
        UnlessToHandler(NotEqual, site);
        _a.And32(Spare, 0xfff8);
        _a.Lea(Entry, Spare, sizeof(ulong) - 1, 4);
        _a.Add(Instruction.Create(Code.Cmp_r32_rm32, s_entry4, RegionAssembler.State(StateLayout.GdtLimit)));
        UnlessToHandler(Above, site);
        _a.Load(Address, StateLayout.GdtBase);
        _a.OnRegisters(HostOperation.Add, Address, Spare);
        // AC is clear, so the supervisor's context is that of the processor's own accesses.
        BeginCheck(sizeof(ulong), false);
        UnlessToHandler(NotEqual, site);
        _a.WithEntry(HostOperation.Add, Address, AddendOffset);
        _a.LoadFrom(Spare, Address);
        _a.WithState(HostOperation.Compare, Spare, noted);
        UnlessToHandler(NotEqual, site);
    }

    /// <summary>The number of a context of the current space into the spare register, if it has one.</summary>
    private void Context(PrivilegeClass privilege, int site)
    {
        _a.Load(Spare, Tlb.CurrentSpaceOffset);
        _a.Add(Instruction.Create(Code.Movzx_r32_rm16, s_spare4, HostAssembler.Memory(Spare, Tlb.ContextOffset(privilege))));
        HasNumber(site);
        _a.StoreSlot(ContextSlot, Spare);
    }

    private void HasNumber(int site)
    {
        _a.Add(Instruction.Create(Code.Test_rm32_r32, s_spare4, s_spare4));
        UnlessToHandler(Equal, site);
    }

    private void UserContext(int site) => Context(PrivilegeClass.User, site);

    /// <summary>As PagingUnit.UpdatePrivilege, as long as both numbers exist.</summary>
    private void KernelContexts(int site)
    {
        Context(PrivilegeClass.Supervisor, site);
        _a.Load(Entry, Tlb.CurrentAsidOffset);
        _a.Add(Instruction.Create(Code.Cmp_rm8_imm8, HostAssembler.Memory(Entry, Tlb.LocalCodeOffset), 0));
        int local = _a.Jump(NotEqual);
        _a.Add(Instruction.Create(Code.Movzx_r32_rm16, s_spare4, HostAssembler.Memory(Entry, Tlb.CodeContextOffset)));
        HasNumber(site);
        _a.Bind(local);
        _a.StoreSlot(CodeContextSlot, Spare);
    }

    // ---- Changes ----

    /// <summary>The contexts in the slots, and what jumps look for with them: see Translator.TrackContext.</summary>
    private void StoreContexts(bool kernel)
    {
        _a.LoadSlot(Spare, ContextSlot);
        _a.Store(StateLayout.Context, Spare);
        if (kernel)
            _a.LoadSlot(Spare, CodeContextSlot);
        _a.Store(StateLayout.CodeContext, Spare);
        _a.Add(Instruction.Create(Code.Imul_r32_rm32_imm32, s_entry4, s_spare4, ProcessorMemory.JumpFactor));
        _a.Store(StateLayout.JumpSalt, Entry);
        _a.WithState(HostOperation.Or, Spare, StateLayout.JumpKey);
        _a.Store(StateLayout.JumpContext, Spare);
    }

    private static int SelectorOf(int segment) => StateLayout.Selectors + segment * sizeof(Segment);

    /// <summary>A flat segment with the selector in the spare register, which stays, plus a number, joined with a privilege level.</summary>
    private void StoreFlat(int segment, uint access, int plus, int level)
    {
        _a.Lea(Entry, Spare, plus, 4);
        if (level != 0)
            _a.Add(Instruction.Create(Code.Or_rm32_imm8, s_entry4, level));
        _a.Add(Instruction.Create(Code.Mov_rm16_r16, RegionAssembler.State(SelectorOf(segment)), HostRegisters.Sized(Entry, 2)));
        StoreHidden(segment, uint.MaxValue, access);
    }

    /// <summary>Base 0, a limit, and access rights.</summary>
    private void StoreHidden(int segment, uint limit, uint access)
    {
        int selector = SelectorOf(segment);
        _a.Add(Instruction.Create(Code.Mov_rm64_imm32, RegionAssembler.State(selector - sizeof(ulong) - sizeof(ulong)), 0));
        _a.StoreImmediate(selector - sizeof(ulong), limit);
        _a.StoreImmediate(selector - sizeof(uint), access);
    }

    private void StoreReturned(int segment, int noted)
    {
        int from = noted + sizeof(ulong) + sizeof(ulong), to = SelectorOf(segment) - sizeof(ulong) - sizeof(ulong);
        for (int n = 0; n < sizeof(Segment); n += sizeof(ulong))
        {
            _a.Load(Spare, from + n);
            _a.Store(to + n, Spare);
        }
    }

    /// <summary>RFLAGS from its slot: the status flags as packed ones, the others into the state.</summary>
    private void LoadFlags()
    {
        _a.LoadSlot(Spare, FlagsSlot);
        _a.Move32(Entry, Spare);
        _a.And32(Entry, ~(int)Rflags.Status);
        _a.Add(Instruction.Create(Code.Or_rm32_imm8, s_entry4, (int)Rflags.Fixed1));
        _a.Store(StateLayout.Rflags, Entry);
        PackImage(Spare, Entry);
    }

    /// <summary>The status flags of an image of RFLAGS as packed ones. Both registers are lost.</summary>
    private void PackImage(Register image, Register scratch)
    {
        Register image4 = HostRegisters.Sized(image, 4), scratch4 = HostRegisters.Sized(scratch, 4);
        _a.Move32(scratch, image);
        _a.ShiftLeft32(scratch, 8);
        _a.Add(Instruction.Create(Code.Shr_rm32_imm8, image4, 11));
        _a.Add(Instruction.Create(Code.And_rm32_imm8, image4, 1));
        _a.Add(Instruction.Create(Code.Or_r32_rm32, scratch4, image4));
        _a.Add(Instruction.Create(Code.Mov_rm16_r16, RegionAssembler.State(StateLayout.CcA), HostRegisters.Sized(scratch, 2)));
        _flags = s_packed;
    }
}
