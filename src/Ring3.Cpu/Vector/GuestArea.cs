using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Memory operands larger than one access: the images of FXSAVE, XSAVE and FSAVE.</summary>
/// <remarks>SAFETY: each piece is at most 64 bytes and is copied through a pointer that the memory interface gave for that many bytes.</remarks>
internal static unsafe class GuestArea
{
    private const int Piece = 64;

    /// <summary>Linear address of the operand, after the alignment check.</summary>
    public static bool Open(LogicalProcessor p, CpuState* c, Op* op, int size, uint alignMask, AccessKind access, out ulong linear)
    {
        if (!Addressing.LinearAddress(c, op, size, access, out linear))
            return false;
        if ((linear & alignMask) == 0)
            return true;
        // A non-canonical address is the access's own fault, which may be #SS.
        if (CpuMode.Is64(c) && !CpuMode.IsCanonical(c, linear))
            return p.Access.ReadPtr(c, linear, 1) != null;
        Outcome.Raise(c, Arch.Vector.GP, 0);
        return false;
    }

    public static bool Read(LogicalProcessor p, CpuState* c, ulong linear, byte* to, int size)
    {
        for (int n; size > 0; size -= n, to += n, linear += (ulong)n)
        {
            n = Length(linear, size);
            byte* from = p.Access.ReadPtr(c, linear, n);
            if (from == null)
                return false;
            Buffer.MemoryCopy(from, to, n, n);
        }
        return true;
    }

    /// <summary>Writes the whole range, or faults before anything is written.</summary>
    public static bool Write(LogicalProcessor p, CpuState* c, ulong linear, byte* from, int size)
        => Probe(p, c, linear, size) && Commit(p, c, linear, from, size);

    /// <summary>Checks that a range can be written, without writing. Devices are not asked.</summary>
    public static bool Probe(LogicalProcessor p, CpuState* c, ulong linear, int size)
    {
        ulong last = linear + (ulong)size - 1;
        for (ulong at = linear; ; at = (at & ~0xfffUL) + 0x1000)
        {
            if (p.Access.WritePtr(c, at, 1) == null)
                return false;
            if ((at | 0xfff) >= last)
                return true;
        }
    }

    /// <summary>
    /// Writes a range that <see cref="Probe"/> has accepted. False only when a device write leaves; the accesses made so far are replayed then.
    /// </summary>
    public static bool Commit(LogicalProcessor p, CpuState* c, ulong linear, byte* from, int size)
    {
        for (int n; size > 0; size -= n, from += n, linear += (ulong)n)
        {
            n = Length(linear, size);
            byte* to = p.Access.WritePtr(c, linear, n);
            if (to == null)
                return false;
            Buffer.MemoryCopy(from, to, n, n);
            if (p.Access.EndWrite(c, to, linear, n) != OpResult.Next)
                return false;
        }
        return true;
    }

    private static int Length(ulong linear, int size) => Math.Min(Math.Min(size, Piece), 0x1000 - (int)(linear & 0xfff));
}
