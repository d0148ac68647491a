using Ring3.Abi;
using Ring3.Arch;

// SAFETY: _s lives as long as the vCPU; the index of a pointer is two bits.
namespace Ring3.Kvm;

/// <summary>
/// The guest's own page tables, as the client and the hypervisor read them: a walk in guest memory that sets no Accessed bit and needs no nested mapping.
/// </summary>
internal sealed class GuestTables(VcpuCore core) : VcpuPart(core)
{
    /// <summary>KVM_TRANSLATE: the guest-physical address of a linear one under the current paging mode, with the privilege of the processor itself.</summary>
    public void Translate(ref kvm_translation tr)
    {
        // KVM: without paging the answer is the address itself, and all ones is the address that stands for none.
        bool valid = TryTranslate(tr.linear_address, out ulong gpa, out _) && tr.linear_address != ulong.MaxValue;
        tr.physical_address = valid ? gpa : ulong.MaxValue;
        tr.valid = valid ? (byte)1 : (byte)0;
        // KVM: these two are constants there.
        tr.writeable = 1;
        tr.usermode = 0;
    }

    /// <summary>Guest-physical address of a linear address. False when it is not mapped, or mapped by an entry with reserved bits.</summary>
    /// <param name="writable">Whether every level allows writes.</param>
    public unsafe bool TryTranslate(ulong linear, out ulong gpa, out bool writable)
    {
        (gpa, writable) = (linear, true);
        if ((_s->Cr0 & Arch.Cr0.PG) == 0)
        {
            gpa = (uint)linear;
            return true;
        }
        if ((_s->Cr4 & Arch.Cr4.PAE) == 0)
            return TryTranslate32((uint)linear, out gpa, out writable);
        if (ProcessorMode.IsPaePaging(_s))
        {
            ulong pointer = _s->Pdptr[(uint)linear >> 30];
            return (pointer & Pte.P) != 0 && TryWalk((uint)linear, pointer, 2, ref gpa, ref writable);
        }
        int levels = (_s->Cr4 & Arch.Cr4.LA57) != 0 ? 5 : 4, unused = 64 - 12 - 9 * levels;
        return (ulong)((long)linear << unused >> unused) == linear && TryWalk(linear, _s->Cr3, levels, ref gpa, ref writable);
    }

    private unsafe int AddressSpace => ProcessorMode.AddressSpace(_s);

    /// <summary>Levels of 512 entries of 8 bytes, from the table in <paramref name="entry"/> down.</summary>
    private bool TryWalk(ulong linear, ulong entry, int level, ref ulong gpa, ref bool writable)
    {
        ulong frame = (1UL << Cpu.CpuidFeatures.PhysicalAddressBits) - 1 & ~0xfffUL;
        for (; ; level--)
        {
            int shift = 12 + 9 * (level - 1);
            if (!Vm.Memory.TryRead((entry & frame) + (linear >> shift & 511) * 8, out entry, AddressSpace) || (entry & Pte.P) == 0)
                return false;
            if ((entry & 0x000f_ffff_ffff_f000 & ~frame) != 0 || level > 3 && (entry & Pte.PS) != 0)
                return false;
            writable &= (entry & Pte.W) != 0;
            if (level > 1 && (entry & Pte.PS) == 0)
                continue;
            ulong offset = (1UL << shift) - 1;
            gpa = entry & frame & ~offset | linear & offset;
            return true;
        }
    }

    /// <summary>Two levels of 1024 entries of 4 bytes, with 4 MiB pages in up to 40 bits.</summary>
    private unsafe bool TryTranslate32(uint linear, out ulong gpa, out bool writable)
    {
        (gpa, writable) = (0, false);
        if (!Vm.Memory.TryRead((_s->Cr3 & 0xffff_f000) + (linear >> 22) * 4, out uint directory, AddressSpace) || (directory & Pte.P) == 0)
            return false;
        if ((directory & Pte.PS) != 0 && (_s->Cr4 & Arch.Cr4.PSE) != 0)
        {
            if ((directory & Cpu.ReservedLargePage32) != 0)
                return false;
            gpa = directory & 0xffc0_0000 | (ulong)(directory >> 13 & 0xff) << 32 | linear & 0x3f_ffff;
            writable = (directory & Pte.W) != 0;
            return true;
        }
        if (!Vm.Memory.TryRead((directory & 0xffff_f000) + (linear >> 12 & 1023) * 4, out uint entry, AddressSpace) || (entry & Pte.P) == 0)
            return false;
        gpa = entry & 0xffff_f000 | linear & 0xfff;
        writable = (directory & entry & Pte.W) != 0;
        return true;
    }

    /// <summary>Whether the walk for a linear address meets an entry whose address the guest's MAXPHYADDR forbids, though the tables could hold it.</summary>
    public unsafe bool MeetsWideAddress(ulong linear)
    {
        if ((_s->Cr0 & Arch.Cr0.PG) == 0 || (_s->Cr4 & Arch.Cr4.PAE) == 0)
            return false;
        bool pae = ProcessorMode.IsPaePaging(_s);
        ulong entry = pae ? _s->Pdptr[(uint)linear >> 30] : _s->Cr3;
        ulong frame = (1UL << Cpu.CpuidFeatures.PhysicalAddressBits) - 1 & ~0xfffUL;
        for (int level = pae ? 2 : (_s->Cr4 & Arch.Cr4.LA57) != 0 ? 5 : 4; level > 0; level--)
        {
            ulong slot = (entry & frame) + (linear >> 12 + 9 * (level - 1) & 511) * 8;
            if (!Vm.Memory.TryRead(slot, out entry, AddressSpace) || (entry & Pte.P) == 0)
                return false;
            if ((entry & Pte.Address & ~frame) != 0)
                return true;
            if (level > 1 && (entry & Pte.PS) != 0)
                return false;
        }
        return false;
    }

    /// <summary>Loads the PAE pointers from where CR3 points. False when one of them is not readable or has reserved bits; it is not present then.</summary>
    public unsafe bool LoadPdptrs()
    {
        bool valid = true;
        ulong reserved = 0x1e6 | ~((1UL << Cpu.CpuidFeatures.PhysicalAddressBits) - 1);
        for (uint i = 0; i < 4; i++)
        {
            bool good = Vm.Memory.TryRead((_s->Cr3 & 0xffff_ffe0) + 8 * i, out ulong entry, AddressSpace) && ((entry & Pte.P) == 0 || (entry & reserved) == 0);
            _s->Pdptr[i] = good ? entry : 0;
            valid &= good;
        }
        return valid;
    }
}
