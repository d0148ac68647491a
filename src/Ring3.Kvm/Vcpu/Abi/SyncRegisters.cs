using Ring3.Abi;
using static Ring3.Abi.KvmApi;

// SAFETY: KvmRun lives as long as the vCPU.
namespace Ring3.Kvm;

/// <summary>KVM_CAP_SYNC_REGS: registers that the client finds in kvm_run, and leaves there, without a call of their own.</summary>
internal sealed class SyncRegisters(
    VcpuCore core, GeneralRegisters registers, SystemRegisters systemRegisters, VcpuEvents events, VcpuActivity activity) : VcpuPart(core)
{
    /// <summary>KVM_RUN returns: fills what the client has asked for.</summary>
    public unsafe void Load()
    {
        kvm_run* run = KvmRun;
        if ((run->kvm_valid_regs & KVM_SYNC_X86_REGS) != 0)
            registers.Get(out run->s.regs);
        if ((run->kvm_valid_regs & KVM_SYNC_X86_SREGS) != 0)
            systemRegisters.Get(out run->s.sregs);
        if ((run->kvm_valid_regs & KVM_SYNC_X86_EVENTS) != 0)
            events.Get(out run->s.events);
    }

    /// <summary>KVM_RUN begins: takes what the client has changed. 0 or -EINVAL.</summary>
    public unsafe int Store()
    {
        kvm_run* run = KvmRun;
        ulong dirty = run->kvm_dirty_regs;
        if (((dirty | run->kvm_valid_regs) & ~(ulong)(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)) != 0)
            return -Errno.EINVAL;
        if (dirty == 0)
            return 0;
        // Copied first: the client can write the page at any time.
        kvm_sync_regs s = run->s;
        run->kvm_dirty_regs = 0;
        if ((dirty & KVM_SYNC_X86_REGS) != 0)
            registers.Set(s.regs);
        if ((dirty & KVM_SYNC_X86_SREGS) != 0 && systemRegisters.Set(s.sregs) != 0)
            return -Errno.EINVAL;
        return (dirty & KVM_SYNC_X86_EVENTS) != 0 ? events.Set(s.events, waitsForSipi: activity.State == MpState.InitReceived) : 0;
    }
}
