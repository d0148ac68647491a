using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

// Instructions about flags, interrupts and time, where they change nothing that translated code depends on; their handlers do the rest.
// SAFETY: writes only to the assembler.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>The instruction before was STI, which may have set the shadow: it ends with this one.</summary>
    private bool _inShadow;

    private void EmitSystem(Trace t, int i, in GuestInstruction g)
    {
        switch (g.Code.Code)
        {
            case Code.Pushfq or Code.Pushfd:
                EmitPushFlags(t, i, g);
                break;
            case Code.Popfq or Code.Popfd:
                EmitPopFlags(t, i);
                break;
            case Code.Cli:
                KernelOnly(AddSite(SiteAt(SiteKind.Call, t, i)));
                _a.Add(Instruction.Create(Code.And_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), ~(uint)Rflags.IF));
                break;
            case Code.Sti:
                EmitSti(t, i);
                break;
            case Code.Cld:
                _a.Add(Instruction.Create(Code.And_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), ~(uint)Rflags.DF));
                break;
            case Code.Std:
                _a.Add(Instruction.Create(Code.Or_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.DF));
                break;
            case Code.Stac or Code.Clac:
                EmitUserAccess(t, i, g.Code.Code == Code.Stac);
                break;
            case Code.Swapgs:
                int site = AddSite(SiteAt(SiteKind.Call, t, i));
                KernelOnly(site);
                _a.Load(HostRegisters.Spare, StateLayout.GsBase);
                _a.Load(HostRegisters.Address, StateLayout.KernelGsBase);
                _a.Store(StateLayout.GsBase, HostRegisters.Address);
                _a.Store(StateLayout.KernelGsBase, HostRegisters.Spare);
                HandlersReturn(site);
                break;
            case Code.Rdtsc:
                EmitTimeStamp(t, i, false);
                break;
            case Code.Rdtscp:
                EmitTimeStamp(t, i, true);
                break;
            case Code.Rdfsbase_r32 or Code.Rdfsbase_r64 or Code.Rdgsbase_r32 or Code.Rdgsbase_r64:
                EmitReadBase(t, i, g.Code);
                break;
            case Code.Wrfsbase_r32 or Code.Wrfsbase_r64 or Code.Wrgsbase_r32 or Code.Wrgsbase_r64:
                EmitWriteBase(t, i, g.Code);
                break;
            case Code.Rdpkru:
                EmitReadKeyRights(AddSite(SiteAt(SiteKind.Call, t, i)));
                break;
            case Code.Mov_rm16_Sreg when g.Memory:
                EmitStoreSelector(t, i, g);
                break;
            case Code.Mov_r64_cr:
                EmitReadControl(t, i, g.Code);
                break;
            case Code.Mfence:
                _a.Add(Instruction.Create(Code.Mfence));
                return;
            default:
                EmitSelector(g.Code);
                return;
        }
        _hostFlags = false;
    }

    /// <summary>Leaves the rest to the handler unless CPL is 0. Flags are lost.</summary>
    private void KernelOnly(int site)
    {
        _a.Add(Instruction.Create(Code.Cmp_rm32_imm8, RegionAssembler.State(StateLayout.Cpl), 0));
        UnlessToHandler(NotEqual, site);
    }

    /// <summary>STAC and CLAC. Level 1 is the same with RFLAGS.AC and without, but for the entries that CLAC takes back.</summary>
    private void EmitUserAccess(Trace t, int i, bool on)
    {
        int site = AddSite(SiteAt(SiteKind.Call, t, i));
        if (!identity.Features.Smap)
        {
            CallSite(site);
            _resumes.Add((site, _a.Position));
            return;
        }
        KernelOnly(site);
        if (on)
        {
            _a.Add(Instruction.Create(Code.Or_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.AC));
        }
        else
        {
            _a.CompareStateWithZero(StateLayout.LentPages, false);
            int none = _a.Jump(Equal);
            _a.Add(Instruction.Create(Code.Call_rm64, RegionAssembler.State(StateLayout.TakeBackRoutine)));
            _a.Bind(none);
            _a.Add(Instruction.Create(Code.And_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), ~(uint)Rflags.AC));
        }
        HandlersReturn(site);
    }

    /// <summary>Outside virtual-8086 mode PUSHF has no conditions.</summary>
    private void EmitPushFlags(Trace t, int i, in GuestInstruction g)
    {
        Register spare = HostRegisters.Spare;
        NeedHostFlags(spare);
        _a.Add(Instruction.Create(Code.Pushfq));
        _a.Add(Instruction.Create(Code.Pop_r64, spare));
        _a.Add(Instruction.Create(Code.And_rm32_imm32, HostRegisters.Sized(spare, 4), (uint)Rflags.Status));
        _a.Add(Instruction.Create(Code.Or_r64_rm64, spare, RegionAssembler.State(StateLayout.Rflags)));
        _a.Add(Instruction.Create(Code.And_rm64_imm32, spare, ~(int)(Rflags.RF | Rflags.VM)));
        _hostFlags = false;
        PushSpare(t, i, g);
    }

    /// <summary>POPF that changes the status flags only, and IF in the kernel when nobody waits for it.</summary>
    private void EmitPopFlags(Trace t, int i)
    {
        const uint Other = (uint)(Rflags.TF | Rflags.DF | Rflags.NT | Rflags.AC | Rflags.ID | Rflags.IOPL | Rflags.RF | Rflags.IF);
        Register image = HostRegisters.Spare, change = HostRegisters.Address;
        Register image4 = HostRegisters.Sized(image, 4), change4 = HostRegisters.Sized(change, 4);
        int miss = MissSite(t, i, AccessForm.Pop, _word, false), site = AddSite(SiteAt(SiteKind.Call, t, i));
        MoveAddress(HostRegisters.Address, Stack);
        EmitCheck(_word, false, miss);
        EmitLoad(_word);
        _a.Move(change, image);
        _a.Add(Instruction.Create(Code.Xor_r32_rm32, change4, RegionAssembler.State(StateLayout.Rflags)));
        _a.Add(Instruction.Create(Code.And_rm32_imm32, change4, Other));
        int same = _a.Jump(Equal);
        _a.Add(Instruction.Create(Code.Cmp_rm32_imm32, change4, (uint)Rflags.IF));
        UnlessToHandler(NotEqual, site);
        KernelOnly(site);
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, image4, (uint)Rflags.IF));
        int disables = _a.Jump(Equal);
        NobodyWaits(site);
        _a.Bind(disables);
        _a.Add(Instruction.Create(Code.Xor_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.IF));
        _a.Bind(same);
        PackImage(image, change);
        _a.Lea(Stack, Stack, _word, _word);
    }

    /// <summary>Leaves the rest to the handler when an interrupt is to be taken as soon as it can.</summary>
    private void NobodyWaits(int site)
    {
        _a.Add(Instruction.Create(Code.Cmp_rm8_imm8, RegionAssembler.State(StateLayout.RequestInterruptWindow), 0));
        UnlessToHandler(NotEqual, site);
    }

    /// <summary>STI. Its shadow is in the state while the next instruction runs: whoever leaves there finds it.</summary>
    private void EmitSti(Trace t, int i)
    {
        int site = AddSite(SiteAt(SiteKind.Call, t, i));
        bool goesOn = i + 1 < t.Instructions.Count && t.Instructions[i + 1].Lowering is Lowering.Plain or Lowering.Vector or Lowering.Nothing or Lowering.Push
            or Lowering.Pop or Lowering.Leave or Lowering.Jump or Lowering.JumpIndirect or Lowering.Call or Lowering.CallIndirect or Lowering.Return;
        if (!goesOn)
        {
            CallSite(site);
            return;
        }
        KernelOnly(site);
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.IF));
        int enabled = _a.Jump(NotEqual);
        NobodyWaits(site);
        _a.Add(Instruction.Create(Code.Or_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.IF));
        Shadow(1);
        _a.Bind(enabled);
        _inShadow = true;
    }

    private void EndShadow()
    {
        if (_inShadow)
            Shadow(0);
        _inShadow = false;
    }

    private void Shadow(uint value) => _a.Add(Instruction.Create(Code.Mov_rm8_imm8, RegionAssembler.State(StateLayout.InterruptShadow), value));

    /// <summary>RDTSC and RDTSCP where the guest may read it, at the host's frequency.</summary>
    private void EmitTimeStamp(Trace t, int i, bool processor)
    {
        int site = AddSite(SiteAt(SiteKind.Call, t, i));
        if (IsObserved || processor && !identity.Features.Rdtscp)
        {
            CallSite(site);
            _resumes.Add((site, _a.Position));
            return;
        }
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, RegionAssembler.State(StateLayout.Cr4), (uint)Cr4.TSD));
        UnlessToHandler(NotEqual, site);
        _a.Immediate(HostRegisters.Spare, GuestTsc.Unscaled);
        _a.Add(Instruction.Create(Code.Cmp_r64_rm64, HostRegisters.Spare, RegionAssembler.State(StateLayout.TscMultiplier)));
        UnlessToHandler(NotEqual, site);
        // After the guest's earlier loads.
        _a.Add(Instruction.Create(Code.Lfence));
        _a.Add(Instruction.Create(Code.Rdtsc));
        _a.Add(Instruction.Create(Code.Shl_rm64_imm8, Register.RDX, 32));
        _a.Add(Instruction.Create(Code.Or_r64_rm64, Register.RDX, Register.RAX));
        _a.Add(Instruction.Create(Code.Add_r64_rm64, Register.RDX, RegionAssembler.State(StateLayout.TscOffset)));
        _a.Add(Instruction.Create(Code.Mov_r32_rm32, Register.EAX, Register.EDX));
        _a.Add(Instruction.Create(Code.Shr_rm64_imm8, Register.RDX, 32));
        if (processor)
            _a.Add(Instruction.Create(Code.Mov_r32_rm32, Register.ECX, RegionAssembler.State(StateLayout.TscAux)));
        HandlersReturn(site);
    }

    /// <summary>MOV from CR2, which page faults read, and from others by their handler.</summary>
    private void EmitReadControl(Trace t, int i, in Instruction code)
    {
        int site = AddSite(SiteAt(SiteKind.Call, t, i)), guest = Guest(code.Op0Register);
        if (code.Op1Register != Register.CR2)
        {
            CallSite(site);
            _resumes.Add((site, _a.Position));
            return;
        }
        KernelOnly(site);
        Register home = HostRegisters.HomeOf(guest), to = home != Register.None ? home : HostRegisters.Spare;
        _a.Load(to, StateLayout.Cr2);
        if (home == Register.None)
            _a.Store(StateLayout.Gpr(guest), to);
        HandlersReturn(site);
    }

    /// <summary>MOV from a segment register to a general one. Changes no flag.</summary>
    private void EmitSelector(in Instruction code)
    {
        int guest = Guest(code.Op0Register);
        Register home = HostRegisters.HomeOf(guest), to = home != Register.None ? home : HostRegisters.Spare;
        if (code.Op0Register.GetSize() == sizeof(ushort))
        {
            LoadSelector(code.Op1Register, HostRegisters.Spare);
            Register spare2 = HostRegisters.Sized(HostRegisters.Spare, sizeof(ushort));
            _a.Add(home != Register.None ? Instruction.Create(Code.Mov_rm16_r16, HostRegisters.Sized(home, sizeof(ushort)), spare2)
                : Instruction.Create(Code.Mov_rm16_r16, RegionAssembler.State(StateLayout.Gpr(guest)), spare2));
            return;
        }
        LoadSelector(code.Op1Register, to);
        if (home == Register.None)
            _a.Store(StateLayout.Gpr(guest), to);
    }

    private void LoadSelector(Register segment, Register to) => _a.Add(Instruction.Create(Code.Movzx_r32_rm16, HostRegisters.Sized(to, 4),
        RegionAssembler.State(StateLayout.Selectors + (segment - Register.ES) * sizeof(Segment))));

    private void EmitStoreSelector(Trace t, int i, in GuestInstruction g)
    {
        const int Size = sizeof(ushort);
        int miss = MissSite(t, i, AccessForm.Operand, Size, true);
        EmitAddress(g.Code, HostRegisters.Address, true);
        BeginCheck(Size, true);
        LoadSelector(g.Code.Op1Register, HostRegisters.Spare);
        EndCheck(miss);
        _a.Add(Instruction.Create(Code.Mov_rm16_r16, new MemoryOperand(HostRegisters.Address), HostRegisters.Sized(HostRegisters.Spare, Size)));
        EmitCodeCheck(t, i, Size, g.Next);
    }

    private static int BaseOf(in Instruction code) =>
        code.Mnemonic is Mnemonic.Rdfsbase or Mnemonic.Wrfsbase ? StateLayout.FsBase : StateLayout.GsBase;

    /// <summary>RDFSBASE and RDGSBASE.</summary>
    private void EmitReadBase(Trace t, int i, in Instruction code)
    {
        int site = AddSite(SiteAt(SiteKind.Call, t, i)), guest = Guest(code.Op0Register);
        UnlessEnabled(Cr4.FSGSBASE, site);
        Register home = HostRegisters.HomeOf(guest), to = home != Register.None ? home : HostRegisters.Spare;
        _a.Load(to, BaseOf(code));
        if (code.Op0Register.GetSize() == 4)
            _a.Move32(to, to);
        if (home == Register.None)
            _a.Store(StateLayout.Gpr(guest), to);
        HandlersReturn(site);
    }

    /// <summary>WRFSBASE and WRGSBASE of what is canonical with 48 bits.</summary>
    private void EmitWriteBase(Trace t, int i, in Instruction code)
    {
        int site = AddSite(SiteAt(SiteKind.Call, t, i)), guest = Guest(code.Op0Register);
        UnlessEnabled(Cr4.FSGSBASE, site);
        Register home = HostRegisters.HomeOf(guest);
        if (home == Register.None)
            _a.Load(Address, StateLayout.Gpr(guest));
        else
            _a.Move(Address, home);
        if (code.Op0Register.GetSize() == 4)
            _a.Move32(Address, Address);
        else
            Canonical(site);
        _a.Store(BaseOf(code), Address);
        HandlersReturn(site);
    }

    /// <summary>RDPKRU.</summary>
    private void EmitReadKeyRights(int site)
    {
        UnlessEnabled(Cr4.PKE, site);
        _a.Add(Instruction.Create(Code.Test_rm32_r32, Register.ECX, Register.ECX));
        UnlessToHandler(NotEqual, site);
        _a.Add(Instruction.Create(Code.Mov_r32_rm32, Register.EAX, RegionAssembler.State(StateLayout.Pkru)));
        _a.Immediate(Register.RDX, 0);
        HandlersReturn(site);
    }

    /// <summary>Leaves the rest to the handler when a bit of CR4 is clear. Flags are lost.</summary>
    private void UnlessEnabled(ulong bit, int site)
    {
        _a.Add(Instruction.Create(Code.Test_rm32_imm32, RegionAssembler.State(StateLayout.Cr4), (uint)bit));
        UnlessToHandler(Equal, site);
    }
}
