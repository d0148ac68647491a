using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: an exit's data is eight bytes inside _exit, which is made and freed with the processor.
namespace Ring3.Kvm;

// Exits that the hypervisor finishes itself.
public sealed partial class Vcpu
{
    /// <summary>The client has handled the exit of the last Run. (That of an OUT has a way of its own, in BeginRun.)</summary>
    private int CompleteExit(Completion what)
    {
        switch (what)
        {
            case Completion.PortRead:
                return _port.CompleteRead();
            case Completion.StringWrite:
                _port.CompleteStringWrite();
                return KeepRunning;
            case Completion.InputMmio:
                return _port.CompleteInputToMmio();
            case Completion.MmioRead or Completion.MmioWrite:
                return _mmio.Complete();
            case Completion.Hypercall:
                _hypercalls.Complete();
                return KeepRunning;
            case Completion.XenHypercall:
                _xenProcessor.CompleteHypercall();
                return KeepRunning;
            default:
                _msrs.Complete(isRead: what == Completion.MsrRead);
                return KeepRunning;
        }
    }

    private int HandleMmio()
    {
        int r = _mmio.Handle();
        if (_mmio.IsPosted)
            _finishOnly = true;
        return r;
    }

    private unsafe int HandleCr8()
    {
        ulong value = *(ulong*)_exit->Data;
        if (value > 15)
        {
            _events.QueueGeneralProtection();
            return KeepRunning;
        }
        ulong old = _apic.Cr8;
        _apic.Cr8 = value;
        Cpu.SkipInstruction();
        if (Lapic is not null || value >= old)
            return KeepRunning;
        KvmRun->exit_reason = KVM_EXIT_SET_TPR;
        return ToClient;
    }

    /// <summary>The instruction has been carried out, or is #GP(0).</summary>
    private int FaultUnless(bool done)
    {
        if (!done)
            _events.QueueGeneralProtection();
        return KeepRunning;
    }

    private unsafe int HandleHlt()
    {
        Stats.halt_exits++;
        if (Lapic is null && !Vm.Settings.HaltsInGuest)
        {
            KvmRun->exit_reason = KVM_EXIT_HLT;
            return ToClient;
        }
        _halting.Begin();
        if (_s->HostStepDone == 0)
            return KeepRunning;
        _s->HostStepDone = 0;
        return _debug.ExitStep(Cpu.TakePendingDebug());
    }

    /// <summary>VMCALL or VMMCALL: the client has said whose guest this is, and where Xen's calls are told from Hyper-V's by a bit.</summary>
    private unsafe int HandleHypercall()
    {
        if (Vm.Xen.SideOrNull is not { InterceptsHypercalls: true })
            return _hypercalls.Handle();
        return _hyperv.IsCall(_s->Gpr[0]) ? _hyperv.HandleHypercall() : _xenProcessor.HandleHypercall();
    }

    private int HandleRsm()
    {
        if (!_smm.TryLeave())
        {
            Requests.MakeSelf(VcpuRequest.TripleFault);
            return KeepRunning;
        }
        _debug.Apply();
        Cpu.InstructionCompleted();
        return KeepRunning;
    }
}
