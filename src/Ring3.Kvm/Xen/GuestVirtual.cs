using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Memory;

// SAFETY: the state is that of the caller's vCPU, which does not run.
namespace Ring3.Kvm;

/// <summary>
/// Translates linear addresses for supervisor reads by the hypervisor itself, through guest memory: it does not depend on what the processor has mapped so far, and sets no Accessed bits.
/// </summary>
internal static unsafe class GuestVirtual
{
    private const ulong Present = 1, Large = 1 << 7, AddressMask = 0x000f_ffff_ffff_f000;

    public static bool TryTranslate(CpuState* c, GuestMemory memory, ulong gva, out ulong gpa)
    {
        gpa = gva;
        if ((c->Cr0 & Cr0.PG) == 0)
            return true;
        bool pae = (c->Cr4 & Cr4.PAE) != 0, is64 = (c->Efer & Efer.LMA) != 0;
        if (!pae)
            return TwoLevels(c, memory, (uint)gva, out gpa);
        int levels = !is64 ? 3 : (c->Cr4 & Cr4.LA57) != 0 ? 5 : 4;
        int width = 12 + 9 * levels;
        if (is64 && (ulong)((long)gva << (64 - width) >> (64 - width)) != gva)
            return false;
        ulong table = is64 ? c->Cr3 & AddressMask : c->Cr3 & 0xffff_ffe0;
        for (int level = levels; ; level--)
        {
            int shift = 12 + 9 * (level - 1);
            if (!memory.TryRead(table + (gva >> shift & (level == 3 && !is64 ? 3u : 511u)) * 8, out ulong entry) || (entry & Present) == 0)
                return false;
            if (level == 1 || level <= 3 && (entry & Large) != 0 && (is64 || level == 2))
            {
                ulong offset = (1UL << shift) - 1;
                gpa = entry & AddressMask & ~offset | gva & offset;
                return true;
            }
            table = entry & AddressMask;
        }
    }

    private static bool TwoLevels(CpuState* c, GuestMemory memory, uint gva, out ulong gpa)
    {
        gpa = 0;
        if (!memory.TryRead((c->Cr3 & 0xffff_f000) + (gva >> 22) * 4, out uint pde) || (pde & Present) == 0)
            return false;
        if ((pde & Large) != 0 && (c->Cr4 & Cr4.PSE) != 0)
        {
            gpa = pde & 0xffc0_0000 | (ulong)(pde >> 13 & 0xff) << 32 | gva & 0x3f_ffff;
            return true;
        }
        if (!memory.TryRead((pde & 0xffff_f000) + (gva >> 12 & 1023) * 4, out uint pte) || (pte & Present) == 0)
            return false;
        gpa = pte & 0xffff_f000 | gva & 0xfff;
        return true;
    }
}
