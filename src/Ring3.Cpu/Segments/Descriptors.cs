using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Fields of an 8-byte segment or gate descriptor. SPEC: SDM volume 3, "Segment Descriptors" and "Gate Descriptors".</summary>
internal static class Descriptor
{
    public const ulong Accessed = 1UL << 40, Busy = 1UL << 41;
    public const uint TypeMask = 0x1f, TypeCode = 8, TypeConforming = 4, TypeReadable = 2, TypeWritable = 2, TypeExpandDown = 4;
    // System types (S = 0).
    public const uint Tss16Available = 1, Ldt = 2, Tss16Busy = 3, CallGate16 = 4, TaskGate = 5, InterruptGate16 = 6, TrapGate16 = 7;
    public const uint Tss32Available = 9, Tss32Busy = 11, CallGate32 = 12, InterruptGate32 = 14, TrapGate32 = 15;

    /// <summary>Access rights in the layout of <see cref="Segment.Access"/>.</summary>
    public static uint Access(ulong raw) => (uint)(raw >> 40) & 0xf0ff;
    /// <summary>Type with the S bit.</summary>
    public static uint Type(ulong raw) => (uint)(raw >> 40) & TypeMask;
    public static int Dpl(ulong raw) => (int)(raw >> 45) & 3;
    public static bool Present(ulong raw) => (raw >> 47 & 1) != 0;
    public static bool IsCode(ulong raw) => (Type(raw) & 0x18) == 0x18;
    public static bool IsConforming(ulong raw) => (raw >> 42 & 1) != 0;
    public static bool IsWritableData(ulong raw) => (Type(raw) & 0x1a) == 0x12;
    public static bool IsReadable(ulong raw) => (Type(raw) & 0x18) == 0x10 || (Type(raw) & 0x1a) == 0x1a;
    public static bool IsLong(ulong raw) => (raw >> 53 & 1) != 0;
    public static bool IsBig(ulong raw) => (raw >> 54 & 1) != 0;
    public static ulong Base(ulong raw) => (raw >> 16 & 0xff_ffff) | (raw >> 32 & 0xff00_0000);

    public static uint Limit(ulong raw)
    {
        uint limit = (uint)(raw & 0xffff) | (uint)(raw >> 32 & 0xf_0000);
        return (raw >> 55 & 1) != 0 ? limit << 12 | 0xfff : limit;
    }

    public static Segment ToSegment(ushort selector, ulong raw) =>
        new() { Base = Base(raw), Limit = Limit(raw), Access = Access(raw) | 1, Selector = selector };

    /// <summary>The descriptor that <see cref="ToSegment"/> made a segment from, marked as accessed.</summary>
    public static ulong FromSegment(in Segment s)
    {
        ulong limit = (s.Access & Segment.G) != 0 ? s.Limit >> 12 : s.Limit;
        return limit & 0xffff | (s.Base & 0xff_ffff) << 16 | (ulong)(s.Access & 0xf0ff) << 40 | (limit >> 16 & 0xf) << 48 | (s.Base >> 24 & 0xff) << 56;
    }

    // Gates.
    public static ushort GateSelector(ulong raw) => (ushort)(raw >> 16);
    public static uint GateOffset(ulong raw) => (uint)(raw & 0xffff) | (uint)(raw >> 32 & 0xffff_0000);

    public static bool IsNull(ushort selector) => (selector & 0xfffc) == 0;
}

/// <summary>Reading and marking descriptors in the GDT and LDT.</summary>
/// <remarks>SAFETY: memory is reached through the system accessors only.</remarks>
internal sealed unsafe partial class EventUnit
{
    /// <summary>EXT bit of error codes: 1 while an event that is not a software interrupt is being delivered.</summary>
    private uint _externalEvent;

    /// <summary>Raises an exception whose error code is a selector.</summary>
    internal OpResult RaiseSelector(CpuState* c, byte vector, ushort selector) => Outcome.Raise(c, vector, (uint)(selector & 0xfffc) | _externalEvent);

    /// <summary>Address of a table entry: 64 bits in long mode, else 32.</summary>
    private static ulong TableAddress(CpuState* c, ulong tableBase, ulong offset) => CpuMode.LongMode(c) ? tableBase + offset : (uint)(tableBase + offset);

    /// <summary>Linear address of a descriptor; false, without raising anything, when it lies beyond its table or there is no LDT.</summary>
    private static bool FindDescriptor(CpuState* c, ushort selector, int size, out ulong address)
    {
        address = 0;
        uint offset = (uint)(selector & 0xfff8);
        if ((selector & 4) != 0)
        {
            if ((c->Ldtr.Access & Segment.Unusable) != 0 || offset + (uint)size - 1 > c->Ldtr.Limit)
                return false;
            address = TableAddress(c, c->Ldtr.Base, offset);
            return true;
        }
        if (offset + (uint)size - 1 > c->Gdtr.Limit)
            return false;
        address = TableAddress(c, c->Gdtr.Base, offset);
        return true;
    }

    /// <summary>
    /// Reads the descriptor of a selector. False: pending is <paramref name="vector"/>(selector) when it lies beyond the table, or the fault of the read.
    /// </summary>
    internal bool ReadDescriptor(CpuState* c, ushort selector, byte vector, out ulong raw, out ulong address)
    {
        raw = 0;
        if (FindDescriptor(c, selector, 8, out address))
            return _access.LoadSystem64(c, address, out raw);
        RaiseSelector(c, vector, selector);
        return false;
    }

    /// <summary>Reads a system descriptor of 16 bytes (long mode) or 8; <paramref name="high"/> holds base bits 32-63.</summary>
    internal bool ReadSystemDescriptor(CpuState* c, ushort selector, byte vector, out ulong raw, out ulong high, out ulong address)
    {
        raw = high = 0;
        if (!FindDescriptor(c, selector, CpuMode.LongMode(c) ? 16 : 8, out address))
        {
            RaiseSelector(c, vector, selector);
            return false;
        }
        return _access.LoadSystem64(c, address, out raw) && (!CpuMode.LongMode(c) || _access.LoadSystem64(c, address + 8, out high));
    }

    /// <summary>Sets bits in the high half of a descriptor (accessed, busy) with a locked write.</summary>
    internal bool MarkDescriptor(CpuState* c, ulong address, ulong raw, ulong bits)
        => (raw & bits) == bits || ChangeTypeByte(c, address, set: (byte)(bits >> 40), clear: 0);

    /// <summary>Clears the busy bit of a TSS descriptor.</summary>
    private bool ClearBusy(CpuState* c, ulong address) => ChangeTypeByte(c, address, set: 0, clear: (byte)(Descriptor.Busy >> 40));

    /// <summary>
    /// A locked change of bits 40-47 of a descriptor. It has the faults of a write of the whole upper half, but changes one byte: an access to that is never
    /// split, wherever the descriptor lies.
    /// </summary>
    private bool ChangeTypeByte(CpuState* c, ulong address, byte set, byte clear)
    {
        byte* p = _access.WritePtrSlow(c, address + 4, 4, AccessKind.Implicit, true);
        if (p == null)
            return false;
        BusLock.Note(c, address);
        byte* first = _access.HostByte(p, 0), type = _access.HostByte(p, 1), last = _access.HostByte(p, 3);
        if (first == null || last == null)
        {
            p[1] = (byte)(p[1] & ~clear | set);
            return _access.EndWriteSlow(c, p, address + 4, 4) == OpResult.Next;
        }
        int shift = 8 * (int)((nuint)type & 3);
        uint* word = (uint*)(type - shift / 8);
        if (set != 0)
            Interlocked.Or(ref *word, (uint)set << shift);
        if (clear != 0)
            Interlocked.And(ref *word, ~((uint)clear << shift));
        _paging.CodeMayHaveChanged(type, 1);
        return true;
    }

    /// <summary>Segment register contents in real and virtual-8086 mode.</summary>
    internal static void LoadRealSegment(CpuState* c, int index, ushort selector)
    {
        Segment* s = CpuState.SegmentAt(c, index);
        s->Selector = selector;
        s->Base = (ulong)selector << 4;
        if (CpuMode.Virtual8086(c))
        {
            s->Limit = 0xffff;
            s->Access = 0xf3;
        }
        else
            s->Access &= ~Segment.Unusable;
    }

    /// <summary>
    /// The processor itself takes a segment away, in a return to an outer level or in leaving virtual-8086 mode: only the selector becomes null and the segment
    /// unusable. The hidden base stays, which 64-bit code uses
    /// with FS and GS. SPEC: SDM volume 2, IRET and RET, "ReturnToOuterPrivilegeLevel"; what a load of a null selector by the program does is another matter.
    /// </summary>
    private static void NullSelector(Segment* s)
    {
        s->Selector = 0;
        s->Access = Segment.Unusable;
    }

    /// <summary>Segment register holding a null selector. SS keeps its DPL, which is the CPL.</summary>
    internal static Segment NullSegment(ushort selector, int dpl = 0) => new() { Selector = selector, Access = Segment.Unusable | (uint)dpl << 5 };
}
