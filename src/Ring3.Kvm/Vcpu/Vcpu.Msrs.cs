using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// Model-specific registers: the guest's RDMSR and WRMSR, and the client's KVM_GET_MSRS and KVM_SET_MSRS.
public sealed unsafe partial class Vcpu
{
    private const ulong FeatureControlLocked = 1, HwcrTscFreqSel = 1 << 24, HwcrMcStatusWrite = 1 << 18;
    /// <summary>Hardware without Meltdown, L1TF, MDS, TAA, SSB and their kin: what an interpreter is.</summary>
    private const ulong ArchCapabilities = 1 << 0 /* RDCL_NO */ | 1 << 1 /* IBRS_ALL */ | 1 << 3 /* SKIP_L1DFL_VMENTRY */ | 1 << 4 /* SSB_NO */ | 1 << 5 /* MDS_NO */ | 1 << 6 /* PSCHANGE_MC_NO */ | 1 << 8 /* TAA_NO */
        | 1 << 13 /* SBDR_SSDP_NO */ | 1 << 14 /* FBSDP_NO */ | 1 << 15 /* PSDP_NO */ | 1 << 20 /* BHI_NO */ | 1 << 24 /* PBRSB_NO */ | 1 << 26 /* GDS_NO */ | 1 << 27 /* RFDS_NO */ | 1UL << 62 /* ITS_NO */;
    private const ulong DeCfgLfenceSerialize = 2, PlatformInfoCpuidFault = 1UL << 31, MiscFeaturesCpuidFault = 1;
    private const ulong MiscEnableMonitoring = 1 << 7;

    private readonly MtrrState _mtrr = new();
    private readonly MachineCheckState _machineCheck = new();
    private ulong _featureControl, _archCapabilities = ArchCapabilities, _hwcr, _microcode, _specCtrl, _platformInfo, _powerCtl, _osvwStatus;

    /// <summary>
    /// Which accesses come here although the processor would do them by itself: with a filter all of them, and when the client wants to see refused ones those. Any thread.
    /// </summary>
    internal void InterceptMsrs() =>
        Volatile.Write(ref _s->InterceptMsrs, Vm.MsrFilter is not null ? MsrIntercepts.All : (Vm.UserSpaceMsrMask & KVM_MSR_EXIT_REASON_INVAL) != 0 ? MsrIntercepts.Refused : MsrIntercepts.None);

    private void InitializeMsrs()
    {
        InterceptMsrs();
        _microcode = DefaultMicrocode(Vm.Processor);
        _platformInfo = PlatformInfoCpuidFault;
    }

    /// <summary>OSVW: this many errata are known of, and with a status of 0 none of them is there.</summary>
    private ulong _osvwLength = 4;

    private static ulong DefaultMicrocode(ProcessorModel model) => model.IsAmd ? 0x0100_0065 : 1UL << 32;

    /// <summary>Registers that describe the processor rather than its state.</summary>
    internal static bool TryGetFeatureMsr(ProcessorModel model, uint msr, out ulong value)
    {
        value = msr switch
        {
            Msr.BIOS_SIGN_ID => DefaultMicrocode(model),
            Msr.ARCH_CAPABILITIES => ArchCapabilities,
            MsrIndex.DE_CFG => DeCfgLfenceSerialize,
            MsrIndex.PLATFORM_INFO => PlatformInfoCpuidFault,
            _ => 0,
        };
        return MsrList.Features(model).Contains(msr);
    }

    /// <summary>KVM_GET_MSRS: fills the data of the entries; returns how many were known before the first unknown one.</summary>
    public int GetMsrs(Span<kvm_msr_entry> entries)
    {
        for (int i = 0; i < entries.Length; i++)
            if (!TryReadMsr(entries[i].index, host: true, out entries[i].data))
                return i;
        return entries.Length;
    }

    /// <summary>KVM_SET_MSRS: returns how many were accepted before the first refused one.</summary>
    public int SetMsrs(ReadOnlySpan<kvm_msr_entry> entries)
    {
        for (int i = 0; i < entries.Length; i++)
            if (!TryWriteMsr(entries[i].index, host: true, entries[i].data))
                return i;
        return entries.Length;
    }

    /// <summary>KVM_X86_SETUP_MCE: 0 or -EINVAL.</summary>
    public int SetupMce(ulong capability)
    {
        int r = _machineCheck.Setup(capability);
        if (r == 0 && Lapic is not null)
            Lapic.CmciSupported = _machineCheck.HasCmci;
        return r;
    }

    /// <summary>KVM_X86_SET_MCE: 0 or -EINVAL.</summary>
    public int SetMce(in kvm_x86_mce mce)
    {
        int r = _machineCheck.Inject(mce, (_s->Cr4 & Cr4.MCE) != 0, out MachineCheckState.Signal signal);
        switch (signal)
        {
            case MachineCheckState.Signal.Cmci:
                _ = Lapic?.LocalDeliver(Irqchip.ApicRegister.LVT_CMCI);
                break;
            case MachineCheckState.Signal.MachineCheck:
                _events.Queue(Vector.MC);
                break;
            case MachineCheckState.Signal.TripleFault:
                Requests.MakeSelf(VcpuRequest.TripleFault);
                break;
        }
        Requests.MakeSelf(VcpuRequest.Event);
        return r;
    }

    private int HandleRdmsr()
    {
        uint msr = (uint)_s->Gpr[1];
        if (Vm.MsrFilter is { } f && !f.Allows(msr, KVM_MSR_FILTER_READ))
            return RefuseMsr(KVM_EXIT_X86_RDMSR, KVM_MSR_EXIT_REASON_FILTER, msr, 0);
        if (!TryReadMsr(msr, host: false, out ulong value))
            return RefuseMsr(KVM_EXIT_X86_RDMSR, IsKnownMsr(msr) ? KVM_MSR_EXIT_REASON_INVAL : KVM_MSR_EXIT_REASON_UNKNOWN, msr, 0);
        CompleteMsr(true, value);
        return KeepRunning;
    }

    private int HandleWrmsr()
    {
        uint msr = (uint)_s->Gpr[1];
        ulong value = _s->Gpr[2] << 32 | (uint)_s->Gpr[0];
        if (Vm.MsrFilter is { } f && !f.Allows(msr, KVM_MSR_FILTER_WRITE))
            return RefuseMsr(KVM_EXIT_X86_WRMSR, KVM_MSR_EXIT_REASON_FILTER, msr, value);
        if (!TryWriteMsr(msr, host: false, value))
            return RefuseMsr(KVM_EXIT_X86_WRMSR, IsKnownMsr(msr) ? KVM_MSR_EXIT_REASON_INVAL : KVM_MSR_EXIT_REASON_UNKNOWN, msr, value);
        CompleteMsr(true, value);
        return KeepRunning;
    }

    /// <summary>An access that KVM does not make: the client's, when it asked for accesses with this reason, else #GP(0).</summary>
    private int RefuseMsr(uint exit, uint reason, uint msr, ulong data)
    {
        if ((Vm.UserSpaceMsrMask & reason) != 0)
            return ExitMsr(exit, reason, msr, data, exit == KVM_EXIT_X86_RDMSR ? Completion.MsrRead : Completion.MsrWrite);
        CompleteMsr(false, 0);
        return KeepRunning;
    }

    /// <summary>Retires the RDMSR of the last exit with its value, or the WRMSR; or raises #GP(0) for it.</summary>
    private void CompleteMsr(bool ok, ulong value)
    {
        if (!ok)
        {
            _events.QueueGeneralProtection();
            return;
        }
        if (_exit->Reason == ExitReason.MsrRead)
            (_s->Gpr[0], _s->Gpr[2]) = ((uint)value, value >> 32);
        Cpu.SkipInstruction();
    }

    private bool IsKnownMsr(uint msr) => msr is >= Msr.X2APIC_FIRST and <= Msr.X2APIC_LAST or Msr.PRED_CMD or Msr.FLUSH_CMD || TryReadMsr(msr, host: true, out _);

    private int ExitMsr(uint exit, uint reason, uint msr, ulong data, Completion completion)
    {
        kvm_run* run = KvmRun;
        run->exit_reason = exit;
        run->msr.error = 0;
        run->msr.reason = reason;
        run->msr.index = msr;
        run->msr.data = data;
        _completion = completion;
        return ToClient;
    }

    /// <summary>The value of an MSR. False: the guest gets #GP(0), the client's list ends here.</summary>
    private bool TryReadMsr(uint msr, bool host, out ulong value)
    {
        if (!host && Cpu.OwnsMsr(msr))
            return Cpu.TryReadGuestMsr(msr, out value);
        if (TryReadProcessorMsr(msr, out value))
            return true;
        if (msr is >= Msr.X2APIC_FIRST and <= Msr.X2APIC_LAST)
        {
            if (msr == MsrIndex.X2APIC_TPR && !host)
                _apic.NoteTprAccess(write: false);
            return Lapic is not null && Lapic.ReadMsr(msr, out value);
        }
        if (_mtrr.TryRead(msr, out value) || _machineCheck.TryRead(msr, host, out value) || TryReadHyperVMsr(msr, out value))
            return true;
        if (IsPvMsr(msr))
            return TryReadPvMsr(msr, host, out value);
        switch (msr)
        {
            case Msr.TSC: value = _tsc.Now(); return true;
            case Msr.TSC_ADJUST: value = _tsc.Adjust; return true;
            case Msr.TSC_DEADLINE: value = Lapic?.TscDeadline ?? 0; return Lapic is not null || host;
            case Msr.APIC_BASE: value = _apic.Base; return true;
            case Msr.MISC_ENABLE: value = _cpuid.MiscEnable; return true;
            case MsrIndex.POWER_CTL: value = _powerCtl; return true;
            case Msr.XSS: value = _s->Xss; return host || _cpuid.HasXsaves;
            case Msr.BIOS_SIGN_ID: value = _microcode; return true;
            case Msr.SMBASE: value = _smm.Smbase; return host;
            case MsrIndex.SMI_COUNT: value = _smm.SmiCount; return true;
            case MsrIndex.PLATFORM_INFO: value = _platformInfo; return host || Vm.PlatformInfoReadable;
            case MsrIndex.MISC_FEATURES_ENABLES: value = _cpuid.MiscFeatures; return true;
            case Msr.PERF_STATUS: value = 1000 | 4UL << 40; return true;
            case MsrIndex.FSB_FREQ: value = 3; return true;
            case MsrIndex.EBC_FREQUENCY_ID: value = 1 << 24; return true;
            case Msr.FEATURE_CONTROL: value = _featureControl; return !IsAmd;
            case Msr.SPEC_CTRL: value = _specCtrl; return _cpuid.Speculation.SpecCtrl || host;
            case Msr.ARCH_CAPABILITIES:
                value = _cpuid.Speculation.ArchCapabilities ? _archCapabilities : 0;
                return _cpuid.Speculation.ArchCapabilities || host && !IsAmd;
            // No performance monitoring: the feature bit PDCM is not offered.
            case MsrIndex.PERF_CAPABILITIES: return host;
            case Msr.HWCR: value = _hwcr; return true;
            case MsrIndex.OSVW_ID_LENGTH: value = _osvwLength; return _cpuid.HasOsvw;
            case MsrIndex.OSVW_STATUS: value = _osvwStatus; return _cpuid.HasOsvw;
            case MsrIndex.DE_CFG: value = DeCfgLfenceSerialize; return IsAmd;
            default: return ReadsAsZero(msr);
        }
    }

    /// <summary>Registers of real machines that kernels probe, and that have nothing to say here.</summary>
    private static bool ReadsAsZero(uint msr) => msr is MsrIndex.P5_MC_ADDR or MsrIndex.P5_MC_TYPE or MsrIndex.PERF_CTL or Msr.PLATFORM_ID or MsrIndex.EBL_CR_POWERON or MsrIndex.BBL_CR_CTL3 or >= MsrIndex.LASTBRANCH_FIRST and <= MsrIndex.LASTBRANCH_LAST or MsrIndex.PERFCTR0 or MsrIndex.PERFCTR1
        or MsrIndex.EVNTSEL0 or MsrIndex.EVNTSEL1 or MsrIndex.RAPL_POWER_UNIT or MsrIndex.PKG_ENERGY_STATUS or MsrIndex.DRAM_ENERGY_STATUS or MsrIndex.PP0_ENERGY_STATUS or MsrIndex.PP1_ENERGY_STATUS
        or >= MsrIndex.K7_EVNTSEL_FIRST and <= MsrIndex.K7_PERFCTR_LAST or MsrIndex.SYSCFG or >= MsrIndex.IORR_FIRST and <= MsrIndex.TOP_MEM or MsrIndex.TOP_MEM2 or MsrIndex.NB_CFG or MsrIndex.INT_PENDING_MSG
        or MsrIndex.MMIO_CONF_BASE or MsrIndex.TSEG_ADDR or MsrIndex.TSEG_MASK or MsrIndex.VM_CR or MsrIndex.VM_HSAVE_PA or MsrIndex.LS_CFG or MsrIndex.IC_CFG or MsrIndex.DC_CFG or MsrIndex.TW_CFG or MsrIndex.BU_CFG2 or MsrIndex.F15H_EX_CFG;

    private bool TryWriteMsr(uint msr, bool host, ulong value)
    {
        if (TryWriteXenMsr(msr, value, out bool written))
            return written;
        if (!host && Cpu.OwnsMsr(msr))
            return Cpu.TryWriteGuestMsr(msr, value);
        if (TryWriteProcessorMsr(msr, host, value, out bool ok))
            return ok;
        if (msr is >= Msr.X2APIC_FIRST and <= Msr.X2APIC_LAST)
        {
            if (msr == MsrIndex.X2APIC_TPR && !host)
                _apic.NoteTprAccess(write: true);
            bool done = Lapic is not null && Lapic.WriteMsr(msr, value);
            _apic.SyncCr8();
            return done;
        }
        if (_mtrr.TryWrite(msr, value, Cpu.CpuidFeatures.PhysicalAddressBits) || _machineCheck.TryWrite(msr, value, host, (_hwcr & HwcrMcStatusWrite) != 0))
            return true;
        if (IsPvMsr(msr))
            return TryWritePvMsr(msr, value, host);
        switch (msr)
        {
            case Msr.TSC: _tsc.Write(value, host); return true;
            case Msr.TSC_ADJUST: _tsc.WriteAdjust(value, host); return true;
            case Msr.TSC_DEADLINE:
                if (Lapic is not null)
                    Lapic.TscDeadline = value;
                return Lapic is not null || host;
            case Msr.APIC_BASE: return _apic.TrySetBase(value, _cpuid.HasX2Apic, host);
            case Msr.MISC_ENABLE: return WriteMiscEnable(value, host);
            case MsrIndex.POWER_CTL: _powerCtl = value; return true;
            // No supervisor state component exists.
            case Msr.XSS: return value == 0 && (host || _cpuid.HasXsaves);
            case Msr.BIOS_SIGN_ID:
                // The guest writes 0 before it asks for the revision.
                if (host)
                    _microcode = value;
                return true;
            case MsrIndex.UCODE_WRITE or MsrIndex.PATCH_LOADER: return true;
            case Msr.SMBASE:
                if (host)
                    _smm.Smbase = value;
                return host;
            case MsrIndex.SMI_COUNT:
                if (host)
                    _smm.SmiCount = value;
                return host;
            case MsrIndex.PLATFORM_INFO:
                if (host)
                    _platformInfo = value;
                return host;
            case MsrIndex.MISC_FEATURES_ENABLES: return WriteMiscFeatures(value);
            case Msr.FEATURE_CONTROL: return WriteFeatureControl(value, host);
            case Msr.SPEC_CTRL:
                if ((value & ~7UL) != 0 || !(_cpuid.Speculation.SpecCtrl || host))
                    return false;
                _specCtrl = value;
                return true;
            case Msr.PRED_CMD: return (value & ~1UL) == 0 && (host || _cpuid.Speculation.PredCmd);
            case Msr.FLUSH_CMD: return (value & ~1UL) == 0 && (host || _cpuid.Speculation.FlushCmd);
            case Msr.ARCH_CAPABILITIES:
                if (!host || !_cpuid.Speculation.ArchCapabilities)
                    return host && value == 0 && !IsAmd;
                _archCapabilities = value;
                return true;
            case MsrIndex.PERF_CAPABILITIES: return host && value == 0;
            case Msr.HWCR: return WriteHwcr(value, host);
            case MsrIndex.OSVW_ID_LENGTH:
                _osvwLength = _cpuid.HasOsvw ? value : _osvwLength;
                return _cpuid.HasOsvw;
            case MsrIndex.OSVW_STATUS:
                _osvwStatus = _cpuid.HasOsvw ? value : _osvwStatus;
                return _cpuid.HasOsvw;
            case MsrIndex.DE_CFG: return IsAmd && (host || value == DeCfgLfenceSerialize);
            default: return ReadsAsZero(msr) && (host ? value == 0 : msr is not (Msr.PLATFORM_ID or MsrIndex.P5_MC_ADDR or MsrIndex.P5_MC_TYPE or MsrIndex.PERF_CTL));
        }
    }

    private bool WriteMiscEnable(ulong value, bool host)
    {
        if (!host)
        {
            if (((value ^ _cpuid.MiscEnable) & VcpuCpuid.MiscEnableReadOnly) != 0)
                return false;
            // KVM: this read-only bit ignores writes.
            value = value & ~MiscEnableMonitoring | _cpuid.MiscEnable & MiscEnableMonitoring;
        }
        _cpuid.MiscEnable = value;
        return true;
    }

    private bool WriteFeatureControl(ulong value, bool host)
    {
        if (IsAmd || (value & ~FeatureControlLocked) != 0 || !host && (_featureControl & FeatureControlLocked) != 0)
            return false;
        _featureControl = value;
        return true;
    }

    /// <summary>CPUID faulting can be switched on where MSR_PLATFORM_INFO offers it.</summary>
    private bool WriteMiscFeatures(ulong value)
    {
        if ((value & ~((_platformInfo & PlatformInfoCpuidFault) != 0 ? MiscFeaturesCpuidFault : 0)) != 0)
            return false;
        _cpuid.MiscFeatures = value;
        return true;
    }

    private bool WriteHwcr(ulong value, bool host)
    {
        // Bits that BIOSes and kernels set and that mean nothing here: toggle cache, flush filter, monitor in user mode.
        value &= ~0x148UL;
        if ((value & ~(HwcrTscFreqSel | HwcrMcStatusWrite)) != 0)
            return false;
        _hwcr = value | (host ? 0 : _hwcr & HwcrTscFreqSel);
        return true;
    }
}
