using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;

// SAFETY: KvmRun and the ring behind it live as long as the vCPU (see Vcpu.cs).
namespace Ring3.Kvm;

// Dirty ring, memory faults for the client, pre-faulting.
public sealed unsafe partial class Vcpu
{
    /// <summary>The vCPU's dirty ring, at page KVM_DIRTY_LOG_PAGE_OFFSET of the shared area; null when the VM has none.</summary>
    public DirtyRing? DirtyRing { get; private set; }

    /// <summary>Bytes of the shared area of a vCPU of this VM.</summary>
    internal static int AreaBytes(Vm vm) => vm.DirtyRingBytes == 0 ? RunAreaBytes : (int)KVM_DIRTY_LOG_PAGE_OFFSET * (int)Page.Size + vm.DirtyRingBytes;

    /// <summary>Entries of the processor's dirty log: one page, as PML has.</summary>
    private const int DirtyLogEntries = 512;

    private void InitializeDirtyLog()
    {
        _s->DirtyLog = (ulong*)HostMemory.Map(DirtyLogEntries * sizeof(ulong));
        _s->DirtyLogLimit = DirtyLogEntries;
    }

    private void FreeDirtyLog() => HostMemory.Unmap(_s->DirtyLog, DirtyLogEntries * sizeof(ulong));

    /// <summary>What the log holds has to fit into the ring: the processor leaves at the ring's soft limit.</summary>
    private void LimitDirtyLog(DirtyRing ring) => _s->DirtyLogLimit = Math.Clamp(ring.RoomToSoftLimit, 1, DirtyLogEntries);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void TakeDirtyLog()
    {
        Vm.Mmu.MarkLogged(_mmu, new ReadOnlySpan<ulong>(_s->DirtyLog, (int)_s->DirtyLogCount));
        _s->DirtyLogCount = 0;
    }

    private void InitializeDirtyRing()
    {
        if (Vm.DirtyRingBytes == 0)
            return;
        var entries = (kvm_dirty_gfn*)((byte*)KvmRun + KVM_DIRTY_LOG_PAGE_OFFSET * Page.Size);
        DirtyRing = new DirtyRing(entries, Vm.DirtyRingBytes / sizeof(kvm_dirty_gfn), () => Requests.MakeSelf(VcpuRequest.DirtyRingSoftFull));
    }

    /// <summary>The ring has reached its soft limit: the client has to collect and reset before the guest goes on.</summary>
    private bool ExitIfDirtyRingFull()
    {
        if (!Requests.Check(VcpuRequest.DirtyRingSoftFull) || DirtyRing is not { IsSoftFull: true })
            return false;
        Requests.MakeSelf(VcpuRequest.DirtyRingSoftFull);
        KvmRun->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
        return true;
    }

    /// <summary>KVM_EXIT_MEMORY_FAULT, which comes with -EFAULT.</summary>
    private int ExitMemoryFault(ulong gpa, bool isPrivate)
    {
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_MEMORY_FAULT;
        run->memory_fault.flags = isPrivate ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0;
        run->memory_fault.gpa = gpa & Page.Mask;
        run->memory_fault.size = Page.Size;
        return -Errno.EFAULT;
    }

    /// <summary>Host memory is gone under a translation: the client is told which guest address that was, when a slot has the memory.</summary>
    private int ExitHostMemoryFailure(ulong host)
    {
        ulong gpa = ulong.MaxValue;
        using (Sync.Rcu.Read())
        {
            foreach (Memslot slot in Vm.Slots.Set(_mmu.AsId).InHvaRange(host, host + 1))
                gpa = (slot.BaseGfn << Page.Shift) + (host - slot.UserspaceAddr);
        }
        return gpa == ulong.MaxValue ? -Errno.EFAULT : ExitMemoryFault(gpa, false);
    }

    /// <summary>
    /// KVM_PRE_FAULT_MEMORY: maps a range as reads of the guest would. <paramref name="range"/> is advanced by what was done. Not while the vCPU runs.
    /// </summary>
    /// <returns>0 when at least one page was mapped; else -EINVAL, -ENOENT without memory at the address, -EFAULT, -EINTR after a signal, -ENOMEM.</returns>
    public int PreFaultMemory(ref kvm_pre_fault_memory range)
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
            if (_signal.IsSignalled)
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
                    return ExitMemoryFault(gpa, false);
                case MmuResult.PrivateMemoryFault:
                    return ExitMemoryFault(gpa, true);
                case MmuResult.NoMemory:
                    return -Errno.ENOMEM;
                default:
                    return -Errno.ENOENT;
            }
        }
    }
}
