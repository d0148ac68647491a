using Ring3.Abi;

namespace Ring3.Kvm;

// The ioctls of a vCPU, and which part answers each. For the vCPU's thread, or for any thread while the vCPU is not running, unless said otherwise. Negative results are -errno.
public sealed unsafe partial class Vcpu
{
    // ---- Registers ----

    /// <summary>KVM_GET_FPU. KVM: mxcsr is 0; it belongs to KVM_GET_XSAVE.</summary>
    public void GetFpu(out kvm_fpu fpu) => _extended.GetFpu(out fpu);

    /// <summary>KVM_SET_FPU. KVM: mxcsr is ignored.</summary>
    public void SetFpu(in kvm_fpu fpu) => _extended.SetFpu(fpu);

    /// <summary>KVM_GET_XSAVE: the standard format, with the components in use as XSAVEC finds them.</summary>
    public void GetXsave(out kvm_xsave xsave) => _extended.GetXsave(out xsave);

    /// <summary>KVM_SET_XSAVE: 0, or -EINVAL for unsupported components, a compacted area, other non-zero bytes of the header, or reserved bits of MXCSR when a component of the legacy area is there.</summary>
    public int SetXsave(in kvm_xsave xsave) => _extended.SetXsave(xsave);

    /// <summary>KVM_GET_XCRS.</summary>
    public void GetXcrs(out kvm_xcrs xcrs) => _extended.GetXcrs(out xcrs);

    /// <summary>KVM_SET_XCRS: 0 or -EINVAL.</summary>
    public int SetXcrs(in kvm_xcrs xcrs) => _extended.SetXcrs(xcrs);

    /// <summary>KVM_TRANSLATE: the guest-physical address of a linear one under the current paging mode, with the privilege of the processor itself.</summary>
    public void Translate(ref kvm_translation tr) => _tables.Translate(ref tr);

    // ---- Time ----

    /// <summary>KVM_GET_TSC_KHZ: the TSC frequency that the guest sees, in kHz.</summary>
    public uint TscKhz => _tsc.Khz;

    /// <summary>KVM_SET_TSC_KHZ: 0 or -EINVAL.</summary>
    public int SetTscKhz(uint khz) => _tsc.SetKhz(khz);

    /// <summary>The guest's TSC now. Any thread.</summary>
    public ulong GuestTsc() => _tsc.Now();

    /// <summary>KVM_VCPU_TSC_OFFSET: guest TSC minus the (scaled) host TSC.</summary>
    public ulong TscOffset { get => _tsc.Offset; set => _tsc.Offset = value; }

    /// <summary>KVM_KVMCLOCK_CTRL: tells the guest that it was stopped, so that its watchdogs do not bark. 0 or -EINVAL without a clock page.</summary>
    public int KvmClockCtrl() => _clock.NoteStopped();

    // ---- Signals ----

    /// <summary>Words for the signal handlers of the thread that runs this vCPU. They mean this vCPU until the VM is disposed of, and can be written for ever.</summary>
    public VcpuSignal* Signal => _signal.Signal;
}
