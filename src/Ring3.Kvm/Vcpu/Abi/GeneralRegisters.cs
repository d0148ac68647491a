using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;

// SAFETY: _s lives as long as the vCPU; register numbers are constants.
namespace Ring3.Kvm;

/// <summary>General registers, RIP and RFLAGS: KVM_GET/SET_REGS.</summary>
internal sealed class GeneralRegisters(VcpuCore core, VcpuEvents events) : VcpuPart(core)
{
    /// <summary>KVM_GET_REGS.</summary>
    public unsafe void Get(out kvm_regs regs)
    {
        CpuState* c = _s;
        regs = new()
        {
            rax = c->Gpr[0], rcx = c->Gpr[1], rdx = c->Gpr[2], rbx = c->Gpr[3], rsp = c->Gpr[4], rbp = c->Gpr[5], rsi = c->Gpr[6], rdi = c->Gpr[7],
            r8 = c->Gpr[8], r9 = c->Gpr[9], r10 = c->Gpr[10], r11 = c->Gpr[11], r12 = c->Gpr[12], r13 = c->Gpr[13], r14 = c->Gpr[14], r15 = c->Gpr[15],
            rip = c->Rip, rflags = Cpu.RflagsValue,
        };
    }

    /// <summary>KVM_SET_REGS.</summary>
    public unsafe void Set(in kvm_regs regs)
    {
        CpuState* c = _s;
        c->Gpr[0] = regs.rax; c->Gpr[1] = regs.rcx; c->Gpr[2] = regs.rdx; c->Gpr[3] = regs.rbx;
        c->Gpr[4] = regs.rsp; c->Gpr[5] = regs.rbp; c->Gpr[6] = regs.rsi; c->Gpr[7] = regs.rdi;
        c->Gpr[8] = regs.r8; c->Gpr[9] = regs.r9; c->Gpr[10] = regs.r10; c->Gpr[11] = regs.r11;
        c->Gpr[12] = regs.r12; c->Gpr[13] = regs.r13; c->Gpr[14] = regs.r14; c->Gpr[15] = regs.r15;
        if (c->Rip != regs.rip)
            AbandonExit();
        c->Rip = regs.rip;
        Cpu.RflagsValue = regs.rflags & ProcessorMode.RflagsWritable | Rflags.Fixed1;
        // An exception or trap that was about to be delivered belonged to the state that this call replaces.
        events.DropPendingException();
        c->PendingDebug = 0;
        c->BetweenIterations = 0;
        Requests.MakeSelf(VcpuRequest.Event);
        Cpu.RecomputeMode();
    }
}
