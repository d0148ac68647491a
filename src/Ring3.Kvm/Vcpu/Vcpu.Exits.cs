using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// Exits that the hypervisor finishes itself.
public sealed unsafe partial class Vcpu
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
            case Completion.Mmio:
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

    private int HandleNestedFault()
    {
        ulong gpa = _exit->Gpa;
        switch (Vm.Mmu.Fault(_mmu, gpa, (NestedAccess)(uint)_exit->Access))
        {
            // After Mmio and ReadOnlyWrite the entry says that it is a device access: the processor leaves with MMIO next.
            case MmuResult.Retry or MmuResult.Fixed or MmuResult.Mmio or MmuResult.ReadOnlyWrite:
                return KeepRunning;
            case MmuResult.NoMemory:
                return -Errno.ENOMEM;
            case MmuResult.MemoryFault:
                return _memoryFaults.Exit(gpa, false);
            case MmuResult.PrivateMemoryFault:
                return _memoryFaults.Exit(gpa, true);
            case MmuResult.NoSlot:
                return _failures.Exit();
            default:
                return -Errno.EFAULT;
        }
    }

    private int HandleCr8()
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

    private int HandleXsetbv()
    {
        if ((uint)_s->Gpr[1] == 0 && _extended.TrySetXcr0(_s->Gpr[2] << 32 | (uint)_s->Gpr[0]))
            Cpu.SkipInstruction();
        else
            _events.QueueGeneralProtection();
        return KeepRunning;
    }

    /// <summary>CPUID with the guest's EAX and ECX.</summary>
    private int HandleCpuid()
    {
        if (!_cpuid.TryExecute())
            _events.QueueGeneralProtection();
        return KeepRunning;
    }

    private int HandleHlt()
    {
        Stats.halt_exits++;
        if (Lapic is null && !Vm.HaltsInGuest)
        {
            KvmRun->exit_reason = KVM_EXIT_HLT;
            return ToClient;
        }
        _halting.Begin();
        if (_s->HostStepDone == 0)
            return KeepRunning;
        _s->HostStepDone = 0;
        return ExitDebug(Vector.DB, Dr.Dr6Fixed1 | Dr.Dr6BS | Cpu.TakePendingDebug());
    }

    /// <summary>VMCALL or VMMCALL: the client has said whose guest this is, and where Xen's calls are told from Hyper-V's by a bit.</summary>
    private int HandleHypercall()
    {
        if (Vm.XenOrNull is not { InterceptsHypercalls: true })
            return _hypercalls.Handle();
        return _hyperv.IsCall(_s->Gpr[0]) ? _hyperv.HandleHypercall() : _xenProcessor.HandleHypercall();
    }

    private int HandleInterruptWindow()
    {
        if (KvmRun->request_interrupt_window == 0 || _events.HasInterrupt() || !_events.IsReadyForInjection())
            return KeepRunning;
        KvmRun->exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
        return ToClient;
    }

    /// <summary>#DB and #BP that the client asked for; anything else goes back to the guest.</summary>
    private int HandleException()
    {
        byte vector = _exit->Vector;
        if (vector is Vector.DB or Vector.BP)
            return ExitDebug(vector, vector == Vector.DB ? Dr.Dr6Fixed1 | _exit->Payload : Dr.Dr6Fixed1);
        if (vector == Vector.PF)
        {
            if (_tables.MeetsWideAddress(_exit->Payload) && Cpu.IsBeyondMmioEmulation())
                return _failures.Exit();
            _s->Cr2 = _exit->Payload;
        }
        _events.Return(vector, _exit->HasErrorCode, _exit->ErrorCode);
        return KeepRunning;
    }

    private int ExitDebug(byte vector, ulong dr6)
    {
        _debug.FillExit(vector, dr6);
        return ToClient;
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

    // ---- Exits that the client asked for ----

    /// <summary>The instruction has retired; the flag is set in <see cref="AddRunFlags"/>.</summary>
    private int ExitBusLock()
    {
        _s->BusLockSeen = 1;
        KvmRun->exit_reason = KVM_EXIT_X86_BUS_LOCK;
        return ToClient;
    }

    /// <summary>A bus lock may coincide with another exit: the flag is what tells, not the reason.</summary>
    private void AddRunFlags()
    {
        if (_smm.IsActive)
            KvmRun->flags |= KVM_RUN_X86_SMM;
        if (_s->BusLockSeen != 0)
            KvmRun->flags |= KVM_RUN_X86_BUS_LOCK;
        _s->BusLockSeen = 0;
    }

    /// <summary>KVM_NOTIFY_CONTEXT_INVALID never applies: the state of a software processor is exact at every exit.</summary>
    private int HandleNotify()
    {
        Stats.notify_window_exits++;
        if ((Vm.NotifyFlags & KVM_X86_NOTIFY_VMEXIT_USER) == 0)
            return KeepRunning;
        KvmRun->exit_reason = KVM_EXIT_NOTIFY;
        KvmRun->notify.flags = 0;
        return ToClient;
    }
}
