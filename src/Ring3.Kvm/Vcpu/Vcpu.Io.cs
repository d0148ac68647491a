using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// Port and memory-mapped I/O: the hypervisor's devices first, then the client.
public sealed unsafe partial class Vcpu
{
    private readonly PortBus _ports;
    /// <summary>The MMIO access that is the client's. Wider than the 8 bytes of kvm_run, it goes there in fragments: this is how far it has come.</summary>
    private int _mmioDone, _mmioSize;
    private ulong _mmioGpa;
    private bool _mmioIsWrite;
    private readonly byte[] _mmioData = new byte[64];
    /// <summary>The client gets a write when its instruction has retired.</summary>
    private bool _mmioPosted;

    private int CompleteExit()
    {
        Completion what = _core.Completion;
        _core.Completion = Completion.None;
        switch (what)
        {
            // KVM: an access to a port is over, without the rest of it, when the client has moved RIP.
            case Completion.PortRead:
                return ProcessorMode.LinearRip(_s) == _portRip ? FinishInput() : KeepRunning;
            case Completion.StringWrite:
                if (ProcessorMode.LinearRip(_s) == _portRip)
                    _s->PendingDebug |= _outTraps;
                return KeepRunning;
            case Completion.InputMmio:
                if (ProcessorMode.LinearRip(_s) != _portRip)
                    return KeepRunning;
                Cpu.CompleteMmio(new ReadOnlySpan<byte>(_mmioData, 0, _mmioSize));
                return FinishInput();
            case Completion.Mmio:
                return CompleteMmioFragment();
            case Completion.Hypercall:
                _hypercalls.Complete();
                return KeepRunning;
            case Completion.XenHypercall:
                _xenProcessor.CompleteHypercall();
                return KeepRunning;
            case Completion.MsrRead:
                _msrs.Complete(isRead: true);
                return KeepRunning;
            default:
                _msrs.Complete(isRead: false);
                return KeepRunning;
        }
    }

    /// <summary>The commonest exit, without the way through <see cref="CompleteExit"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void CompletePortWrite()
    {
        _core.Completion = Completion.None;
        if (ProcessorMode.LinearRip(_s) == _portRip)
            Cpu.SkipInstruction();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private int HandleIo()
    {
        if (_ports.MayClaim(_exit->Port) && TryPortInKernel())
            return _exit->IsWrite != 0 ? FinishOutput() : FinishInput();
        ExitInfo* e = _exit;
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_IO;
        run->io.direction = e->IsWrite;
        run->io.size = e->Size;
        run->io.port = e->Port;
        run->io.count = e->Count;
        run->io.data_offset = 4096;
        _portRip = ProcessorMode.LinearRip(_s);
        if (e->IsWrite == 0)
        {
            _core.Completion = Completion.PortRead;
            return ToClient;
        }
        *(uint*)_pioData = *(uint*)e->Data;
        if (e->IsString == 0)
            EndOutputLater(e->Port);
        else if (_s->PendingDebug != 0)
            DeferTraps();
        return ToClient;
    }

    /// <summary>Linear RIP at which the client found an access to a port, and debug traps of an OUTS that it has not finished.</summary>
    private ulong _portRip;
    private ushort _outTraps;

    /// <summary>KVM: an OUT ends with the next KVM_RUN; RIP is still at it while the client handles it. A reset through this port was relied upon to be behind it.</summary>
    private void EndOutputLater(ushort port)
    {
        if (port == 0x7e && (Vm.DisabledQuirks & KVM_X86_QUIRK_OUT_7E_INC_RIP) == 0)
        {
            Cpu.SkipInstruction();
            return;
        }
        _core.Completion = Completion.PortWrite;
    }

    /// <summary>RIP is behind an element of OUTS, but its debug traps do not exist before the next KVM_RUN either; they come unless the client moves RIP.</summary>
    private void DeferTraps()
    {
        _outTraps = (ushort)Cpu.TakePendingDebug();
        _core.Completion = Completion.StringWrite;
    }

    private int FinishOutput()
    {
        if (_exit->IsString == 0)
            Cpu.SkipInstruction();
        return KeepRunning;
    }

    /// <summary>All elements of the access, or none: a string instruction stays with one device.</summary>
    private bool TryPortInKernel()
    {
        ExitInfo* e = _exit;
        PortBus bus = Vm.Ports;
        int size = e->Size;
        if (e->IsWrite != 0)
        {
            for (int i = 0; i < e->Count; i++)
            {
                var data = new ReadOnlySpan<byte>(e->Data + i * size, size);
                if (!bus.TryWrite(e->Port, data) && !Vm.Coalesced.TryAdd(this, e->Port, data, pio: true) && i == 0)
                    return false;
            }
            return true;
        }
        for (int i = 0; i < e->Count; i++)
            if (!bus.TryRead(e->Port, new Span<byte>(_pioData + i * size, size)) && i == 0)
                return false;
        return true;
    }

    /// <summary>Gives the guest what was read from a port. When memory for it is gone, the next Run tries again.</summary>
    private int FinishInput()
    {
        if (!Cpu.InputGoesToMemory)
        {
            _ = Cpu.CompleteIo(new ReadOnlySpan<byte>(_pioData, _exit->Size));
            return KeepRunning;
        }
        var data = new ReadOnlySpan<byte>(_pioData, Cpu.InputBytes);
        InputResult r;
        MmuResult fault = MmuResult.Fixed;
        do
        {
            if (!_translations.BeginReadingTables())
            {
                fault = MmuResult.NoMemory;
                break;
            }
            r = Cpu.CompleteIo(data);
            // As after a stay in the guest: who waits for the end of this one finds the log empty.
            if (_s->DirtyLogCount != 0)
                _dirtyLog.Take();
            Requests.LeaveGuestMode();
            if (r == InputResult.Done)
                return KeepRunning;
            if (r == InputResult.Mmio && !TryInputToMmio())
                return ToClient;
        }
        while (r is InputResult.DirtyLogFull or InputResult.Mmio
            || r == InputResult.NestedFault && (fault = Vm.Mmu.Fault(_mmu, _exit->Gpa, (NestedAccess)(uint)_exit->Access)) is MmuResult.Fixed or MmuResult.Retry or MmuResult.Mmio or MmuResult.ReadOnlyWrite);
        _core.Completion = Completion.PortRead;
        return fault == MmuResult.NoMemory ? -Errno.ENOMEM : -Errno.EFAULT;
    }

    /// <summary>An element of INS goes to a device: one here, or with false the client's, which then has the exit.</summary>
    private bool TryInputToMmio()
    {
        ExitInfo* e = _exit;
        if (!Vm.Mmu.IsMmio(_mmu, e->Gpa, write: true))
            return true;
        Stats.mmio_exits++;
        var data = new ReadOnlySpan<byte>(e->Data, e->Size);
        if (TryMmioWrite(e->Gpa, data))
        {
            Cpu.CompleteMmio(data);
            return true;
        }
        data.CopyTo(_mmioData);
        _ = ExitMmio();
        _core.Completion = Completion.InputMmio;
        return false;
    }

    private int HandleMmio()
    {
        ExitInfo* e = _exit;
        int size = e->Size;
        if (_mmioPosted)
            return ToClient;
        ulong generation = Vm.Slots.Generation;
        // A slot may have appeared since the processor found none: KVM looks at memory first, too.
        if (!Vm.Mmu.IsMmio(_mmu, e->Gpa, e->IsWrite != 0))
            return FinishFromMemory(generation);
        if (_events.DeliveryFailed)
            return ExitDeliveryFailure();
        if (Vm.ExitsOnEmulationFailure && IsBeyondMmioEmulation())
            return ExitEmulationFailure();
        if (e->IsWrite != 0)
        {
            var data = new ReadOnlySpan<byte>(e->Data, size);
            if (TryMmioWrite(e->Gpa, data))
            {
                Cpu.CompleteMmio(data);
                return KeepRunning;
            }
            return PostMmioWrite(data);
        }
        else
        {
            var data = new Span<byte>(e->Data, size);
            if (TryMmioRead(e->Gpa, data))
            {
                Cpu.CompleteMmio(data);
                return KeepRunning;
            }
        }
        return ExitMmio();
    }

    /// <summary>KVM: the instruction of a write has retired when the client sees it. One that goes on to another device has not, and ends after its last access.</summary>
    private int PostMmioWrite(ReadOnlySpan<byte> data)
    {
        data.CopyTo(_mmioData);
        _ = ExitMmio();
        if (_exit->InstructionLength != 0)
        {
            Cpu.SkipStore();
            return ToClient;
        }
        Cpu.CompleteMmio(data);
        _mmioPosted = _finishOnly = true;
        return KeepRunning;
    }

    /// <summary>The instruction of the client's write has come as far as it can: to its end, to another device, or to something that this Run cannot tell as well and the next one finds again.</summary>
    private int LeaveWithPostedMmio()
    {
        _mmioPosted = false;
        // Traps that were taken for an exit which the client does not see now.
        if (!Cpu.IsInstructionInProgress && _exit->Reason is ExitReason.SingleStep or ExitReason.Exception)
        {
            _s->PendingDebug |= (ushort)_exit->Payload;
            _s->HostStepDone = _s->HostSingleStep;
        }
        return ExitMmioFragment();
    }

    /// <summary>
    /// There is memory for the access after all. A read-only slot serves the read half of an instruction that also writes; a slot that has appeared meanwhile serves the whole instruction, which starts again.
    /// </summary>
    /// <param name="generation">The slots' generation before the first look.</param>
    private int FinishFromMemory(ulong generation)
    {
        ExitInfo* e = _exit;
        if (e->IsWrite != 0 || !Vm.Mmu.IsMmio(_mmu, e->Gpa, write: true))
            return KeepRunning;
        var data = new Span<byte>(e->Data, e->Size);
        // The slot that had appeared may be gone again.
        if (!Vm.Memory.Read(e->Gpa, data, _mmu.AsId))
            return Vm.Slots.Generation != generation ? KeepRunning : -Errno.EFAULT;
        Cpu.CompleteMmio(data);
        return KeepRunning;
    }

    /// <summary>A descriptor table or the stack of an event's handler lies in no memory. KVM gives up as well: a device cannot be asked twice, and a delivery starts again from its beginning.</summary>
    private int ExitDeliveryFailure()
    {
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
        run->@internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
        run->@internal.ndata = 5;
        ref readonly EventInjection e = ref _events.Injected;
        run->@internal.data[0] = e.Vector | (ulong)e.Type << 8 | (e.HasErrorCode != 0 ? 1UL << 11 : 0) | 1UL << 31;
        // As VMX says it: the basic exit reason of a misconfigured EPT entry, no qualification; then the address and the host's processor.
        const ulong EptMisconfiguration = 49;
        run->@internal.data[1] = EptMisconfiguration;
        run->@internal.data[2] = 0;
        run->@internal.data[3] = _exit->Gpa;
        run->@internal.data[4] = (ulong)Thread.GetCurrentProcessorId();
        return ToClient;
    }

    private bool IsBeyondMmioEmulation()
    {
        if (!_translations.BeginReadingTables())
            return false;
        bool beyond = Cpu.IsBeyondMmioEmulation();
        Requests.LeaveGuestMode();
        return beyond;
    }

    private bool TryMmioWrite(ulong gpa, ReadOnlySpan<byte> data)
    {
        if (Lapic is not null && Lapic.ClaimsMmio(gpa))
        {
            _apic.NoteTprAccess(gpa, write: true);
            Lapic.MmioWrite((int)(gpa & 0xfff), data);
            _apic.SyncCr8();
            return true;
        }
        return Vm.MmioDevices.TryWrite(gpa, data) || Vm.Coalesced.TryAdd(this, gpa, data, pio: false);
    }

    private bool TryMmioRead(ulong gpa, Span<byte> data)
    {
        if (Lapic is not null && Lapic.ClaimsMmio(gpa))
        {
            _apic.NoteTprAccess(gpa, write: false);
            Lapic.MmioRead((int)(gpa & 0xfff), data);
            return true;
        }
        return Vm.MmioDevices.TryRead(gpa, data);
    }

    private int ExitMmio()
    {
        ExitInfo* e = _exit;
        (_mmioGpa, _mmioSize, _mmioIsWrite, _mmioDone) = (e->Gpa, e->Size, e->IsWrite != 0, 0);
        return ExitMmioFragment();
    }

    private int ExitMmioFragment()
    {
        kvm_run* run = KvmRun;
        int length = Math.Min(8, _mmioSize - _mmioDone);
        run->exit_reason = KVM_EXIT_MMIO;
        run->mmio.phys_addr = _mmioGpa + (ulong)_mmioDone;
        run->mmio.len = (uint)length;
        run->mmio.is_write = _mmioIsWrite ? (byte)1 : (byte)0;
        *(ulong*)run->mmio.data = 0;
        if (_mmioIsWrite)
            for (int i = 0; i < length; i++)
                run->mmio.data[i] = _mmioData[_mmioDone + i];
        _core.Completion = Completion.Mmio;
        return ToClient;
    }

    private int CompleteMmioFragment()
    {
        int length = Math.Min(8, _mmioSize - _mmioDone);
        if (!_mmioIsWrite)
            for (int i = 0; i < length; i++)
                _mmioData[_mmioDone + i] = KvmRun->mmio.data[i];
        _mmioDone += length;
        if (_mmioDone < _mmioSize)
            return ExitMmioFragment();
        if (!_mmioIsWrite)
            Cpu.CompleteMmio(new ReadOnlySpan<byte>(_mmioData, 0, _mmioSize));
        return KeepRunning;
    }
}
