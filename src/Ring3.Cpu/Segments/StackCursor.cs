using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// Pushes or pops on a stack that is not (yet) the architectural one: the state changes only when the caller commits <see cref="Pointer"/>,
/// so a fault on the way has written nothing but memory below the stack pointer.
/// </summary>
/// <remarks>SAFETY: memory goes through the checked accessors.</remarks>
internal unsafe struct StackCursor
{
    public ulong Pointer;
    public readonly ulong Mask;
    public readonly Segment Ss;
    private readonly AccessKind _privilege;
    private readonly bool _flat;
    /// <summary>Error code of #SS when the stack's limit is exceeded.</summary>
    private readonly uint _errorCode;

    public StackCursor(CpuState* c, Segment ss, ulong pointer, int cpl, bool flat, uint errorCode)
    {
        Ss = ss;
        Pointer = pointer;
        _privilege = cpl == 3 ? AccessKind.User : 0;
        _flat = flat;
        Mask = flat ? ulong.MaxValue : (ss.Access & Segment.DB) != 0 ? 0xffff_ffffUL : 0xffffUL;
        _errorCode = errorCode;
        _ = c;
    }

    /// <summary>The current stack.</summary>
    public static StackCursor Current(CpuState* c) => new(c, c->Ss, c->Gpr[4], (int)c->Cpl, CpuMode.Is64(c), 0);

    public bool Push(GuestAccess access, CpuState* c, int size, ulong value) => Push(access, c, size, value, size);

    /// <summary>Moves the pointer by <paramref name="slot"/> bytes and writes the lowest <paramref name="size"/> of them.</summary>
    public bool Push(GuestAccess access, CpuState* c, int slot, ulong value, int size)
    {
        ulong at = (Pointer - (ulong)slot) & Mask;
        if (!Check(c, at, size, out ulong linear))
            return false;
        byte* ptr = access.WritePtrAs(c, linear, size, _privilege, out TlbEntry* e);
        if (ptr == null)
            return StackFault(c);
        switch (size)
        {
            case 2: *(ushort*)ptr = (ushort)value; break;
            case 4: *(uint*)ptr = (uint)value; break;
            default: *(ulong*)ptr = value; break;
        }
        if (!access.EndWriteAs(c, ptr, linear, size, e))
            return false;
        Pointer = (Pointer & ~Mask) | at;
        return true;
    }

    public bool Pop(GuestAccess access, CpuState* c, int size, out ulong value)
    {
        value = 0;
        if (!Peek(access, c, size, 0, out value))
            return false;
        Skip((ulong)size);
        return true;
    }

    /// <summary>Reads without popping, <paramref name="offset"/> bytes above the pointer.</summary>
    public readonly bool Peek(GuestAccess access, CpuState* c, int size, ulong offset, out ulong value)
    {
        value = 0;
        ulong at = (Pointer + offset) & Mask;
        if (!Check(c, at, size, out ulong linear))
            return false;
        byte* ptr = access.ReadPtrAs(c, linear, size, _privilege);
        if (ptr == null)
            return StackFault(c);
        value = size switch { 2 => *(ushort*)ptr, 4 => *(uint*)ptr, _ => *(ulong*)ptr };
        return true;
    }

    /// <summary>Drops bytes.</summary>
    public void Skip(ulong bytes) => Pointer = (Pointer & ~Mask) | ((Pointer + bytes) & Mask);

    /// <summary>A non-canonical stack address is a stack fault.</summary>
    private readonly bool StackFault(CpuState* c)
    {
        if (c->ExitPending == 0 && c->PendingNonCanonical != 0)
        {
            c->PendingVector = Vector.SS;
            c->PendingErrorCode = _errorCode;
            c->PendingNonCanonical = 0;
        }
        return false;
    }

    private readonly bool Check(CpuState* c, ulong at, int size, out ulong linear)
    {
        if (_flat)
        {
            linear = at;
            return true;
        }
        linear = (uint)(Ss.Base + at);
        if (EventUnit.WithinLimit(Ss, at, size))
            return true;
        Outcome.Raise(c, Vector.SS, _errorCode);
        return false;
    }
}

internal sealed unsafe partial class EventUnit
{
    /// <summary>Limit check of a data or stack segment, expand-up or expand-down.</summary>
    internal static bool WithinLimit(in Segment s, ulong offset, int size)
    {
        ulong last = offset + (ulong)size - 1;
        bool expandDown = (s.Access & (Segment.S | Descriptor.TypeCode | Descriptor.TypeExpandDown)) == (Segment.S | Descriptor.TypeExpandDown);
        if (!expandDown)
            return last <= s.Limit;
        ulong top = (s.Access & Segment.DB) != 0 ? 0xffff_ffffUL : 0xffffUL;
        return offset > s.Limit && last <= top;
    }

    /// <summary>Makes a cursor's position the architectural stack pointer.</summary>
    internal static void CommitStack(CpuState* c, in StackCursor stack) => Addressing.SetStackPointer(c, stack.Pointer, stack.Mask);
}
