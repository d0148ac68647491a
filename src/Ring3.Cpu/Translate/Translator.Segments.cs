using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

// Where code can run translated, and what translated code knows about segments.
// SAFETY: reads and writes fields of the state.
internal sealed unsafe partial class Translator
{
    private static ulong LinearOf(CpuState* c, ulong rip) => c->BlockMode == BlockMode.Code64 ? rip : (uint)(c->Cs.Base + rip);

    /// <summary>RIP of the first byte of the page in which the code at <paramref name="rip"/> lies; it may lie before the code segment.</summary>
    private static ulong PageOf(CpuState* c, ulong rip) => rip - (LinearOf(c, rip) & 0xfff);

    private static ulong StackLinear(CpuState* c, ulong pointer) =>
        c->BlockMode == BlockMode.Code64 ? pointer : (uint)(c->Ss.Base + (pointer & Addressing.StackMask(c)));

    /// <summary>
    /// Whether code at <paramref name="rip"/> can run translated. Where segments count, all of its page lies in the code segment (and in the first 64 KiB of
    /// one of 16 bits), so that nothing in it needs a look at the limit, and the stack is as wide as the code.
    /// </summary>
    private static bool CanRun(CpuState* c, uint mode, ulong rip)
    {
        if (BlockMode.IsFlat(mode))
            return IsFarFromEdge(rip);
        bool wideStack = (c->Ss.Access & Segment.DB) != 0, isWord = mode == BlockMode.Code16;
        ulong last = PageOf(c, rip) + 0xfff;
        return wideStack != isWord && last >= 0xfff && last <= (isWord ? Math.Min(c->Cs.Limit, 0xffff) : c->Cs.Limit);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void TrackSegments(CpuState* c)
    {
        if (BlockMode.IsFlat(CpuMode.CodeMode(c)))
        {
            c->JumpContext |= FlatJumps;
            c->FlatSegments = (byte)((CpuMode.IsUnlimited(&c->Fs) ? RegionBuilder.FlatFs : 0) | (CpuMode.IsUnlimited(&c->Gs) ? RegionBuilder.FlatGs : 0));
            return;
        }
        if (c->JumpLimit != c->Cs.Limit)
        {
            // Targets were looked at with another limit.
            c->JumpLimit = c->Cs.Limit;
            c->JumpKey = _jumpKey += JumpKeyStep;
        }
        c->JumpContext = c->CodeContext | c->JumpKey | (c->BlockMode == BlockMode.Code16 ? WordJumps : SegmentedJumps);
        c->JumpSegment = c->Cs.Base << 32;
        c->JumpSalt ^= ProcessorMemory.JumpSalt(c->Cs.Base);
        for (int n = 0; n < 6; n++)
        {
            Segment* s = CpuState.SegmentAt(c, n);
            c->SegmentEnds[2 * n] = Addressing.LastOf(c, s, AccessKind.Read);
            c->SegmentEnds[2 * n + 1] = Addressing.LastOf(c, s, AccessKind.Write);
        }
    }
}
