using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Kvm.CpuidBits;

// SAFETY: _s lives as long as the vCPU; indices into its arrays are constants.
namespace Ring3.Kvm;

/// <summary>
/// CPUID of a vCPU: the leaves that the client has given it, with the bits that follow the state of the processor; and what the rest of the hypervisor and the
/// processor take from them.
/// </summary>
internal sealed class VcpuCpuid : VcpuPart
{
    private readonly VcpuApic _apic;
    private readonly VcpuTsc _tsc;
    private readonly ExitPolicies _policies;
    private kvm_cpuid_entry2[] _cpuid = [];
    private uint _maxBasic, _maxExtended, _pvFeatures, _kvmBase;
    /// <summary>Leaf of Xen's time information, if the client shows Xen to the guest; else 0.</summary>
    private uint _xenTimingLeaf;
    private ulong _miscEnable = MiscEnableReadOnly;

    /// <summary>Before KVM_SET_CPUID2 the processor executes everything, but CPUID reports nothing, as in KVM.</summary>
    public VcpuCpuid(VcpuCore core, VcpuApic apic, VcpuTsc tsc, ExitPolicies policies) : base(core)
    {
        (_apic, _tsc, _policies) = (apic, tsc, policies);
        Cpu.CpuidFeatures.PhysicalAddressBits = 48;
        Cpu.CpuidFeatures.Xcr0Mask = SupportedCpuid.SupportedXcr0;
        Cpu.CpuidFeatures.Ffxsr = false;
        UpdateMonitor();
    }

    // ---- The client's ----

    /// <summary>The client has set a CPUID.</summary>
    public bool IsSet => _cpuid.Length != 0;

    /// <summary>PV features that are not in the guest's CPUID do not work (KVM_CAP_ENFORCE_PV_FEATURE_CPUID).</summary>
    public bool EnforcesPvFeatures { get; set; }

    /// <summary>
    /// KVM_SET_CPUID2: 0, -E2BIG for more than <see cref="Vcpu.MaxCpuidEntries"/>, -EINVAL for a linear address width other than 48 and 57 bits, or for another
    /// CPUID than before once the vCPU has run. The client decides what the guest sees; what it adds beyond KVM_GET_SUPPORTED_CPUID does not start to work.
    /// </summary>
    public int Set(ReadOnlySpan<kvm_cpuid_entry2> entries)
    {
        if (entries.Length > Vcpu.MaxCpuidEntries)
            return -Errno.E2BIG;
        uint kvmBase = FindKvmBase(entries);
        if (_core.HasRun)
            return IsSameCpuid(entries, kvmBase) ? 0 : -Errno.EINVAL;
        foreach (ref readonly var e in entries)
            if (e.function == 0x8000_0008 && (e.eax >> 8 & 0xff) is not (0 or 48 or 57))
                return -Errno.EINVAL;
        _cpuid = entries.ToArray();
        (_maxBasic, _maxExtended, _pvFeatures, _kvmBase) = (0, 0, 0, kvmBase);
        foreach (ref readonly var e in entries)
        {
            if (e.function == 0)
                _maxBasic = e.eax;
            else if (e.function == 0x8000_0000)
                _maxExtended = e.eax;
            else if (kvmBase != 0 && e.function == (kvmBase | KvmPara.KVM_CPUID_FEATURES))
                _pvFeatures = Dynamic(e, kvmBase).Eax;
        }
        Apply();
        return 0;
    }

    /// <summary>The base of the leaves that carry KVM's signature, where clients also offer another hypervisor's; 0 when there is none.</summary>
    private static uint FindKvmBase(ReadOnlySpan<kvm_cpuid_entry2> entries)
    {
        foreach (ref readonly var e in entries)
            if (e.function is >= 0x4000_0000 and < 0x4001_0000 && (e.function & 0xff) == 0 && (e.ebx, e.ecx, e.edx) == (0x4b4d_564b, 0x564b_4d56, 0x4d))
                return e.function;
        return 0;
    }

    private bool IsSameCpuid(ReadOnlySpan<kvm_cpuid_entry2> entries, uint kvmBase)
    {
        if (entries.Length != _cpuid.Length)
            return false;
        for (int i = 0; i < entries.Length; i++)
        {
            ref readonly var e = ref entries[i];
            if ((e.function, e.index, e.flags) != (_cpuid[i].function, _cpuid[i].index, _cpuid[i].flags) || Dynamic(e, kvmBase) != Dynamic(_cpuid[i], _kvmBase))
                return false;
        }
        return true;
    }

    /// <summary>KVM_GET_CPUID2: number of entries, or -E2BIG.</summary>
    public int Get(Span<kvm_cpuid_entry2> entries)
    {
        if (entries.Length < _cpuid.Length)
            return -Errno.E2BIG;
        _cpuid.CopyTo(entries);
        for (int i = 0; i < _cpuid.Length; i++)
            (entries[i].eax, entries[i].ebx, entries[i].ecx, entries[i].edx) = Dynamic(_cpuid[i], _kvmBase);
        return _cpuid.Length;
    }

    // ---- What others ask ----

    /// <summary>MSRs of speculation control that the guest's CPUID has.</summary>
    public (bool SpecCtrl, bool PredCmd, bool FlushCmd, bool ArchCapabilities) Speculation { get; private set; }
    public bool HasOsvw { get; private set; }
    public bool HasXsaves => (Leaf(0xd, 1).eax & LeafDEax.XSAVES) != 0;
    public bool HasLongMode => (Leaf(0x8000_0001).edx & Ext1Edx.LM) != 0;

    /// <summary>
    /// Whether the guest may use a paravirtual feature: all of them, unless the client restricted it to those of its CPUID (KVM_CAP_ENFORCE_PV_FEATURE_CPUID).
    /// </summary>
    public bool HasPvFeature(int bit) => !EnforcesPvFeatures || (_pvFeatures >> bit & 1) != 0;

    /// <summary>The client's leaf; zeros when it has given none.</summary>
    public kvm_cpuid_entry2 Leaf(uint function, uint index = 0) => FindEntry(function, index) is >= 0 and var i ? _cpuid[i] : default;

    private int FindEntry(uint function, uint index)
    {
        var entries = _cpuid;
        for (int i = 0; i < entries.Length; i++)
        {
            ref readonly var e = ref entries[i];
            if (e.function == function && ((e.flags & KvmApi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX) == 0 || e.index == index))
                return i;
        }
        return -1;
    }

    // ---- Registers that CPUID depends on ----

    private const ulong MiscEnableMwait = 1 << 18, MiscFeaturesCpuidFault = 1;

    /// <summary>Bits of IA32_MISC_ENABLE that say what is not there: branch trace store, PEBS.</summary>
    public const ulong MiscEnableReadOnly = 1 << 11 | 1 << 12;

    /// <summary>IA32_MISC_ENABLE.</summary>
    public ulong MiscEnable
    {
        get => _miscEnable;
        set
        {
            _miscEnable = value;
            UpdateMonitor();
        }
    }

    /// <summary>MSR_MISC_FEATURES_ENABLES: bit 0 makes CPUID the supervisor's alone.</summary>
    public ulong MiscFeatures { get; set; }

    /// <summary>MONITOR and MWAIT do nothing here. KVM: as with its quirk, they do that even where CPUID does not have them.</summary>
    public void UpdateMonitor() => Cpu.CpuidFeatures.Monitor = (Vm.Settings.DisabledQuirks & KvmApi.KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS) == 0
        || FindEntry(1, 0) is >= 0 and var i && (Dynamic(_cpuid[i], _kvmBase).Ecx & Leaf1Ecx.MONITOR) != 0;

    private void Apply()
    {
        _xenTimingLeaf = FindXenTimingLeaf();
        var l0 = Leaf(0);
        var l1 = Leaf(1);
        var l7 = Leaf(7);
        var x1 = Leaf(0x8000_0001);
        var x8 = Leaf(0x8000_0008);
        ulong xcr0 = Leaf(0xd).eax | (ulong)Leaf(0xd).edx << 32;
        Cpu.CpuidFeatures = new CpuidFeatures
        {
            Signature = l1.eax,
            Vendor = ProcessorModel.VendorOf(l0.ebx, l0.edx, l0.ecx),
            PhysicalAddressBits = (x8.eax & 0xff) is >= 32 and <= 52 and var bits ? (int)bits : 36,
            Pse = (l1.edx & Leaf1Edx.PSE) != 0,
            Pse36 = (l1.edx & Leaf1Edx.PSE36) != 0,
            Pae = (l1.edx & Leaf1Edx.PAE) != 0,
            Pge = (l1.edx & Leaf1Edx.PGE) != 0,
            Mce = (l1.edx & Leaf1Edx.MCE) != 0,
            Vme = (l1.edx & Leaf1Edx.VME) != 0,
            Fxsr = (l1.edx & Leaf1Edx.FXSR) != 0,
            Sysenter = (l1.edx & Leaf1Edx.SEP) != 0,
            Pcid = (l1.ecx & Leaf1Ecx.PCID) != 0,
            Xsave = (l1.ecx & Leaf1Ecx.XSAVE) != 0,
            Smep = (l7.ebx & Leaf7Ebx.SMEP) != 0,
            Smap = (l7.ebx & Leaf7Ebx.SMAP) != 0,
            FsGsBase = (l7.ebx & Leaf7Ebx.FSGSBASE) != 0,
            Invpcid = (l7.ebx & Leaf7Ebx.INVPCID) != 0,
            Umip = (l7.ecx & Leaf7Ecx.UMIP) != 0,
            Pku = (l7.ecx & Leaf7Ecx.PKU) != 0,
            La57 = (l7.ecx & Leaf7Ecx.LA57) != 0,
            Rdpid = (l7.ecx & Leaf7Ecx.RDPID) != 0,
            Nx = (x1.edx & Ext1Edx.NX) != 0,
            LongMode = (x1.edx & Ext1Edx.LM) != 0,
            Pages1G = (x1.edx & Ext1Edx.GBPAGES) != 0,
            Syscall = (x1.edx & Ext1Edx.SYSCALL) != 0,
            Rdtscp = (x1.edx & Ext1Edx.RDTSCP) != 0,
            Ffxsr = (x1.edx & Ext1Edx.FXSR_OPT) != 0,
            Sse4a = IsAmd && (x1.ecx & Ext1Ecx.SSE4A) != 0,
            MisalignedSse = IsAmd && (x1.ecx & Ext1Ecx.MISALIGNSSE) != 0,
            Clzero = IsAmd && (x8.ebx & Ext8Ebx.CLZERO) != 0,
            AutoIbrs = (Leaf(0x8000_0021).eax & Ext21Eax.AUTOIBRS) != 0,
            Xcr0Mask = (xcr0 | Arch.Xcr0.X87) & SupportedCpuid.SupportedXcr0,
        };
        bool specCtrl = (l7.edx & Leaf7Edx.SPEC_CTRL) != 0;
        Speculation = (specCtrl || (x8.ebx & (Ext8Ebx.IBRS | Ext8Ebx.STIBP | Ext8Ebx.SSBD)) != 0, specCtrl || (x8.ebx & Ext8Ebx.IBPB) != 0,
            (l7.edx & Leaf7Edx.FLUSH_L1D) != 0, (l7.edx & Leaf7Edx.ARCH_CAPABILITIES) != 0);
        HasOsvw = (x1.ecx & Ext1Ecx.OSVW) != 0;
        UpdateMonitor();
        _policies.UpdateWideAddresses();
        bool hasX2Apic = (l1.ecx & Leaf1Ecx.X2APIC) != 0;
        _apic.LimitBase(hasX2Apic, Cpu.CpuidFeatures.PhysicalAddressBits);
        if (Lapic is not null)
        {
            // KVM: its own I/O APIC has no EOI register, which a guest that suppresses the broadcast would need.
            Lapic.DirectedEoiSupported = hasX2Apic && Vm.Irqchip is { Split: true };
            Lapic.TscDeadlineSupported = (l1.ecx & Leaf1Ecx.TSC_DEADLINE) != 0;
        }
        Cpu.RecomputeMode();
    }

    /// <summary>Whether CPUID is the supervisor's alone. SPEC: Intel, "CPUID Faulting": #GP(0) above CPL 0, except in SMM.</summary>
    private unsafe bool Faults => (MiscFeatures & MiscFeaturesCpuidFault) != 0 && _s->Cpl != 0 && _s->InSmm == 0;

    /// <summary>CPUID with the guest's EAX and ECX. False: #GP(0).</summary>
    public unsafe bool TryExecute()
    {
        if (Faults)
            return false;
        uint function = (uint)_s->Gpr[0], index = (uint)_s->Gpr[1];
        (_s->Gpr[0], _s->Gpr[3], _s->Gpr[1], _s->Gpr[2]) = Read(function, index);
        Cpu.SkipInstruction();
        return true;
    }

    /// <summary>What the guest gets for a leaf.</summary>
    public (uint Eax, uint Ebx, uint Ecx, uint Edx) Read(uint function, uint index)
    {
        int i = FindEntry(function, index);
        if (i >= 0)
            return Dynamic(_cpuid[i], _kvmBase);
        if (function is 0xb or 0x1f && FindEntry(function, 0) is >= 0 and var first)
            // Levels beyond the last are invalid, but still say which level was asked for, and by whom.
            return (0, 0, index & 0xff, _cpuid[first].edx);
        // SPEC: Intel returns the highest basic leaf for leaves beyond it; AMD zeros.
        bool outOfRange = function < 0x4000_0000 ? function > _maxBasic : function >= 0x8000_0000 && function > _maxExtended;
        if (!IsAmd && outOfRange && function < 0xc000_0000 && FindEntry(_maxBasic, index) is >= 0 and var last)
            return Dynamic(_cpuid[last], _kvmBase);
        return default;
    }

    /// <summary>Bits that follow the state of the processor and of the VM.</summary>
    private unsafe (uint Eax, uint Ebx, uint Ecx, uint Edx) Dynamic(in kvm_cpuid_entry2 e, uint kvmBase)
    {
        var (eax, ebx, ecx, edx) = (e.eax, e.ebx, e.ecx, e.edx);
        switch (e.function)
        {
            case var leaf when leaf == _xenTimingLeaf && leaf != 0:
                XenTiming(e.index, ref eax, ref ecx, ref edx);
                break;
            case 1:
                ecx = (_s->Cr4 & Cr4.OSXSAVE) != 0 ? ecx | Leaf1Ecx.OSXSAVE : ecx & ~Leaf1Ecx.OSXSAVE;
                edx = _apic.IsEnabled ? edx | Leaf1Edx.APIC : edx & ~Leaf1Edx.APIC;
                if ((Vm.Settings.DisabledQuirks & KvmApi.KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT) != 0)
                    ecx = (_miscEnable & MiscEnableMwait) != 0 ? ecx | Leaf1Ecx.MONITOR : ecx & ~Leaf1Ecx.MONITOR;
                break;
            case 7 when e.index == 0:
                ecx = (_s->Cr4 & Cr4.PKE) != 0 ? ecx | Leaf7Ecx.OSPKE : ecx & ~Leaf7Ecx.OSPKE;
                break;
            case 0xd when e.index == 0:
                ebx = XsaveArea.SizeFor(_s->Xcr0, Vm.Processor);
                break;
            case 0xd when e.index == 1 && (eax & (LeafDEax.XSAVEC | LeafDEax.XSAVES)) != 0:
                ebx = XsaveArea.CompactedSizeFor(_s->Xcr0 | _s->Xss);
                break;
            case 0xd when e is { index: 9, eax: not 0, ebx: 0 }:
                // Clients ask the host's CPUID where a component is; one without protection keys does not know. No component is at 0.
                ebx = (uint)Vm.Processor.PkruOffset;
                break;
            case >= 0x4000_0000 and < 0x4001_0000 when kvmBase != 0 && e.function == (kvmBase | KvmPara.KVM_CPUID_FEATURES) && Vm.Settings.HaltsInGuest:
                eax &= ~(1u << KvmPara.KVM_FEATURE_PV_UNHALT);
                break;
        }
        return (eax, ebx, ecx, edx);
    }

    // ---- Xen ----

    /// <summary>Xen's leaves begin at a multiple of 0x100 from 0x40000000 on, wherever the signature is.</summary>
    private uint FindXenTimingLeaf()
    {
        foreach (ref readonly kvm_cpuid_entry2 e in _cpuid.AsSpan())
            if (e.function is >= 0x4000_0000 and < 0x4001_0000 && (e.function & 0xff) == 0 && e is { ebx: 0x566e_6558, ecx: 0x6558_4d4d, edx: 0x4d4d_566e }
                && e.eax >= e.function + 3)
                return e.function + 3;
        return 0;
    }

    /// <summary>The factors of the vCPU's clock: sub-leaf 1 has multiplier and shift, sub-leaf 2 the frequency.</summary>
    private void XenTiming(uint index, ref uint eax, ref uint ecx, ref uint edx)
    {
        if (index == 1)
        {
            var (mul, shift) = PvClockScale.ForTscKhz(_tsc.Khz);
            (ecx, edx) = (mul, (uint)shift);
        }
        else if (index == 2)
            eax = _tsc.Khz;
    }
}
