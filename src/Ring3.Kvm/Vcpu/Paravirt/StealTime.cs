using Ring3.Abi;
using Ring3.Host;
using Ring3.Mmu;
using static Ring3.Abi.KvmPara;

namespace Ring3.Kvm;

/// <summary>
/// Steal time: a page in which the guest finds for how long the host has run something else, and whether this vCPU runs at all. KVM:
/// Documentation/virt/kvm/x86/msr.rst.
/// </summary>
internal sealed class StealTime(VcpuCore core, Translations translations, RunDelay runDelay) : VcpuPart(core)
{
    /// <summary>The scheduler is asked at most this often: shorter delays are found by the next question.</summary>
    private const long IntervalNs = 150_000;
    private const int VersionOffset = 8, PreemptedOffset = 16;

    private ulong _gpa;
    private long _nextQuestionNs;

    /// <summary>The guest has enabled it.</summary>
    public bool IsEnabled => _core.HasStealTime;

    /// <summary>MSR_KVM_STEAL_TIME as it was written.</summary>
    public ulong StealTimeMsr { get; private set; }

    /// <summary>WRMSR of MSR_KVM_STEAL_TIME. False: #GP.</summary>
    public bool TryWriteMsr(ulong value)
    {
        if ((value & KVM_STEAL_RESERVED_MASK) != 0)
            return false;
        StealTimeMsr = value;
        _gpa = (value & KVM_MSR_ENABLED) != 0 ? value & KVM_STEAL_VALID_BITS : 0;
        _core.HasStealTime = _gpa != 0;
        Requests.MakeSelf(VcpuRequest.StealUpdate);
        return true;
    }

    /// <summary>INIT.</summary>
    public void Reset() => _ = TryWriteMsr(0);

    /// <summary>
    /// The vCPU runs again: clears the preempted flag, flushes if another vCPU asked for that instead of sending an IPI, and adds the time for which the host
    /// ran something else.
    /// </summary>
    public void Record()
    {
        byte old;
        do
        {
            if (!Vm.Memory.TryRead(_gpa + PreemptedOffset, out old))
                return;
            if (old == 0)
                break;
        }
        while (!Vm.Memory.CompareExchange(_gpa + PreemptedOffset, (byte)0, old, out byte seen) || seen != old);
        if ((old & KVM_VCPU_FLUSH_TLB) != 0)
        {
            Stats.tlb_flush_paravirt++;
            translations.OweFlush(FlushSite.ParavirtFlush);
        }
        long now = HostClock.MonotonicNs();
        if (now >= _nextQuestionNs)
            AddStolen(now);
    }

    private void AddStolen(long nowNs)
    {
        runDelay.Use();
        if (!runDelay.IsKnown)
            return;
        _nextQuestionNs = nowNs + IntervalNs;
        long delay = runDelay.NowNs;
        long stolen = delay - runDelay.LastNs;
        runDelay.LastNs = delay;
        if (stolen < 0 || !Vm.Memory.TryRead(_gpa, out ulong steal) || !Vm.Memory.TryRead(_gpa + VersionOffset, out uint version))
            return;
        version += 1 + (version & 1);
        Vm.Memory.TryWrite(_gpa + VersionOffset, version);
        // PAIRS-WITH: the guest's read of version, contents, version (struct kvm_steal_time).
        Interlocked.MemoryBarrier();
        Vm.Memory.TryWrite(_gpa, steal + (ulong)stolen);
        Interlocked.MemoryBarrier();
        Vm.Memory.TryWrite(_gpa + VersionOffset, version + 1);
    }

    /// <summary>The vCPU stops running: others need not wait for it, nor send it TLB-flush IPIs.</summary>
    public void SetPreempted()
    {
        if (Vm.Memory.TryRead(_gpa + PreemptedOffset, out byte old) && old == 0)
        {
            _ = Vm.Memory.CompareExchange(_gpa + PreemptedOffset, KVM_VCPU_PREEMPTED, (byte)0, out byte _);
            Stats.preemption_reported++;
        }
    }
}
