using System.Runtime.InteropServices;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

// Accesses to guest memory: the level-1 check in front, the check for overwritten code behind.
// SAFETY: the emitted access is reached only when the tag matched, as in LogicalProcessor.ReadPtr and WritePtr; a store is followed by the look of EndWrite.
// Locked accesses are checked for the line before.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>Where an instruction goes on, when that is in CpuState.Rip.</summary>
    public const int AtRip = int.MinValue;

    private const int TagReadOffset = 0, TagWriteOffset = 8, AddendOffset = 16, CodeBitsOffset = 24, EntryShift = 5;

    /// <summary>
    /// Effective address of the memory operand, with its segment's base, into a register. With <paramref name="cut"/>, its low 32 bits alone. Flags are lost
    /// when a segment has a base.
    /// </summary>
    private void EmitAddress(in Instruction i, Register to, bool segment, Register bitIndex = Register.None, bool cut = false)
    {
        bool bare = i.MemoryBase == Register.None && i.MemoryIndex == Register.None;
        bool word = i.MemoryBase.GetSize() == 2 || i.MemoryIndex.GetSize() == 2 || bare && i.MemoryDisplSize == 2;
        bool narrow = cut || i.MemoryBase.GetSize() == 4 || i.MemoryIndex.GetSize() == 4 || bare && i.MemoryDisplSize == 4;
        if (i.MemoryBase is Register.RIP or Register.EIP)
        {
            _a.Load(to, StateLayout.CodeBase);
            _a.Lea(to, to, (long)i.MemoryDisplacement64);
        }
        else
        {
            Register b = AddressPart(i.MemoryBase, to), x = AddressPart(i.MemoryIndex, HostRegisters.Entry);
            long displacement = (int)i.MemoryDisplacement64;
            if (b == Register.None && x == Register.None)
            {
                _a.Immediate(to, (ulong)displacement);
            }
            else
            {
                _a.Lea(to, b, x, i.MemoryIndexScale, (int)displacement, narrow ? 4 : 8);
                narrow = bitIndex != Register.None && narrow;
            }
        }
        if (bitIndex != Register.None)
            EmitBitOffset(to, bitIndex);
        if (narrow)
            _a.Move32(to, to);
        if (word)
            CutToWord(to);
        if (segment && _segmented)
            AddCheckedSegment(i, to);
        else if (segment && i.MemorySegment is Register.FS or Register.GS)
            AddSegment(i.MemorySegment, to);
    }

    /// <summary>Adds the segment's base. Outside 64-bit mode a segment that is not flat but for its base leaves the instruction to the interpreter.</summary>
    private void AddSegment(Register segment, Register to)
    {
        bool fs = segment == Register.FS;
        if (!Is64)
        {
            _a.Add(Instruction.Create(Code.Test_rm8_imm8, RegionAssembler.State(StateLayout.FlatSegments), fs ? FlatFs : FlatGs));
            _stubs.Add((_a.Jump(Equal), AddSite(SiteAt(SiteKind.Leave, _trace!, _instruction))));
        }
        _a.WithState(HostOperation.Add, to, fs ? StateLayout.FsBase : StateLayout.GsBase);
        if (!Is64)
            _a.Move32(to, to);
    }

    /// <summary>Bits of <see cref="CpuState.FlatSegments"/>.</summary>
    public const uint FlatFs = 1, FlatGs = 2;

    /// <summary>Adds the bytes of the whole operands in front of a bit, whose register has the operand's size. Flags are lost.</summary>
    private void EmitBitOffset(Register to, Register bitIndex)
    {
        Register index = HostRegisters.Entry, from = AddressPart(bitIndex, index);
        int size = bitIndex.GetSize();
        Code extend = size switch { 2 => Code.Movsx_r64_rm16, 4 => Code.Movsxd_r64_rm32, _ => Code.Mov_r64_rm64 };
        _a.Add(Instruction.Create(extend, index, HostRegisters.Sized(from, size)));
        _a.Add(Instruction.Create(Code.Sar_rm64_imm8, index, 3 + int.Log2(size)));
        _a.Add(Instruction.Create(Code.Lea_r64_m, to, new MemoryOperand(to, index, size)));
    }

    /// <summary>The register that holds a guest register: its home, or the scratch register (always, with <paramref name="copy"/>).</summary>
    private Register AddressPart(Register r, Register scratch, bool copy = false)
    {
        if (r == Register.None)
            return r;
        int guest = Guest(r);
        Register home = HostRegisters.HomeOf(guest);
        if (home == Register.None)
            _a.Load(scratch, StateLayout.Gpr(guest));
        else if (copy)
            _a.Move(scratch, home);
        else
            return home;
        return scratch;
    }

    /// <summary>Checks the linear address in <see cref="HostRegisters.Address"/> against level 1 and makes it the host's. See <see cref="EndCheck"/>.</summary>
    private void EmitCheck(int size, bool write, int site)
    {
        BeginCheck(size, write);
        EndCheck(site);
    }

    /// <summary>
    /// Compares the linear address in <see cref="HostRegisters.Address"/> with level 1. With <paramref name="alignment"/>, of which the size is a multiple,
    /// other addresses do not pass. Until <see cref="EndCheck"/>, moves may load <see cref="HostRegisters.Spare"/>.
    /// </summary>
    private void BeginCheck(int size, bool write, int alignment = 0)
    {
        const Register Address = HostRegisters.Address, Entry = HostRegisters.Entry, Tag = HostRegisters.Spare;
        _a.RotateRight(Entry, Address, 12 - EntryShift);
        _a.And32(Entry, (Tlb.Level1Entries - 1) << EntryShift);
        int beyond = size - Math.Max(alignment, 1);
        if (beyond == 0)
            _a.Move(Tag, Address);
        else
            _a.Lea(Tag, Address, beyond);
        // With the sum, the low bits of a misaligned address spoil it. See Tlb.LastContext.
        _a.And64(Tag, alignment != 0 ? -4096 + alignment - 1 : -4096);
        _a.WithState(alignment != 0 ? HostOperation.Add : HostOperation.Or, Tag, StateLayout.Context);
        _a.WithEntry(HostOperation.Compare, Tag, write ? TagWriteOffset : TagReadOffset);
        _compared = _a.Position;
    }

    /// <summary>Behind the comparison of the last check.</summary>
    private int _compared;

    /// <summary>
    /// The access whose check was the last may lie in two pages and go on behind the comparison (Translator.Splits.cs), unless windows are open: it is a load,
    /// or changes nothing but memory.
    /// </summary>
    private void MaySplit(int site)
    {
        if (_resumes.Count != 0 && _resumes[^1].Site == site)
            CollectionsMarshal.AsSpan(_sites)[site].Popped = (uint)_compared;
    }

    /// <summary>
    /// Leaves to the site on a miss, and makes the address the host's. The access must follow directly: a fault looks for the jump in front of it
    /// (<see cref="Ring3.Host.ThunkKind.Run"/>).
    /// </summary>
    private void EndCheck(int site)
    {
        _stubs.Add((_a.Jump(NotEqual), site));
        _a.WithEntry(HostOperation.Add, HostRegisters.Address, AddendOffset);
    }

    /// <summary>A site before an access, which is repeated from here.</summary>
    private int MissSite(Trace t, int i, AccessForm form, int size, bool write, int alignment = 0)
    {
        ref Site site = ref NewSite(SiteKind.Miss, t, i, out int number);
        (site.Form, site.Size, site.Write, site.Alignment) = (form, (byte)size, write, (byte)alignment);
        if (EndsWindows(At(t, i).Lowering))
            _resumes.Add((number, _a.Position));
        else
            Resume(number, i, t);
        return number;
    }

    /// <summary>
    /// Behind a store that has retired with its instruction: code that it has overwritten is dropped. A region that was is left for an offset from its page,
    /// or for CpuState.Rip.
    /// </summary>
    private void EmitCodeCheck(Trace t, int i, int size, int leaveFor)
    {
        _a.WithEntry(HostOperation.Move, HostRegisters.Spare, CodeBitsOffset);
        _a.CompareWithZero(HostRegisters.Spare, 0, true);
        _hostFlags = false;
        ref Site site = ref NewSite(SiteKind.Overwritten, t, i, out int number);
        site.Size = (byte)size;
        site.PageOffset = leaveFor;
        site.Uncount--;
        int jump = _a.Jump(NotEqual);
        _codeChecks.Add((jump, number, _a.Position));
        if (EndsWindows(At(t, i).Lowering))
            _resumes.Add((number, _a.Position));
        else
            Resume(number, i + 1, t);
    }

    /// <summary>Stores to pages that hold code: the jump there, the site, and where the trace goes on when the granule holds none.</summary>
    private readonly List<(int Jump, int Site, int Back)> _codeChecks = [];

    private void EmitCodeChecks()
    {
        const Register Bits = HostRegisters.Entry, Granule = HostRegisters.Spare;
        foreach ((int jump, int site, int back) in _codeChecks)
        {
            _a.Bind(jump);
            _a.LoadFrom(Bits, HostRegisters.Spare);
            _a.RotateRight(Granule, HostRegisters.Address, 6);
            _a.TestBit(Bits, Granule);
            _stubs.Add((_a.Jump(Below), site));
            _a.Bind(_a.Jump(), back);
        }
    }
}
