using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Result of a translation.</summary>
internal enum TranslateResult
{
    Ok,
    /// <summary>A guest exception is pending.</summary>
    Fault,
    /// <summary>An exit is pending.</summary>
    Exit,
    /// <summary>The guest-physical page is marked as MMIO; the caller performs the access through <see cref="MmioReplay"/>.</summary>
    Mmio,
}

/// <summary>
/// The second dimension: guest-physical to host. SPEC: SDM volume 3, "EPT Translation Mechanism" with accessed and dirty flags; guest page-table reads count as
/// reads.
/// </summary>
/// <remarks>
/// SAFETY: table pages are read with Volatile and written with compare-exchange only; their addresses come from entries that the owner made present. The dirty
/// log is written below its limit.
/// </remarks>
internal sealed unsafe partial class PagingUnit
{
    private const int NestedLevels = 4;

    /// <summary>
    /// Translates the 4 KiB page of <paramref name="gpa"/>. <paramref name="access"/>: Read, Write or Execute, with GuestPageWalk for table accesses.
    /// Exit: NestedFault is pending with <paramref name="gva"/>.
    /// </summary>
    internal TranslateResult NestedTranslate(CpuState* c, ulong gpa, AccessKind access, ulong gva, out byte* host, out PageFlags flags)
    {
        NestedTlb.Entry* cached = Tlb.Nested.Find(gpa >> 12, Tlb.NestedId);
        if (cached != null && NestedPermits(cached->Flags, access) && ((access & AccessKind.Write) == 0 || (cached->Flags & PageFlags.NestedDirty) != 0)
            && (Sanitizer is null || UseNested(c, cached, gpa, gva, access)))
        {
            host = cached->Host;
            flags = cached->Flags;
            return TranslateResult.Ok;
        }
        if (Sanitizer is null)
            return NestedWalk(c, gpa, access, gva, out host, out flags);
        Sanitizer.BeginNestedWalk();
        TranslateResult result = NestedWalk(c, gpa, access, gva, out host, out flags);
        if (result == TranslateResult.Ok)
            Sanitizer.NestedFilled(c, gpa);
        return result;
    }

    private TranslateResult NestedWalk(CpuState* c, ulong gpa, AccessKind access, ulong gva, out byte* host, out PageFlags flags)
    {
        Tlb.NestedWalks++;
        host = null;
        flags = 0;
        ulong* table = (ulong*)c->NestedRoot;
        if (table == null || gpa >> (12 + 9 * NestedLevels) != 0)
            return NestedFault(gpa, access, gva);
        ulong allowed = NestedPte.RWX;
        for (int level = NestedLevels; ; level--)
        {
            int shift = 12 + 9 * (level - 1);
            ulong* slot = table + ((gpa >> shift) & 511);
            ulong entry = Volatile.Read(ref *slot);
            if ((entry & NestedPte.MmioMask) == NestedPte.MmioValue)
                return TranslateResult.Mmio;
            if ((entry & NestedPte.RWX) == 0)
                return NestedFault(gpa, access, gva);
            allowed &= entry;
            if (level > 1 && (entry & NestedPte.PS) == 0)
            {
                if ((entry & NestedPte.A) == 0 && !TrySet(slot, entry, NestedPte.A))
                    level++; // The entry changed: read it again.
                else
                    table = (ulong*)(entry & NestedPte.Address);
                continue;
            }
            flags = ToNestedFlags(allowed);
            if (!NestedPermits(flags, access))
                return (access & AccessKind.Write) != 0
                    && (entry & NestedPte.WriteIsMmio) != 0 ? TranslateResult.Mmio : NestedFault(gpa, access | AccessKind.Present, gva);
            ulong set = (access & AccessKind.Write) != 0 ? NestedPte.A | NestedPte.D : NestedPte.A;
            bool logs = (set & NestedPte.D) != 0 && (entry & (NestedPte.LogDirty | NestedPte.D)) == NestedPte.LogDirty;
            if (logs && c->DirtyLogCount >= c->DirtyLogLimit)
            {
                Outcome.Leave(c, ExitReason.DirtyLogFull);
                return TranslateResult.Exit;
            }
            if ((entry & set) != set && !TrySet(slot, entry, set))
            {
                allowed = NestedPte.RWX;
                table = (ulong*)c->NestedRoot;
                level = NestedLevels + 1; // The leaf changed: it may be a table now. Start over.
                continue;
            }
            if (logs)
                c->DirtyLog[c->DirtyLogCount++] = gpa & ~0xfffUL;
            if (((entry | set) & NestedPte.D) != 0)
                flags |= PageFlags.NestedDirty;
            ulong offset = gpa & ((1UL << shift) - 1) & ~0xfffUL;
            host = (byte*)((entry & NestedPte.Address & ~((1UL << shift) - 1)) + offset);
            Tlb.Nested.Insert(gpa >> 12, Tlb.NestedId, host, flags);
            return TranslateResult.Ok;
        }
    }

    private static bool TrySet(ulong* slot, ulong entry, ulong bits) => Interlocked.CompareExchange(ref *slot, entry | bits, entry) == entry;

    private static PageFlags ToNestedFlags(ulong allowed)
    {
        PageFlags flags = 0;
        if ((allowed & NestedPte.R) != 0)
            flags |= PageFlags.NestedRead;
        if ((allowed & NestedPte.W) != 0)
            flags |= PageFlags.NestedWrite;
        if ((allowed & NestedPte.X) != 0)
            flags |= PageFlags.NestedExecute;
        return flags;
    }

    private static bool NestedPermits(PageFlags flags, AccessKind access) => (access & (AccessKind.Read | AccessKind.Write | AccessKind.Execute)) switch
    {
        AccessKind.Execute => (flags & PageFlags.NestedExecute) != 0,
        AccessKind.Read => (flags & PageFlags.NestedRead) != 0,
        _ => (flags & PageFlags.NestedWrite) != 0,
    };

    private TranslateResult NestedFault(ulong gpa, AccessKind access, ulong gva)
    {
        _state->Exit->Gpa = gpa;
        _state->Exit->Gva = gva;
        _state->Exit->Access = access & ~AccessKind.Implicit;
        Outcome.Leave(_state, ExitReason.NestedFault);
        return TranslateResult.Exit;
    }
}
