using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>What translated code does about level 1 of the TLB without a call back.</summary>
/// <remarks>
/// SAFETY: the routines read and write entries of the processor's own level 1 and its second place, at masked offsets. They change no guest register, and no
/// host register but the three scratch ones.
/// </remarks>
internal static unsafe class TlbRoutines
{
    private const int TagRead = 0, TagWrite = 8, EntryShift = 5, EntryBytes = 1 << EntryShift;
    private const byte NotBelow = 3, Equal = 4, NotEqual = 5;

    private static readonly ExecutableMemory s_memory = new(4096);

    /// <summary>
    /// Jumped to with a site of kind <see cref="SiteKind.Miss"/> in <see cref="HostRegisters.Entry"/>, where the slow routine is: an entry that was displaced
    /// changes places with the one that displaced it, or one that was hidden comes back, and the access is repeated. Where the access cannot hit even so, its
    /// page is in the first place the second time, and the call back follows.
    /// </summary>
    public static readonly nint Miss;

    /// <summary>Called when <see cref="CpuState.LentPages"/> is not 0: <see cref="Tlb.TakeBack"/>.</summary>
    public static readonly nint TakeBack;

    /// <summary>Goes on behind the check of an access across two pages as if it had found CpuState.SplitEntry.</summary>
    public static readonly nint Split;

    static TlbRoutines()
    {
        const Register Address = HostRegisters.Address, Site = HostRegisters.Entry, Scratch = HostRegisters.Spare, First = Register.RAX, Second = Register.RDX;
        int second = Tlb.Level1Entries * EntryBytes;
        RegionAssembler a = new();
        a.Move(Scratch, Address);
        a.And64(Scratch, -4096);
        a.WithState(HostOperation.Or, Scratch, StateLayout.Context);
        a.Add(Instruction.Create(Code.Push_r64, First));
        a.Add(Instruction.Create(Code.Push_r64, Second));
        a.RotateRight(First, Address, 12 - EntryShift);
        a.And32(First, (Tlb.Level1Entries - 1) << EntryShift);
        a.Move32(Second, First);
        a.And32(Second, (Tlb.DisplacedEntries - 1) << EntryShift);
        a.WithTable(HostOperation.Compare, Scratch, Second, second + TagRead);
        int miss = a.Jump(NotEqual);
        for (int field = 0; field < EntryBytes; field += sizeof(ulong))
        {
            a.WithTable(HostOperation.Move, Scratch, First, field);
            a.WithTable(HostOperation.Move, Address, Second, second + field);
            a.StoreTable(First, field, Address);
            a.StoreTable(Second, second + field, Scratch);
        }
        a.Add(Instruction.Create(Code.Pop_r64, Second));
        a.Add(Instruction.Create(Code.Pop_r64, First));
        a.Add(Instruction.Create(Code.Jmp_rm64, HostAssembler.Memory(Site, sizeof(nint))));
        a.Bind(miss);
        // A page that was lent when RFLAGS.AC was set the last time. One that is in the first place does not permit the access.
        a.Add(Instruction.Create(Code.Test_rm32_imm32, RegionAssembler.State(StateLayout.Rflags), (uint)Rflags.AC));
        int taken = a.Jump(Equal);
        a.WithTable(HostOperation.Compare, Scratch, First, TagRead);
        int forbidden = a.Jump(Equal);
        a.Move(Address, Scratch);
        HiddenPlace(a, Scratch, Address, Second);
        a.WithTable(HostOperation.Compare, Address, Scratch, Hidden + TagRead);
        int absent = a.Jump(NotEqual);
        a.Add(Instruction.Create(Code.Mov_r32_rm32, HostRegisters.Sized(Second, 4), RegionAssembler.State(StateLayout.LentPages)));
        a.Add(Instruction.Create(Code.Cmp_rm32_imm8, HostRegisters.Sized(Second, 4), Tlb.MaxLent));
        int full = a.Jump(NotBelow);
        a.Add(Instruction.Create(Code.Mov_rm64_r64, LentTag(Second), Address));
        a.Add(Instruction.Create(Code.Inc_rm32, RegionAssembler.State(StateLayout.LentPages)));
        a.Move32(Second, First);
        a.And32(Second, (Tlb.DisplacedEntries - 1) << EntryShift);
        Copy(a, Second, second, First, 0, Address);
        Copy(a, First, 0, Scratch, Hidden, Address);
        Drop(a, Scratch, Hidden + TagRead);
        Drop(a, Scratch, Hidden + TagWrite);
        a.Add(Instruction.Create(Code.Pop_r64, Second));
        a.Add(Instruction.Create(Code.Pop_r64, First));
        a.Add(Instruction.Create(Code.Jmp_rm64, HostAssembler.Memory(Site, sizeof(nint))));
        foreach (int jump in (ReadOnlySpan<int>)[taken, forbidden, absent, full])
            a.Bind(jump);
        a.Add(Instruction.Create(Code.Pop_r64, Second));
        a.Add(Instruction.Create(Code.Pop_r64, First));
        a.JumpThroughState(StateLayout.SlowRoutine);
        Miss = s_memory.Add(a.Bytes);

        a.Clear();
        a.Load(Address, StateLayout.SplitLinear);
        a.Add(Instruction.Create(Code.Mov_rm64_imm32, Site, StateLayout.SplitEntry));
        a.OnRegisters(HostOperation.Compare, Address, Address);
        a.JumpThroughState(StateLayout.SplitResume);
        Split = s_memory.Add(a.Bytes);

        a.Clear();
        a.Add(Instruction.Create(Code.Push_r64, First));
        a.Add(Instruction.Create(Code.Push_r64, Second));
        a.Add(Instruction.Create(Code.Mov_r32_rm32, HostRegisters.Sized(First, 4), RegionAssembler.State(StateLayout.LentPages)));
        int again = a.Position;
        a.Add(Instruction.Create(Code.Dec_rm32, HostRegisters.Sized(First, 4)));
        a.Add(Instruction.Create(Code.Mov_r64_rm64, Address, LentTag(First)));
        Hide(a, Address, Site, Tlb.DisplacedEntries, second);
        Hide(a, Address, Site, Tlb.Level1Entries, 0);
        a.Add(Instruction.Create(Code.Test_rm32_r32, HostRegisters.Sized(First, 4), HostRegisters.Sized(First, 4)));
        a.Bind(a.Jump(NotEqual), again);
        a.StoreImmediate(StateLayout.LentPages, 0);
        a.Add(Instruction.Create(Code.Pop_r64, Second));
        a.Add(Instruction.Create(Code.Pop_r64, First));
        a.Add(Instruction.Create(Code.Retnq));
        TakeBack = s_memory.Add(a.Bytes);
    }

    private static int Hidden => (Tlb.Level1Entries + Tlb.DisplacedEntries) * EntryBytes;

    private static MemoryOperand LentTag(Register number) => new(HostRegisters.Base, number, 8, StateLayout.LentTags, 8);

    /// <summary>Offset of the place where an entry with <paramref name="tag"/> is hidden: Tlb.HiddenAt.</summary>
    private static void HiddenPlace(RegionAssembler a, Register to, Register tag, Register scratch)
    {
        a.RotateRight(to, tag, 12 - EntryShift);
        a.Move32(scratch, tag);
        a.ShiftLeft32(scratch, EntryShift);
        a.OnRegisters(HostOperation.Add, to, scratch);
        a.And32(to, (Tlb.HiddenEntries - 1) << EntryShift);
    }

    private static void Copy(RegionAssembler a, Register to, int table, Register from, int fromTable, Register scratch)
    {
        for (int field = 0; field < EntryBytes; field += sizeof(ulong))
        {
            a.WithTable(HostOperation.Move, scratch, from, fromTable + field);
            a.StoreTable(to, table + field, scratch);
        }
    }

    private static void Drop(RegionAssembler a, Register offset, int field) =>
        a.Add(Instruction.Create(Code.Or_rm64_imm8, new MemoryOperand(HostRegisters.Base, offset, 1, field, 8), -1));

    /// <summary>Hides an entry where it has the tag, and makes both of its tags invalid.</summary>
    private static void Hide(RegionAssembler a, Register tag, Register offset, int entries, int table)
    {
        const Register Place = HostRegisters.Spare, Scratch = Register.RDX;
        a.RotateRight(offset, tag, 12 - EntryShift);
        a.And32(offset, (entries - 1) << EntryShift);
        a.WithTable(HostOperation.Compare, tag, offset, table + TagRead);
        int unread = a.Jump(NotEqual);
        HiddenPlace(a, Place, tag, Scratch);
        Copy(a, Place, Hidden, offset, table, Scratch);
        Drop(a, offset, table + TagRead);
        a.Bind(unread);
        a.WithTable(HostOperation.Compare, tag, offset, table + TagWrite);
        int unwritten = a.Jump(NotEqual);
        Drop(a, offset, table + TagWrite);
        a.Bind(unwritten);
    }
}
