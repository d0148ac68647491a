using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Compares a cached translation with the nested tables as they are.</summary>
/// <remarks>
/// SAFETY: the processor is inside the guest with this root, so its tables are not freed; the owner is asked about each before it is read, in case they are.
/// </remarks>
internal static unsafe class NestedShadowWalk
{
    private const int Levels = 4;

    /// <summary>True if the tables still give the use's host page with the rights the access needs. Marks nothing.</summary>
    public static bool Agrees(CpuState* c, in TlbUse use, TlbReference reference, out string? difference)
    {
        ulong table = c->NestedRoot, allowed = NestedPte.RWX;
        for (int level = Levels; ; level--)
        {
            if (!reference.IsTable(table))
            {
                difference = $"(a) translation through the freed level-{level} table 0x{table:x}";
                return false;
            }
            int shift = 12 + 9 * (level - 1);
            ulong entry = Volatile.Read(ref ((ulong*)table)[(use.Gpa >> shift) & 511]);
            if ((entry & NestedPte.MmioMask) == NestedPte.MmioValue || (entry & NestedPte.RWX) == 0)
            {
                difference = "(c,d) translation of a page that is no longer mapped";
                return false;
            }
            allowed &= entry;
            if (level > 1 && (entry & NestedPte.PS) == 0)
            {
                table = entry & NestedPte.Address;
                continue;
            }
            ulong host = (entry & NestedPte.Address & ~((1UL << shift) - 1)) + (use.Gpa & ((1UL << shift) - 1) & ~0xfffUL);
            difference = host != use.Host ? $"(e) page moved to 0x{host:x} under the translation"
                : (use.Access & AccessKind.Write) == 0 ? (allowed & ((use.Access & AccessKind.Execute) != 0 ? NestedPte.X : NestedPte.R)) == 0
                    ? "(c) right to read or execute is gone" : null
                : (allowed & NestedPte.W) == 0 ? "(c,f) write through a translation of a page that is write-protected"
                : (entry & NestedPte.D) == 0 ? "(f) write without Dirty bit through a translation made before it was cleared" : null;
            return difference is null;
        }
    }
}
