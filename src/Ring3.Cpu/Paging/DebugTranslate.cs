using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Translation without side effects, for debuggers and KVM_TRANSLATE.</summary>
/// <remarks>SAFETY: reads tables with Volatile; writes nothing.</remarks>
internal sealed unsafe partial class PagingUnit
{
    /// <summary>Guest-physical address of a linear address under the current paging mode. False when it is not mapped.</summary>
    public bool TranslateGva(ulong gva, out ulong gpa, out bool writable, out bool user)
    {
        CpuState* c = _state;
        WalkState w;
        gpa = gva;
        writable = user = true;
        if ((c->Cr0 & Cr0.PG) == 0)
            return true;
        if ((CpuMode.Is64(c) && !CpuMode.IsCanonical(c, gva)) || ReadTables(c, gva, &w, false) != WalkResult.Ok)
            return false;
        gpa = w.LeafGpa | (gva & 0xfff);
        writable = (w.Flags & PageFlags.Writable) != 0;
        user = (w.Flags & PageFlags.User) != 0;
        return true;
    }

    /// <summary>Host page of a guest-physical address if the nested tables map it readable; marks nothing.</summary>
    internal byte* PeekNested(CpuState* c, ulong gpa)
    {
        ulong* table = (ulong*)c->NestedRoot;
        if (table == null || gpa >> (12 + 9 * NestedLevels) != 0)
            return null;
        for (int level = NestedLevels; ; level--)
        {
            int shift = 12 + 9 * (level - 1);
            ulong entry = Volatile.Read(ref table[(gpa >> shift) & 511]);
            if ((entry & NestedPte.R) == 0)
                return null;
            if (level == 1 || (entry & NestedPte.PS) != 0)
                return (byte*)((entry & NestedPte.Address & ~((1UL << shift) - 1)) + (gpa & ((1UL << shift) - 1) & ~0xfffUL));
            table = (ulong*)(entry & NestedPte.Address);
        }
    }
}
