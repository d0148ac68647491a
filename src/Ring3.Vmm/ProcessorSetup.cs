using System.Buffers.Binary;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>Sets a vCPU's registers to what a boot protocol asks for.</summary>
internal static class ProcessorSetup
{
    private const byte TypeCode = 11, TypeData = 3, TypeTask = 11;

    /// <summary>LINT0 as ExtINT and LINT1 as NMI, as firmware leaves them ("virtual wire").</summary>
    public static unsafe void WireLocalInterrupts(Vcpu vcpu)
    {
        const int Lvt0 = 0x350, Lvt1 = 0x360, ExtInt = 0x700, Nmi = 0x400;
        if (vcpu.GetLapic(out kvm_lapic_state state) != 0)
            return;
        // SAFETY: the offsets lie within the 1-KiB register page.
        var page = new Span<byte>(state.regs, KvmApi.KVM_APIC_REG_SIZE);
        BinaryPrimitives.WriteUInt32LittleEndian(page[Lvt0..], ExtInt);
        BinaryPrimitives.WriteUInt32LittleEndian(page[Lvt1..], Nmi);
        _ = vcpu.SetLapic(state);
    }

    /// <summary>
    /// What firmware leaves in MSRs. AMD: the TSC ticks at the P0 frequency (HWCR.TscFreqSel); kernels complain otherwise. Intel: fast strings are on
    /// (IA32_MISC_ENABLE bit 0); else kernels do without ERMS, and some then take FSRM alone for both.
    /// </summary>
    public static void SetFirmwareMsrs(Vcpu vcpu)
    {
        const ulong TscFreqSel = 1 << 24, FastStrings = 1;
        Span<kvm_msr_entry> entry = [new kvm_msr_entry { index = vcpu.Vm.Processor.IsAmd ? Msr.HWCR : Msr.MISC_ENABLE }];
        _ = vcpu.GetMsrs(entry);
        entry[0].data |= vcpu.Vm.Processor.IsAmd ? TscFreqSel : FastStrings;
        _ = vcpu.SetMsrs(entry);
    }

    public static void Enter(Vcpu vcpu, EntryState e)
    {
        vcpu.GetSregs(out kvm_sregs s);
        switch (e.Mode)
        {
            case EntryMode.Real16:
                s.cs = Real(e.Cs, TypeCode);
                s.ds = s.es = s.fs = s.gs = s.ss = Real(e.Ds, TypeData);
                s.idt = new kvm_dtable { @base = 0, limit = 0x3ff };
                break;
            case EntryMode.Protected32:
                Flat(ref s, e, longMode: false);
                s.cr0 = Cr0.PE | Cr0.ET;
                s.cr4 = 0;
                s.efer = 0;
                break;
            case EntryMode.Long64:
                Flat(ref s, e, longMode: true);
                s.cr3 = e.Cr3;
                s.cr4 = Cr4.PAE;
                s.cr0 = Cr0.PE | Cr0.PG | Cr0.ET | Cr0.WP;
                s.efer = Efer.LME | Efer.LMA;
                break;
        }
        if (vcpu.SetSregs(s) != 0)
            throw new BootException(ExitStatus.Internal, $"the hypervisor refuses the entry state of {e.Protocol}");
        vcpu.SetRegs(new kvm_regs { rip = e.Rip, rsp = e.Rsp, rax = e.Rax, rbx = e.Rbx, rdx = e.Rdx, rsi = e.Rsi, rflags = Rflags.Fixed1 });
    }

    private static void Flat(ref kvm_sregs s, EntryState e, bool longMode)
    {
        s.cs = new kvm_segment { limit = uint.MaxValue, selector = e.Cs, type = TypeCode, present = 1, s = 1, g = 1, l = longMode ? (byte)1
            : (byte)0, db = longMode ? (byte)0 : (byte)1 };
        s.ds = s.es = s.fs = s.gs = s.ss = new kvm_segment { limit = uint.MaxValue, selector = e.Ds, type = TypeData, present = 1, s = 1, g = 1, db = 1 };
        s.tr = new kvm_segment { limit = 0x67, selector = BootTables.TaskSelector, type = TypeTask, present = 1 };
        s.ldt = new kvm_segment { unusable = 1, type = 2 };
        s.gdt = new kvm_dtable { @base = MemoryLayout.Gdt, limit = BootTables.GdtBytes - 1 };
        s.idt = default;
    }

    private static kvm_segment Real(ushort selector, byte type) =>
        new() { @base = (ulong)selector << 4, limit = 0xffff, selector = selector, type = type, present = 1, s = 1 };
}
