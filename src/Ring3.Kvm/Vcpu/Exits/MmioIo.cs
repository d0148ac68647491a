using Ring3.Abi;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: _s, _exit and KvmRun live as long as the vCPU; an access is at most 64 bytes, what the exit's data and _data have, and a fragment of it at most the 8
// of kvm_run.
namespace Ring3.Kvm;

/// <summary>
/// Memory-mapped I/O: the local APIC and the hypervisor's devices first, then the client. An instruction has not retired when its read is the client's, and has
/// when its write is (KVM's rule), unless it goes on to another device.
/// </summary>
internal sealed class MmioIo(VcpuCore core, VcpuApic apic, Translations translations, VcpuEvents events, EmulationFailures failures) : VcpuPart(core)
{
    /// <summary>The access that is the client's. Wider than the 8 bytes of kvm_run, it goes there in fragments: this is how far it has come.</summary>
    private int _done, _size;
    private ulong _gpa;
    private bool _isWrite;
    private readonly byte[] _data = new byte[64];

    /// <summary>The client gets a write when its instruction has retired: only the rest of the instruction runs until then.</summary>
    public bool IsPosted { get; private set; }

    public unsafe int Handle()
    {
        ExitInfo* e = _exit;
        if (IsPosted)
            return ToClient;
        ulong generation = Vm.Slots.Generation;
        // A slot may have appeared since the processor found none: KVM looks at memory first, too.
        if (!Vm.Mmu.IsMmio(translations.Mmu, e->Gpa, e->IsWrite != 0))
            return FinishFromMemory(generation);
        if (events.DeliveryFailed)
            return ExitDeliveryFailure();
        if (Vm.Settings.ExitsOnEmulationFailure && failures.IsBeyondMmio())
            return failures.Exit();
        if (e->IsWrite != 0)
        {
            var data = new ReadOnlySpan<byte>(e->Data, e->Size);
            if (!TryWrite(e->Gpa, data))
                return PostWrite(data);
            Cpu.CompleteMmio(data);
        }
        else
        {
            var data = new Span<byte>(e->Data, e->Size);
            if (!TryRead(e->Gpa, data))
                return Exit();
            Cpu.CompleteMmio(data);
        }
        return KeepRunning;
    }

    // ---- The client's ----

    private unsafe int Exit()
    {
        ExitInfo* e = _exit;
        (_gpa, _size, _isWrite, _done) = (e->Gpa, e->Size, e->IsWrite != 0, 0);
        return ExitFragment();
    }

    private unsafe int ExitFragment()
    {
        kvm_run* run = KvmRun;
        int length = Math.Min(8, _size - _done);
        run->exit_reason = KVM_EXIT_MMIO;
        run->mmio.phys_addr = _gpa + (ulong)_done;
        run->mmio.len = (uint)length;
        run->mmio.is_write = _isWrite ? (byte)1 : (byte)0;
        *(ulong*)run->mmio.data = 0;
        if (_isWrite)
            for (int i = 0; i < length; i++)
                run->mmio.data[i] = _data[_done + i];
        return ExitToClient(_isWrite ? Completion.MmioWrite : Completion.MmioRead);
    }

    /// <summary>The client has handled a fragment.</summary>
    public unsafe int Complete()
    {
        int length = Math.Min(8, _size - _done);
        if (!_isWrite)
            for (int i = 0; i < length; i++)
                _data[_done + i] = KvmRun->mmio.data[i];
        _done += length;
        if (_done < _size)
            return ExitFragment();
        if (!_isWrite)
            Cpu.CompleteMmio(new ReadOnlySpan<byte>(_data, 0, _size));
        return KeepRunning;
    }

    /// <summary>
    /// KVM: the instruction of a write has retired when the client sees it. One that goes on to another device has not, and ends after its last access.
    /// </summary>
    private unsafe int PostWrite(ReadOnlySpan<byte> data)
    {
        data.CopyTo(_data);
        _ = Exit();
        if (_exit->InstructionLength != 0)
        {
            Cpu.SkipStore();
            return ToClient;
        }
        Cpu.CompleteMmio(data);
        IsPosted = true;
        return KeepRunning;
    }

    /// <summary>
    /// The instruction of the client's write has come as far as it can: to its end, to another device, or to something that this Run cannot tell as well and
    /// the next one finds again.
    /// </summary>
    public unsafe int LeaveWithPosted()
    {
        IsPosted = false;
        // Traps that were taken for an exit which the client does not see now.
        if (!Cpu.IsInstructionInProgress && _exit->Reason is ExitReason.SingleStep or ExitReason.Exception)
        {
            _s->PendingDebug |= (ushort)_exit->Payload;
            _s->HostStepDone = _s->HostSingleStep;
        }
        return ExitFragment();
    }

    /// <summary>
    /// A descriptor table or the stack of an event's handler lies in no memory. KVM gives up as well: a device cannot be asked twice, and a delivery starts
    /// again from its beginning.
    /// </summary>
    private unsafe int ExitDeliveryFailure()
    {
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
        run->@internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
        run->@internal.ndata = 5;
        ref readonly EventInjection e = ref events.Injected;
        run->@internal.data[0] = e.Vector | (ulong)e.Type << 8 | (e.HasErrorCode != 0 ? 1UL << 11 : 0) | 1UL << 31;
        // As VMX says it: the basic exit reason of a misconfigured EPT entry, no qualification; then the address and the host's processor.
        const ulong EptMisconfiguration = 49;
        run->@internal.data[1] = EptMisconfiguration;
        run->@internal.data[2] = 0;
        run->@internal.data[3] = _exit->Gpa;
        run->@internal.data[4] = (ulong)Thread.GetCurrentProcessorId();
        return ToClient;
    }

    // ---- Input from a port ----

    /// <summary>An element of INS goes to a device: one here, or with false the client's, which then has the exit.</summary>
    public unsafe bool TryInput()
    {
        ExitInfo* e = _exit;
        if (!Vm.Mmu.IsMmio(translations.Mmu, e->Gpa, write: true))
            return true;
        Stats.mmio_exits++;
        var data = new ReadOnlySpan<byte>(e->Data, e->Size);
        if (TryWrite(e->Gpa, data))
        {
            Cpu.CompleteMmio(data);
            return true;
        }
        data.CopyTo(_data);
        _ = Exit();
        return false;
    }

    /// <summary>The client has written what <see cref="TryInput"/> gave it.</summary>
    public void CompleteInput() => Cpu.CompleteMmio(new ReadOnlySpan<byte>(_data, 0, _size));

    // ---- Memory after all ----

    /// <summary>
    /// There is memory for the access. A read-only slot serves the read half of an instruction that also writes; a slot that has appeared meanwhile serves the
    /// whole instruction, which starts again.
    /// </summary>
    /// <param name="generation">The slots' generation before the first look.</param>
    private unsafe int FinishFromMemory(ulong generation)
    {
        ExitInfo* e = _exit;
        if (e->IsWrite != 0 || !Vm.Mmu.IsMmio(translations.Mmu, e->Gpa, write: true))
            return KeepRunning;
        var data = new Span<byte>(e->Data, e->Size);
        // The slot that had appeared may be gone again.
        if (!Vm.Memory.Read(e->Gpa, data, translations.Mmu.AsId))
            return Vm.Slots.Generation != generation ? KeepRunning : -Errno.EFAULT;
        Cpu.CompleteMmio(data);
        return KeepRunning;
    }

    // ---- Devices here ----

    private bool TryWrite(ulong gpa, ReadOnlySpan<byte> data)
    {
        if (Lapic is not null && Lapic.ClaimsMmio(gpa))
        {
            apic.NoteTprAccess(gpa, write: true);
            Lapic.MmioWrite((int)(gpa & 0xfff), data);
            apic.SyncCr8();
            return true;
        }
        return Vm.Mmio.Write(gpa, data);
    }

    private bool TryRead(ulong gpa, Span<byte> data)
    {
        if (Lapic is not null && Lapic.ClaimsMmio(gpa))
        {
            apic.NoteTprAccess(gpa, write: false);
            Lapic.MmioRead((int)(gpa & 0xfff), data);
            return true;
        }
        return Vm.Mmio.Read(gpa, data);
    }
}
