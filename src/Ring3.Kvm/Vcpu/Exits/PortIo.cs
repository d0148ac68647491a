using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: _s, _exit and KvmRun live as long as the vCPU; what an exit accesses at once fits into the data page behind kvm_run, and into the exit's own data.
namespace Ring3.Kvm;

/// <summary>
/// Port I/O: the hypervisor's devices first, then the client. KVM: an access that the client has is over, without the rest of it, when it has moved RIP.
/// </summary>
internal sealed class PortIo(VcpuCore core, Translations translations, DirtyLog dirtyLog, MmioIo mmio) : VcpuPart(core)
{
    private const int DataOffset = 4096;

    private readonly IoBus _ports = core.Vm.Ports;
    /// <summary>The page of kvm_run for the data of port I/O.</summary>
    private readonly unsafe byte* _data = (byte*)core.Run + DataOffset;
    /// <summary>Linear RIP at which the client found an access to a port, and debug traps of an OUTS that it has not finished.</summary>
    private ulong _rip;
    private ushort _outTraps;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe int Handle()
    {
        if (_ports.MayClaim(_exit->Port) && TryInKernel())
            return _exit->IsWrite != 0 ? FinishOutput() : FinishInput();
        ExitInfo* e = _exit;
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_IO;
        run->io.direction = e->IsWrite;
        run->io.size = e->Size;
        run->io.port = e->Port;
        run->io.count = e->Count;
        run->io.data_offset = DataOffset;
        _rip = ProcessorMode.LinearRip(_s);
        if (e->IsWrite == 0)
            return ExitToClient(Completion.PortRead);
        *(uint*)_data = *(uint*)e->Data;
        if (e->IsString == 0)
            EndOutputLater(e->Port);
        else if (_s->PendingDebug != 0)
            DeferTraps();
        return ToClient;
    }

    // ---- What the client has handled ----

    /// <summary>OUT.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void CompleteWrite()
    {
        if (ProcessorMode.LinearRip(_s) == _rip)
            Cpu.SkipInstruction();
    }

    /// <summary>An element of OUTS.</summary>
    public unsafe void CompleteStringWrite()
    {
        if (ProcessorMode.LinearRip(_s) == _rip)
            _s->PendingDebug |= _outTraps;
    }

    /// <summary>IN, or an element of INS.</summary>
    public unsafe int CompleteRead() => ProcessorMode.LinearRip(_s) == _rip ? FinishInput() : KeepRunning;

    /// <summary>The device to which an element of INS went.</summary>
    public unsafe int CompleteInputToMmio()
    {
        if (ProcessorMode.LinearRip(_s) != _rip)
            return KeepRunning;
        mmio.CompleteInput();
        return FinishInput();
    }

    // ---- OUT ----

    /// <summary>
    /// KVM: an OUT ends with the next KVM_RUN; RIP is still at it while the client handles it. A reset through this port was relied upon to be behind it.
    /// </summary>
    private void EndOutputLater(ushort port)
    {
        if (port == 0x7e && (Vm.Settings.DisabledQuirks & KVM_X86_QUIRK_OUT_7E_INC_RIP) == 0)
        {
            Cpu.SkipInstruction();
            return;
        }
        Completion = Completion.PortWrite;
    }

    /// <summary>
    /// RIP is behind an element of OUTS, but its debug traps do not exist before the next KVM_RUN either; they come unless the client moves RIP.
    /// </summary>
    private void DeferTraps()
    {
        _outTraps = (ushort)Cpu.TakePendingDebug();
        Completion = Completion.StringWrite;
    }

    private unsafe int FinishOutput()
    {
        if (_exit->IsString == 0)
            Cpu.SkipInstruction();
        return KeepRunning;
    }

    // ---- IN ----

    /// <summary>Gives the guest what was read from a port. When memory for it is gone, the next Run tries again.</summary>
    private unsafe int FinishInput()
    {
        if (!Cpu.InputGoesToMemory)
        {
            _ = Cpu.CompleteIo(new ReadOnlySpan<byte>(_data, _exit->Size));
            return KeepRunning;
        }
        var data = new ReadOnlySpan<byte>(_data, Cpu.InputBytes);
        InputResult r;
        MmuResult fault = MmuResult.Fixed;
        do
        {
            if (!translations.BeginReadingTables())
            {
                fault = MmuResult.NoMemory;
                break;
            }
            r = Cpu.CompleteIo(data);
            // As after a stay in the guest: who waits for the end of this one finds the log empty.
            if (_s->DirtyLogCount != 0)
                dirtyLog.Take();
            Requests.LeaveGuestMode();
            if (r == InputResult.Done)
                return KeepRunning;
            if (r == InputResult.Mmio && !mmio.TryInput())
                return ExitToClient(Completion.InputMmio);
        }
        while (r is InputResult.DirtyLogFull or InputResult.Mmio || r == InputResult.NestedFault && TryMap(out fault));
        Completion = Completion.PortRead;
        return fault == MmuResult.NoMemory ? -Errno.ENOMEM : -Errno.EFAULT;
    }

    /// <summary>The input's destination is not in the nested tables. False: it cannot be had.</summary>
    private unsafe bool TryMap(out MmuResult fault)
    {
        fault = Vm.Mmu.Fault(translations.Mmu, _exit->Gpa, _exit->Access);
        return fault is MmuResult.Fixed or MmuResult.Retry or MmuResult.Mmio or MmuResult.ReadOnlyWrite;
    }

    // ---- Devices here ----

    /// <summary>All elements of the access, or none: a string instruction stays with one device.</summary>
    private unsafe bool TryInKernel()
    {
        ExitInfo* e = _exit;
        int size = e->Size;
        if (e->IsWrite != 0)
        {
            for (int i = 0; i < e->Count; i++)
            {
                var data = new ReadOnlySpan<byte>(e->Data + i * size, size);
                if (!_ports.Write(e->Port, data) && i == 0)
                    return false;
            }
            return true;
        }
        for (int i = 0; i < e->Count; i++)
            if (!_ports.Read(e->Port, new Span<byte>(_data + i * size, size)) && i == 0)
                return false;
        return true;
    }
}
