using Ring3.Cpu;
using Ring3.Memory;
using Ring3.Mmu;

namespace Ring3.Kvm;

/// <summary>What can be chosen when a VM is created. The defaults are KVM's.</summary>
public sealed record VmOptions
{
    /// <summary>Longest time a halted vCPU polls before it sleeps, in nanoseconds; 0 turns polling off. KVM's halt_poll_ns.</summary>
    public long HaltPollNs { get; init; } = 200_000;

    /// <summary>KVM_CREATE_VM's type: KVM_X86_DEFAULT_VM, or KVM_X86_SW_PROTECTED_VM with private memory.</summary>
    public uint Type { get; init; }

    /// <summary>Which processor the vCPUs are: identity, and what vendors do differently. What the guest is told is its CPUID, which the client sets.</summary>
    public ProcessorModel Processor { get; init; } = ProcessorModel.Host;

    /// <summary>Executions of a block of guest code by the interpreter before the translator makes host code of it; <see cref="int.MaxValue"/>: never.
    /// See <see cref="Engine"/>.</summary>
    public int TranslationThreshold { get; init; } = Engine.Threshold;

    /// <summary>Told of every region of translated code, guest and host code side by side, by the thread that translates. See <see cref="Engine"/>.</summary>
    public Action<string>? RegionObserver { get; init; } = Engine.RegionLog;

    /// <summary>Guest TSC frequency of new vCPUs in kHz; 0: the host's.</summary>
    public uint TscKhz { get; init; }

    /// <summary>How dirty-logged slots are tracked. <see cref="Vm.Slots"/> can change it for slots whose logging begins later.
    /// KVM's kvm_intel.pml chooses between the same two.</summary>
    public DirtyTracking DirtyTracking { get; init; }

    /// <summary>Split huge mappings when dirty logging begins (or where bits are cleared, if all are set initially) rather than at the first write
    /// to each. KVM's eager_page_split.</summary>
    public bool EagerPageSplit { get; init; } = true;

    /// <summary>Huge mappings cannot be executed, and are split when they are. For guests whose code must behave as on a host with that mitigation.
    /// KVM's nx_huge_pages.</summary>
    public bool NxHugePages { get; init; }

    /// <summary>With <see cref="NxHugePages"/>: each period 1/ratio of the splits is zapped; 0: none ever. KVM's nx_huge_pages_recovery_ratio.</summary>
    public uint NxHugePagesRecoveryRatio { get; init; } = 60;

    /// <summary>With <see cref="NxHugePages"/>: time between two recoveries, in milliseconds; 0: such that an hour has <see cref="NxHugePagesRecoveryRatio"/>
    /// of them, at most one a second. KVM's nx_huge_pages_recovery_period_ms.</summary>
    public uint NxHugePagesRecoveryPeriodMs { get; init; }

    /// <summary>Who zaps obsolete page tables: the VM's worker, the thread that makes them obsolete (sync, as Linux since 6.6), or also a vCPU that drops the
    /// last reference, without yielding (inline, as Linux before 5.18).</summary>
    public RootZapPolicy ZapPolicy { get; init; } = RootZapPolicy.Worker;

    /// <summary>Percent of one processor, 1 to 100, that the VM's worker may take for zapping and for giving table memory back. A burst of two milliseconds
    /// after a rest is free. Other values: <see cref="ArgumentOutOfRangeException"/>.</summary>
    public int ZapSharePercent { get; init; } = 50;

    /// <summary>Host threads other than vCPUs write guest memory without the accessors, so decoded code is verified again after each entry.</summary>
    public bool ExternalWriters { get; init; }

    /// <summary>The TLB sanitizer: every use of a cached translation is compared with the nested tables and with the flushes that should have dropped it. A
    /// violation marks the VM dead with a report (<see cref="Vm.BugMessage"/>). Some ten times slower. See docs/tlb.md.</summary>
    public bool CheckTlb { get; init; }

    /// <summary>Pages are aged by the Accessed bits that the processor sets. False: by taking their permissions, as KVM does with kvm_intel.eptad=N; for
    /// comparison, and for tests of that way.</summary>
    internal bool AccessedBits { get; init; } = true;
}
