using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Addresses and counters of a running string instruction.</summary>
/// <remarks>SAFETY: <see cref="Direct"/> returns a pointer only for elements that lie in one page, one segment and plain memory.</remarks>
internal readonly unsafe struct StringRun
{
    /// <summary>Most elements between two looks at the poll word.</summary>
    private const ulong MaxElements = 4096;

    public readonly int Size;
    /// <summary>Bytes from one element to the next: the size, negative when DF is set.</summary>
    public readonly int Step;
    /// <summary>Mask of the address size.</summary>
    public readonly ulong Mask;
    private readonly bool _elementwise;

    public StringRun(CpuState* c, Op* op, int size)
    {
        Size = size;
        Step = (c->Rflags & Rflags.DF) != 0 ? -size : size;
        Mask = Addressing.AddressMask(op->AddressSize);
        // Traps after an iteration, data breakpoints and alignment checks belong to single accesses.
        _elementwise = (op->Flags & (OpFlags.Rep | OpFlags.Repne)) == 0 || (c->Rflags & Rflags.TF) != 0 || c->HostSingleStep != 0 || (c->Dr7 & 0xff) != 0
            || CpuMode.AlignmentChecked(c);
    }

    /// <summary>Linear address of the current element.</summary>
    public bool Linear(CpuState* c, int register, int segment, AccessKind access, out ulong linear)
        => Addressing.SegmentLinear(c, segment, c->Gpr[register] & Mask, Size, access, out linear);

    /// <summary>
    /// Host pointer to the current element when a run of elements can be done at once, else null with nothing pending. <paramref name="n"/> is 1 or the limit
    /// of the other
    /// operand on entry, the number of elements allowed on return.
    /// </summary>
    public byte* Direct(GuestAccess access, CpuState* c, int register, int segment, bool write, ulong count, ref ulong n)
    {
        if (_elementwise)
            return null;
        ulong offset = c->Gpr[register] & Mask;
        ulong limit = n > 1 ? n : Math.Min(count, MaxElements);
        AccessKind kind = write ? AccessKind.Write : AccessKind.Read;
        ulong linear = LinearOf(c, segment, offset);
        ulong inPage = linear & 0xfff;
        ulong room = Step > 0 ? (0x1000 - inPage) / (uint)Size : inPage + (uint)Size > 0x1000 ? 0 : inPage / (uint)Size + 1;
        limit = Math.Min(limit, room);
        if (limit < 2)
            return null;
        ulong bytes = limit * (uint)Size, lowest = Step > 0 ? offset : offset - (bytes - (uint)Size);
        if (Mask != ulong.MaxValue && (lowest > offset + bytes || lowest + bytes - 1 > Mask))
            return null;
        if (c->BlockMode != BlockMode.Code64 && !Addressing.SegmentCovers(c, segment, lowest, (int)bytes, kind))
            return null;
        byte* host = access.DirectPtr(c, linear, write);
        if (host != null)
            n = limit;
        return host;
    }

    private static ulong LinearOf(CpuState* c, int segment, ulong offset)
    {
        ulong start = CpuState.SegmentAt(c, segment)->Base;
        if (c->BlockMode != BlockMode.Code64)
            return (uint)(start + offset);
        return segment < SegmentIndex.FS ? offset : start + offset;
    }

    /// <summary>Moves an index register by <paramref name="n"/> elements.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Advance(CpuState* c, int register, ulong n)
    {
        ulong value = c->Gpr[register] + (ulong)((long)n * Step);
        c->Gpr[register] = Mask == 0xffff ? c->Gpr[register] & ~0xffffUL | value & 0xffff : value & Mask;
    }

    /// <summary>Retires <paramref name="n"/> iterations; returns how many are left.</summary>
    public ulong CountDown(GuestAccess access, CpuState* c, Op* op, ulong count, ulong n)
    {
        count -= n;
        if ((op->Flags & (OpFlags.Rep | OpFlags.Repne)) == 0)
            return count;
        c->Gpr[1] = Mask == 0xffff ? c->Gpr[1] & ~0xffffUL | count : count;
        if (access.Replay.InProgress)
            access.Replay.Retire();
        return count;
    }

    /// <summary>After a run was written through a direct pointer: decoded code in it is dropped.</summary>
    public void Written(GuestAccess access, CpuState* c, byte* first, ulong n)
    {
        int bytes = (int)n * Size;
        access.DirectWritten(Step > 0 ? first : first - (bytes - Size), bytes);
    }
}

public sealed unsafe partial class LogicalProcessor
{
}
