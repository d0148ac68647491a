using Ring3.Abi;
using Ring3.Irqchip;
using static Ring3.Abi.KvmApi;

// SAFETY: _s and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs).
namespace Ring3.Kvm;

// KVM_CAP_VAPIC: what a client needs to patch guests that use the task priority register all the time.
public sealed unsafe partial class Vcpu
{
    private bool _reportTprAccess, _tprAccessIsWrite;
    private ulong _tprAccessRip;
    /// <summary>Guest-physical address of the 32-bit word that mirrors the local APIC's priorities; 0: none.</summary>
    private ulong _vapicGpa;

    /// <summary>KVM_TPR_ACCESS_REPORTING: each guest access to the in-kernel local APIC's task priority register leaves with KVM_EXIT_TPR_ACCESS once its instruction has retired. 0, or -EINVAL for flags.</summary>
    public int SetTprAccessReporting(in kvm_tpr_access_ctl control)
    {
        if (control.flags != 0)
            return -Errno.EINVAL;
        _reportTprAccess = control.enabled != 0;
        return 0;
    }

    /// <summary>
    /// KVM_SET_VAPIC_ADDR: the word at <paramref name="gpa"/> holds the task priority in bits 7:0, which the guest may write instead of the register, the class of the highest interrupt in service in bits 15:12 and the highest requested
    /// vector in bits 31:24. 0 switches it off. 0, or -EINVAL without an in-kernel local APIC or when the address is in no slot.
    /// </summary>
    public int SetVapicAddress(ulong gpa)
    {
        if (Lapic is null || (gpa != 0 && !Vm.Memory.TryRead(gpa, out uint _)))
            return -Errno.EINVAL;
        _vapicGpa = gpa;
        return 0;
    }

    private void NoteTprAccess(ulong gpa, bool write)
    {
        if ((gpa & 0xff0) == ApicRegister.TPR && Lapic!.Mode == ApicMode.XApic)
            NoteTprAccess(write);
    }

    /// <summary>RIP is at the instruction that makes the access.</summary>
    private void NoteTprAccess(bool write)
    {
        if (!_reportTprAccess)
            return;
        (_tprAccessRip, _tprAccessIsWrite) = (_s->Rip, write);
        Requests.MakeSelf(VcpuRequest.ReportTprAccess);
    }

    private int ExitTprAccess()
    {
        KvmRun->exit_reason = KVM_EXIT_TPR_ACCESS;
        KvmRun->tpr_access.rip = _tprAccessRip;
        KvmRun->tpr_access.is_write = _tprAccessIsWrite ? 1u : 0;
        return ToClient;
    }

    private void SyncToVapic()
    {
        uint isr = (uint)Math.Max(Lapic!.HighestIsr, 0), irr = (uint)Math.Max(Lapic.HighestIrr, 0);
        Vm.Memory.TryWrite(_vapicGpa, Lapic.Tpr | (isr & 0xf0) << 8 | irr << 24);
    }

    private void SyncFromVapic()
    {
        if (!Vm.Memory.TryRead(_vapicGpa, out uint word) || (word & 0xff) == Lapic!.Tpr)
            return;
        Lapic.Tpr = word & 0xff;
        SyncCr8();
    }
}
