using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;

// SAFETY: _s lives as long as the vCPU; indices into its arrays and into the client's structures are constants.
namespace Ring3.Kvm;

/// <summary>Segment, control and table registers, EFER, IA32_APIC_BASE: KVM_GET/SET_SREGS and KVM_GET/SET_SREGS2.</summary>
internal sealed class SystemRegisters(
    VcpuCore core, VcpuCpuid cpuid, VcpuApic apic, GuestTables tables, Translations translations, VcpuEvents events, VcpuActivity activity) : VcpuPart(core)
{
    private const ulong SupportedCr4 = Cr4.VME | Cr4.PVI | Cr4.TSD | Cr4.DE | Cr4.PSE | Cr4.PAE | Cr4.MCE | Cr4.PGE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
        | Cr4.UMIP | Cr4.LA57 | Cr4.FSGSBASE | Cr4.PCIDE | Cr4.OSXSAVE | Cr4.SMEP | Cr4.SMAP | Cr4.PKE;

    private readonly bool _isBootProcessor = core.IsBootProcessor;

    private static kvm_segment ToKvm(in Segment s) => new()
    {
        @base = s.Base,
        limit = s.Limit,
        selector = s.Selector,
        type = (byte)(s.Access & Segment.TypeMask),
        s = (byte)(s.Access >> 4 & 1),
        dpl = (byte)(s.Access >> 5 & 3),
        present = (byte)(s.Access >> 7 & 1),
        avl = (byte)(s.Access >> 12 & 1),
        l = (byte)(s.Access >> 13 & 1),
        db = (byte)(s.Access >> 14 & 1),
        g = (byte)(s.Access >> 15 & 1),
        unusable = (byte)(s.Access >> 16 & 1),
    };

    private static Segment FromKvm(in kvm_segment s) => new()
    {
        Base = s.@base,
        Limit = s.limit,
        Selector = s.selector,
        Access = (uint)(s.type & 15) | (uint)(s.s & 1) << 4 | (uint)(s.dpl & 3) << 5 | (uint)(s.present & 1) << 7 | (uint)(s.avl & 1) << 12
            | (uint)(s.l & 1) << 13 | (uint)(s.db & 1) << 14 | (uint)(s.g & 1) << 15 | (s.unusable != 0 || s.present == 0 ? Segment.Unusable : 0),
    };

    /// <summary>KVM_GET_SREGS.</summary>
    public unsafe void Get(out kvm_sregs sregs)
    {
        Get2(out kvm_sregs2 s2);
        sregs = new()
        {
            cs = s2.cs, ds = s2.ds, es = s2.es, fs = s2.fs, gs = s2.gs, ss = s2.ss, tr = s2.tr, ldt = s2.ldt, gdt = s2.gdt, idt = s2.idt,
            cr0 = s2.cr0, cr2 = s2.cr2, cr3 = s2.cr3, cr4 = s2.cr4, cr8 = s2.cr8, efer = s2.efer, apic_base = s2.apic_base,
        };
        int vector = events.QueuedInterrupt;
        if (vector >= 0)
            sregs.interrupt_bitmap[vector / 64] |= 1UL << (vector & 63);
    }

    /// <summary>KVM_SET_SREGS: 0 or -EINVAL.</summary>
    public unsafe int Set(in kvm_sregs sregs)
    {
        kvm_sregs2 s2 = new()
        {
            cs = sregs.cs, ds = sregs.ds, es = sregs.es, fs = sregs.fs, gs = sregs.gs, ss = sregs.ss, tr = sregs.tr, ldt = sregs.ldt, gdt = sregs.gdt,
            idt = sregs.idt, cr0 = sregs.cr0, cr2 = sregs.cr2, cr3 = sregs.cr3, cr4 = sregs.cr4, cr8 = sregs.cr8, efer = sregs.efer,
            apic_base = sregs.apic_base,
        };
        int r = Apply(s2, pdptrs: false);
        if (r != 0)
            return r;
        for (int i = 0; i < 4; i++)
        {
            ulong word = sregs.interrupt_bitmap[i];
            if (word == 0)
                continue;
            // KVM: the lowest of several; and an empty bitmap takes nothing back, KVM_SET_VCPU_EVENTS does.
            events.QueueInterrupt((byte)(i * 64 + System.Numerics.BitOperations.TrailingZeroCount(word)));
            break;
        }
        return 0;
    }

    /// <summary>KVM_GET_SREGS2.</summary>
    public unsafe void Get2(out kvm_sregs2 sregs)
    {
        CpuState* c = _s;
        sregs = new()
        {
            cs = ToKvm(c->Cs), ds = ToKvm(c->Ds), es = ToKvm(c->Es), fs = ToKvm(c->Fs), gs = ToKvm(c->Gs), ss = ToKvm(c->Ss), tr = ToKvm(c->Tr),
            ldt = ToKvm(c->Ldtr),
            gdt = new() { @base = c->Gdtr.Base, limit = (ushort)c->Gdtr.Limit },
            idt = new() { @base = c->Idtr.Base, limit = (ushort)c->Idtr.Limit },
            cr0 = c->Cr0, cr2 = c->Cr2, cr3 = c->Cr3, cr4 = c->Cr4, cr8 = apic.Cr8, efer = c->Efer, apic_base = apic.Base,
        };
        if (!ProcessorMode.IsPaePaging(c))
            return;
        sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
        for (int i = 0; i < 4; i++)
            sregs.pdptrs[i] = c->Pdptr[i];
    }

    /// <summary>KVM_SET_SREGS2: 0 or -EINVAL.</summary>
    public int Set2(in kvm_sregs2 sregs)
    {
        bool pdptrs = (sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
        if ((sregs.flags & ~KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 || pdptrs && !ProcessorMode.IsPaePaging(sregs.cr0, sregs.cr4, sregs.efer))
            return -Errno.EINVAL;
        return Apply(sregs, pdptrs);
    }

    /// <summary>The combinations that the processor can have. SPEC: SDM volume 3, "Checks on Guest Control Registers, Debug Registers, and MSRs".</summary>
    private bool IsValid(in kvm_sregs2 s)
    {
        // KVM: bits of EFER that do not exist are accepted here (and refused by KVM_SET_MSRS).
        if ((s.cr4 & ~SupportedCr4) != 0 || cpuid.IsSet && !Cpu.IsValidCr4(s.cr4) || !ProcessorMode.IsValidCr0(s.cr0))
            return false;
        if ((s.efer & Arch.Efer.LME) != 0 && (s.cr0 & Arch.Cr0.PG) != 0)
            return (s.cr4 & Arch.Cr4.PAE) != 0 && (s.efer & Arch.Efer.LMA) != 0 && (s.cr3 & ~((1UL << Cpu.CpuidFeatures.PhysicalAddressBits) - 1)) == 0;
        return (s.efer & Arch.Efer.LMA) == 0 && s.cs.l == 0;
    }

    private unsafe int Apply(in kvm_sregs2 s, bool pdptrs)
    {
        if (!IsValid(s) || !apic.TrySetBase(s.apic_base, host: true))
            return -Errno.EINVAL;
        CpuState* c = _s;
        c->Cs = FromKvm(s.cs); c->Ds = FromKvm(s.ds); c->Es = FromKvm(s.es); c->Fs = FromKvm(s.fs); c->Gs = FromKvm(s.gs); c->Ss = FromKvm(s.ss);
        c->Tr = FromKvm(s.tr); c->Ldtr = FromKvm(s.ldt);
        c->Gdtr = new() { Base = s.gdt.@base, Limit = s.gdt.limit };
        c->Idtr = new() { Base = s.idt.@base, Limit = s.idt.limit };
        c->Cr0 = s.cr0 | Arch.Cr0.ET;
        c->Cr2 = s.cr2;
        c->Cr3 = s.cr3;
        c->Cr4 = s.cr4;
        c->Efer = s.efer;
        apic.Cr8 = s.cr8;
        c->Cpl = (c->Cr0 & Arch.Cr0.PE) == 0 ? 0 : (Cpu.RflagsValue & Rflags.VM) != 0 ? 3 : c->Ss.Access >> 5 & 3;
        if (pdptrs)
            for (int i = 0; i < 4; i++)
                c->Pdptr[i] = s.pdptrs[i];
        else if (ProcessorMode.IsPaePaging(c))
            tables.LoadPdptrs();
        // Older clients wake an application processor by writing its start state.
        if (_isBootProcessor && c->Rip == 0xfff0 && c->Cs.Selector == 0xf000 && c->Cs.Base == 0xffff0000 && (c->Cr0 & Arch.Cr0.PE) == 0)
            activity.State = MpState.Runnable;
        // More than the difference of the registers asks for: the client may have replaced memory and registers by another machine's.
        translations.OweFlush(FlushSite.ClientState);
        Requests.MakeSelf(VcpuRequest.Event);
        Cpu.RecomputeMode();
        return 0;
    }
}
