using Ring3.Abi;
using Ring3.Arch;
using Ring3.Memory;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;

// SAFETY: _exit and KvmRun live as long as the vCPU.
namespace Ring3.Kvm;

/// <summary>
/// Guest memory that the nested tables do not have yet: faults of the guest, the ioctl that comes before them, and what the client is told of memory that the
/// host cannot give (KVM_EXIT_MEMORY_FAULT).
/// </summary>
internal sealed class MemoryFaults(VcpuCore core, Translations translations, SignalWords signal, EmulationFailures failures) : VcpuPart(core)
{
    private readonly VcpuMmu _mmu = translations.Mmu;

    /// <summary>The guest has left with a fault of the nested tables.</summary>
    public unsafe int Handle()
    {
        ulong gpa = _exit->Gpa;
        switch (Vm.Mmu.Fault(_mmu, gpa, _exit->Access))
        {
            // After Mmio and ReadOnlyWrite the entry says that it is a device access: the processor leaves with MMIO next.
            case MmuResult.Retry or MmuResult.Fixed or MmuResult.Mmio or MmuResult.ReadOnlyWrite:
                return RunStep.KeepRunning;
            case MmuResult.NoMemory:
                return -Errno.ENOMEM;
            case MmuResult.MemoryFault:
                return Exit(gpa, false);
            case MmuResult.PrivateMemoryFault:
                return Exit(gpa, true);
            case MmuResult.NoSlot:
                return failures.Exit();
            default:
                return -Errno.EFAULT;
        }
    }

    /// <summary>KVM_EXIT_MEMORY_FAULT, which comes with -EFAULT.</summary>
    private unsafe int Exit(ulong gpa, bool isPrivate)
    {
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_MEMORY_FAULT;
        run->memory_fault.flags = isPrivate ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0;
        run->memory_fault.gpa = gpa & Page.Mask;
        run->memory_fault.size = Page.Size;
        return -Errno.EFAULT;
    }

    /// <summary>Host memory is gone under a translation: the client is told which guest address that was, when a slot has the memory.</summary>
    public int ExitHostMemoryFailure(ulong host)
    {
        ulong gpa = ulong.MaxValue;
        using (Sync.Rcu.Read())
        {
            foreach (Memslot slot in Vm.Slots.Set(_mmu.AsId).InHvaRange(host, host + 1))
                gpa = (slot.BaseGfn << Page.Shift) + (host - slot.UserspaceAddr);
        }
        return gpa == ulong.MaxValue ? -Errno.EFAULT : Exit(gpa, false);
    }

    /// <summary>
    /// KVM_PRE_FAULT_MEMORY: maps a range as reads of the guest would. <paramref name="range"/> is advanced by what was done. Not while the vCPU runs.
    /// </summary>
    /// <returns>0 when at least one page was mapped; else -EINVAL, -ENOENT without memory at the address, -EFAULT, -EINTR after a signal, -ENOMEM.</returns>
    public int PreFault(ref kvm_pre_fault_memory range)
    {
        if (range.flags != 0 || ((range.gpa | range.size) & Page.OffsetMask) != 0 || range.gpa + range.size <= range.gpa)
            return -Errno.EINVAL;
        int r = 0;
        bool any = false;
        while (range.size != 0 && (r = PreFaultOne(range.gpa, range.gpa + range.size, out ulong end)) == 0)
        {
            ulong done = Math.Min(range.size, end - range.gpa);
            range.gpa += done;
            range.size -= done;
            any = true;
        }
        return any ? 0 : r;
    }

    private int PreFaultOne(ulong gpa, ulong limit, out ulong end)
    {
        while (true)
        {
            end = gpa;
            if (signal.IsSignalled)
                return -Errno.EINTR;
            if (Vm.IsDead)
                return -Errno.EIO;
            if (!_mmu.LoadRoot())
                return -Errno.ENOMEM;
            switch (Vm.Mmu.PreFault(_mmu, gpa, limit, out end))
            {
                case MmuResult.Fixed:
                    return 0;
                case MmuResult.Retry:
                    break;
                case MmuResult.MemoryFault:
                    return Exit(gpa, false);
                case MmuResult.PrivateMemoryFault:
                    return Exit(gpa, true);
                case MmuResult.NoMemory:
                    return -Errno.ENOMEM;
                default:
                    return -Errno.ENOENT;
            }
        }
    }
}
