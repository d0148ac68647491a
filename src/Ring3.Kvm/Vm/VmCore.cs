using Ring3.Cpu;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Kvm;

/// <summary>
/// What all parts of a VM stand on: what was chosen at its creation, its vCPUs, its worker, and whether it is dead. It knows no part and decides nothing.
/// </summary>
internal sealed class VmCore
{
    public VmCore(VmOptions options)
    {
        Options = options;
        Machine = new Machine(options.Processor)
        {
            TranslationThreshold = options.TranslationThreshold, RegionObserver = options.RegionObserver, ExternalWriters = options.ExternalWriters,
        };
        Vcpus = new VcpuList(Shaping);
        Health = new VmHealth(Vcpus);
        Work = new WorkQueue("ring3-vm") { Failed = e => Health.Bug(e.Message) };
        Work.Share.Percent = options.ZapSharePercent;
    }

    public VmOptions Options { get; }

    /// <summary>What the processors have in common.</summary>
    public Machine Machine { get; }

    /// <summary>Held while the VM takes shape: for what can be done only before its first vCPU, or must not miss a vCPU that is being made.</summary>
    public RankedLock Shaping { get; } = new(LockRank.Shaping);

    public VcpuList Vcpus { get; }
    public VmHealth Health { get; }

    /// <summary>The VM's worker thread: what takes long, or may wait.</summary>
    public WorkQueue Work { get; }

    public VmStats Stats { get; } = new();
}
