using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// KVM_RUN: the outer loop, entry and the dispatch of exits.
public sealed partial class Vcpu
{
    /// <summary>PAUSEs in a row after which a vCPU lets the host run another thread, perhaps the one with the lock. Of the order of KVM's ple_window.</summary>
    private const uint PauseLoopWindow = 512;

    private int _running;
    private int _lastThread;

    /// <summary>KVM_RUN. Finishes the exit that the client has handled (data of IN, MMIO read, RDMSR), then runs the guest until the next exit.</summary>
    /// <returns>
    /// 0 with an exit in <see cref="KvmRun"/>; -EINTR after a kick or with immediate_exit set; -EIO when the VM is dead or disposed of; -EFAULT when guest
    /// memory is not usable; -EBUSY when another thread runs the vCPU.
    /// </returns>
    public int Run()
    {
        if (!TryClaim())
            return -Errno.EBUSY;
        try
        {
            return RunExclusive();
        }
        finally { Release(); }
    }

    /// <summary>Makes the vCPU this thread's until <see cref="Release"/>: the VM is not disposed of before. False when another thread has it.</summary>
    /// <remarks>PAIRS-WITH: VcpuList.Stop (says that the VM is dead, then looks who runs).</remarks>
    public bool TryClaim() => Interlocked.CompareExchange(ref _running, 1, 0) == 0;

    /// <summary>Ends what <see cref="TryClaim"/> began.</summary>
    public void Release() => Volatile.Write(ref _running, 0);

    /// <summary>Returns when no thread is inside <see cref="Run"/>. The VM is dead: whoever is inside is on the way out.</summary>
    internal void WaitUntilStopped()
    {
        SpinWait spin = new();
        while (Volatile.Read(ref _running) != 0)
            spin.SpinOnce();
    }

    internal void RefuseIfRunByThisThread()
    {
        if (Volatile.Read(ref _running) != 0 && _lastThread == Environment.CurrentManagedThreadId)
            throw new InvalidOperationException("a VM cannot be disposed of by the thread that runs one of its vCPUs");
    }

    /// <summary><see cref="Run"/> for callers that keep all other threads out, as the ioctl's mutex does: a locked instruction less. Never -EBUSY.</summary>
    public int RunExclusive() => RunExclusive(Environment.CurrentManagedThreadId);

    /// <summary><see cref="RunExclusive()"/> for callers that have a number for the calling thread at hand: not 0, and never given to two threads.</summary>
    public int RunExclusive(int thread)
    {
        if (_health.IsDead)
            return -Errno.EIO;
        if (DirtyRing is not null)
            Memory.DirtyRing.Current = DirtyRing;
        int r = BeginRun(thread);
        while (r > 0)
            r = _activity.State == MpState.Runnable ? EnterGuest() : Block();
        if (_finishOnly && _mmio.IsPosted && r != -Errno.EIO)
            r = _mmio.LeaveWithPosted();
        EndRun();
        if (DirtyRing is not null)
            Memory.DirtyRing.Current = null;
        return r;
    }

    private unsafe int BeginRun(int thread)
    {
        kvm_run* run = KvmRun;
        // Read once, before anything: the client can change it at any time. KVM: with it set, the exit that is finished here stays in kvm_run.
        bool immediateExit = run->immediate_exit != 0;
        run->flags = 0;
        if (thread != _lastThread)
            MoveToThread(thread);
        if ((run->kvm_dirty_regs | run->kvm_valid_regs) != 0)
        {
            int e = _syncRegisters.Store();
            if (e != 0)
                return e;
        }
        if (Lapic is null && run->cr8 != _apic.Cr8)
            _apic.Cr8 = run->cr8;
        if (_core.Completion is not Completion.None and var what)
        {
            _core.Completion = Completion.None;
            if (what == Completion.PortWrite)
                _port.CompleteWrite();
            else if (CompleteExit(what) is var r && r != KeepRunning)
                return r;
        }
        _immediateExit = immediateExit;
        if (!immediateExit)
            run->exit_reason = KVM_EXIT_UNKNOWN;
        if (immediateExit || IsSignalled)
        {
            if (!Cpu.IsInstructionInProgress)
                return ExitIntr();
            _finishOnly = true;
        }
        _core.HasRun = _core.Arrives = true;
        if (_core.HasStealTime)
            _steal.Record();
        if (run->request_interrupt_window != 0)
            Requests.MakeSelf(VcpuRequest.Event);
        return KeepRunning;
    }

    /// <summary>
    /// Opens what the kernel tells of the calling thread, which is to run the vCPU, before a guest wants to know: for programs that may open nothing later.
    /// </summary>
    public void PrepareThread()
    {
        MoveToThread(Environment.CurrentManagedThreadId);
        if (_runDelay.Use())
            _xen.ThreadChanged();
    }

    /// <summary>KVM's rule, kept though software translations do not live in the host thread: a vCPU that changes threads starts with an empty TLB.</summary>
    private unsafe void MoveToThread(int thread)
    {
        if (_lastThread != 0)
            _translations.OweFlush(FlushSite.ThreadMove);
        _lastThread = thread;
        _s->PauseLoopWindow = Vm.Vcpus.Length > 1 && !Vm.Settings.PausesInGuest ? PauseLoopWindow : 0;
        _runDelay.MoveTo(thread, isUsed: _steal.IsEnabled || _xen.Side is not null);
        _xen.ThreadChanged();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void EndRun()
    {
        kvm_run* run = KvmRun;
        run->if_flag = (_s->Rflags & Arch.Rflags.IF) != 0 ? (byte)1 : (byte)0;
        run->cr8 = _apic.Cr8;
        run->apic_base = _apic.Base;
        run->ready_for_interrupt_injection = _events.IsReadyForClient ? (byte)1 : (byte)0;
        if ((_s->InSmm | _s->BusLockSeen) != 0)
            _policies.AddRunFlags();
        _finishOnly = false;
        // What completing an exit has written.
        if (_s->DirtyLogCount != 0)
            _dirtyLog.Take();
        if (_heldRequests != 0 || _s->FinishInstruction != 0)
            ReleaseRequests();
        if (run->kvm_valid_regs != 0)
            _syncRegisters.Load();
        if (_core.HasStealTime)
            _steal.SetPreempted();
    }

    private unsafe bool IsSignalled => Volatile.Read(ref Signal->Signalled) != 0;

    /// <summary>One stay in the guest.</summary>
    private unsafe int EnterGuest()
    {
        int r;
        if (Lapic is not null && _timers.IsStale)
            _timers.Arm();
        if ((Requests.AnyPending || _heldRequests != 0 || _finishOnly) && (r = HandleRequests()) != KeepRunning)
            return r;
        if (!_mmu.LoadRoot())
            return -Errno.ENOMEM;
        (_s->NestedRoot, _s->Asid) = (_mmu.RootHva, _mmu.Asid);
        if (DirtyRing is not null)
            _dirtyLog.LimitTo(DirtyRing);
        if (_core.Work.Any != 0)
            PrepareEntry();
        if (!Requests.TryEnterGuestMode())
        {
            CancelEntry();
            return KeepRunning;
        }
        // After TryEnterGuestMode has dropped earlier kicks: a signal before this point is seen here, one after it stops the guest.
        if (IsSignalled && !_finishOnly)
        {
            Requests.LeaveGuestMode();
            CancelEntry();
            if (!Cpu.IsInstructionInProgress)
                return ExitIntr();
            _finishOnly = true;
            return KeepRunning;
        }
        if (_core.Work.LeaveAtOnce)
            _events.LeaveAtOnce();
        ExitReason reason = Cpu.Enter();
        // Before the vCPU says that it is outside: who waits for that finds the log empty.
        if (_s->DirtyLogCount != 0)
            _dirtyLog.Take();
        Requests.LeaveGuestMode();
        Stats.exits++;
        if (_s->Inject.Valid != 0 || _exit->IdtVectoring.Valid != 0)
            _events.KeepInjection();
        if (_core.Work.ApicPages)
            _apicPages.Collect();
        return Dispatch(reason);
    }

    private void PrepareEntry()
    {
        // Where only the rest of an instruction runs, nothing new is taken.
        if (_xen.Side is { } xen && !_finishOnly && _xen.Prepare(xen))
            _events.IsDirty = true;
        if (_events.IsDirty)
            _events.Prepare();
        if (_core.Work.ApicPages)
            _apicPages.Publish();
    }

    /// <summary>Takes back what was prepared for the guest: the client may read the state, guest memory included, before the next entry.</summary>
    private void CancelEntry()
    {
        _events.CancelInjection();
        _apicPages.Withdraw();
    }

    private unsafe int Dispatch(ExitReason reason)
    {
        switch (reason)
        {
            case ExitReason.Request:
                Stats.request_exits++;
                return _s->BusLockSeen != 0 ? _policies.ExitBusLock() : KeepRunning;
            case ExitReason.Io:
                Stats.io_exits++;
                return _port.Handle();
            case ExitReason.Timer:
                _timers.Expired();
                return KeepRunning;
            case ExitReason.DirtyLogFull:
                return KeepRunning;
            case ExitReason.NestedFault:
                return _memoryFaults.Handle();
            case ExitReason.Mmio:
                Stats.mmio_exits++;
                return HandleMmio();
            case ExitReason.Hlt:
                return HandleHlt();
            case ExitReason.Cpuid:
                Stats.cpuid_exits++;
                return FaultUnless(_cpuid.TryExecute());
            case ExitReason.MsrRead:
                Stats.msr_exits++;
                return _msrs.HandleRead();
            case ExitReason.MsrWrite:
                Stats.msr_exits++;
                return _msrs.HandleWrite();
            case ExitReason.Hypercall:
                return HandleHypercall();
            case ExitReason.InterruptWindow:
                Stats.irq_window_exits++;
                return _events.HandleInterruptWindow();
            case ExitReason.NmiWindow:
                Stats.nmi_window_exits++;
                _events.IsDirty = true;
                return KeepRunning;
            case ExitReason.Pause:
                Stats.pause_exits++;
                Thread.Yield();
                return KeepRunning;
            case ExitReason.Cr8Write:
                return HandleCr8();
            case ExitReason.Xsetbv:
                return FaultUnless(_extended.TryExecuteXsetbv());
            default:
                return DispatchRare(reason);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe int DispatchRare(ExitReason reason)
    {
        switch (reason)
        {
            case ExitReason.Shutdown:
                return ExitShutdown();
            case ExitReason.Exception:
                return _debug.HandleException();
            case ExitReason.SingleStep:
                return _debug.ExitStep(_exit->Payload);
            case ExitReason.Rsm:
                return HandleRsm();
            case ExitReason.MemoryFailure:
                return _memoryFaults.ExitHostMemoryFailure(_exit->Host);
            case ExitReason.EmulationFailure:
                return _failures.Exit();
            case ExitReason.BusLock:
                return _policies.ExitBusLock();
            case ExitReason.Notify:
                return _policies.HandleNotify();
            default:
                KvmRun->exit_reason = KVM_EXIT_INTERNAL_ERROR;
                KvmRun->@internal.suberror = KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON;
                KvmRun->@internal.ndata = 2;
                KvmRun->@internal.data[0] = (ulong)reason;
                KvmRun->@internal.data[1] = Id;
                return ToClient;
        }
    }

    private unsafe int ExitShutdown()
    {
        KvmRun->exit_reason = KVM_EXIT_SHUTDOWN;
        return ToClient;
    }
}
