using Iced.Intel;
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
    private const byte NotEqual = 5;

    private static readonly ExecutableMemory s_memory = new(4096);

    /// <summary>
    /// Jumped to with a site of kind <see cref="SiteKind.Miss"/> in <see cref="HostRegisters.Entry"/>, where the slow routine is: an entry that was displaced
    /// changes places with the one that displaced it, and the access is repeated. Where the access cannot hit even so, its page is in the first place the
    /// second time, and the call back follows.
    /// </summary>
    public static readonly nint Miss;

    /// <summary>Called when <see cref="CpuState.LentPages"/> is not 0: <see cref="Tlb.TakeBack"/>.</summary>
    public static readonly nint TakeBack;

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
        a.Add(Instruction.Create(Code.Pop_r64, Second));
        a.Add(Instruction.Create(Code.Pop_r64, First));
        a.JumpThroughState(StateLayout.SlowRoutine);
        Miss = s_memory.Add(a.Bytes);

        a.Clear();
        a.Add(Instruction.Create(Code.Mov_r32_rm32, HostRegisters.Sized(Scratch, 4), RegionAssembler.State(StateLayout.LentPages)));
        int again = a.Position;
        a.Add(Instruction.Create(Code.Dec_rm32, HostRegisters.Sized(Scratch, 4)));
        a.Add(Instruction.Create(Code.Mov_r64_rm64, Address, new MemoryOperand(HostRegisters.Base, Scratch, 8, StateLayout.LentTags, 8)));
        Invalidate(a, Address, Site, Tlb.Level1Entries, 0);
        Invalidate(a, Address, Site, Tlb.DisplacedEntries, second);
        a.Add(Instruction.Create(Code.Test_rm32_r32, HostRegisters.Sized(Scratch, 4), HostRegisters.Sized(Scratch, 4)));
        a.Bind(a.Jump(NotEqual), again);
        a.StoreImmediate(StateLayout.LentPages, 0);
        a.Add(Instruction.Create(Code.Retnq));
        TakeBack = s_memory.Add(a.Bytes);
    }

    /// <summary>Makes both tags of an entry invalid where they are <paramref name="tag"/>.</summary>
    private static void Invalidate(RegionAssembler a, Register tag, Register offset, int entries, int table)
    {
        a.RotateRight(offset, tag, 12 - EntryShift);
        a.And32(offset, (entries - 1) << EntryShift);
        foreach (int field in (ReadOnlySpan<int>)[TagRead, TagWrite])
        {
            a.WithTable(HostOperation.Compare, tag, offset, table + field);
            int other = a.Jump(NotEqual);
            a.Add(Instruction.Create(Code.Or_rm64_imm8, new MemoryOperand(HostRegisters.Base, offset, 1, table + field, 8), -1));
            a.Bind(other);
        }
    }
}
