using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>From operands to linear addresses: effective address, segment base, and the segment checks of the modes that have them.</summary>
/// <remarks>SAFETY: operand offsets point into the processor's own state.</remarks>
internal static unsafe class Addressing
{
    /// <summary>Effective address before the address-size mask.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong EffectiveAddress(CpuState* c, Op* op)
        => *(ulong*)((byte*)c + op->Base) + (*(ulong*)((byte*)c + op->Index) << op->Shift) + (ulong)op->Disp;

    /// <summary>Bits of an address of <paramref name="bytes"/> bytes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong AddressMask(int bytes) => ulong.MaxValue >> (64 - 8 * bytes);

    /// <summary>Linear address of the memory operand of an op with <see cref="OpFlags.Plain"/>; without, some address.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong PlainAddress(CpuState* c, Op* op)
        => (EffectiveAddress(c, op) & AddressMask(op->AddressSize)) + *(ulong*)((byte*)c + op->SegmentBase);

    /// <summary>
    /// Linear address of the memory operand. False: an exception is pending. In 64-bit mode nothing is checked here: non-canonical addresses fault when they
    /// are accessed.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static bool LinearAddress(CpuState* c, Op* op, int size, AccessKind access, out ulong linear)
    {
        if (op->AddressSize == 8)
        {
            linear = PlainAddress(c, op);
            return true;
        }
        return SegmentLinear(c, op->Seg, EffectiveAddress(c, op) & AddressMask(op->AddressSize), size, access, out linear);
    }

    /// <summary>
    /// Linear address of <paramref name="offset"/> in a segment, which is already cut to its address size. False: #GP(0) or #SS(0) is pending.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static bool SegmentLinear(CpuState* c, int segment, ulong offset, int size, AccessKind access, out ulong linear)
    {
        Segment* s = CpuState.SegmentAt(c, segment);
        if (c->BlockMode == BlockMode.Code64)
        {
            linear = segment >= SegmentIndex.FS ? offset + s->Base : offset;
            return true;
        }
        linear = (uint)(s->Base + offset);
        if (SegmentAllows(c, s, access) && InLimit(s, offset, (ulong)size - 1))
            return true;
        Outcome.Raise(c, segment == SegmentIndex.SS ? Vector.SS : Vector.GP, 0);
        return false;
    }

    private static bool SegmentAllows(CpuState* c, Segment* s, AccessKind access)
    {
        if ((c->Cr0 & Cr0.PE) == 0 || (c->Rflags & Rflags.VM) != 0)
            return true;
        if ((s->Access & (Segment.Unusable | Segment.P)) != Segment.P)
            return false;
        bool code = (s->Access & 8) != 0, flag = (s->Access & 2) != 0;
        return (access & AccessKind.Write) != 0 ? !code && flag : !code || flag;
    }

    private static bool InLimit(Segment* s, ulong offset, ulong last)
    {
        if ((s->Access & 0xc) != 4)
            return offset + last <= s->Limit;
        ulong top = (s->Access & Segment.DB) != 0 ? 0xffff_ffff : 0xffffUL;
        return offset > s->Limit && offset + last <= top;
    }

    /// <summary>Offset of the last byte that can be accessed, when all up to it can; else -1.</summary>
    internal static long LastOf(CpuState* c, Segment* s, AccessKind access) => (s->Access & 0xc) != 4 && SegmentAllows(c, s, access) ? s->Limit : -1;

    /// <summary>Mask of the stack pointer: 64-bit mode, or the B bit of SS.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong StackMask(CpuState* c)
        => c->BlockMode == BlockMode.Code64 ? ulong.MaxValue : (c->Ss.Access & Segment.DB) != 0 ? 0xffff_ffff : 0xffffUL;

    /// <summary>Writes the stack pointer at the stack's width; a 32-bit stack zero-extends.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void SetStackPointer(CpuState* c, ulong value, ulong mask)
        => c->Gpr[4] = mask == 0xffff ? c->Gpr[4] & ~0xffffUL | value & 0xffff : value & mask;

    /// <summary>RIP of the instruction after <paramref name="op"/>, cut to the mode's width.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong NextRip(CpuState* c, Op* op)
    {
        ulong rip = c->BlockRip + op->Offset + op->Length;
        return c->BlockMode == BlockMode.Code64 ? rip : (uint)rip;
    }

    /// <summary>RIP of the instruction.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong RipOf(CpuState* c, Op* op)
    {
        ulong rip = c->BlockRip + op->Offset;
        return c->BlockMode == BlockMode.Code64 ? rip : (uint)rip;
    }

    /// <summary>Whether a range of a segment can be accessed; raises nothing.</summary>
    internal static bool SegmentCovers(CpuState* c, int segment, ulong offset, int size, AccessKind access)
    {
        Segment* s = CpuState.SegmentAt(c, segment);
        return (uint)(s->Base + offset) <= uint.MaxValue - (uint)size && SegmentAllows(c, s, access) && InLimit(s, offset, (ulong)size - 1);
    }
}
