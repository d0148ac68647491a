using Ring3.Memory;
using Ring3.Reclaim;

namespace Ring3.Kvm;

/// <summary>Who limits or watches the VM's resident memory, nobody or one, and what he asks of the VM.</summary>
internal sealed class ResidentMemory(VcpuList vcpus, VmMemory memory) : IResidentHost
{
    private ResidentLimit? _limit;

    public ResidentLimit? Limit => Volatile.Read(ref _limit);

    public MemorySlots Slots { get; } = memory.Slots;

    public int Processors => vcpus.Count;

    public void HarvestYoung(ulong startGfn, ulong endGfn, Span<ulong> bitmap, int asId) => memory.Mmu.HarvestYoung(startGfn, endGfn, bitmap, asId);

    public void FlushTlbs() => memory.Host.FlushRemoteTlbs();

    public bool TryAttach(ResidentLimit limit)
    {
        if (Interlocked.CompareExchange(ref _limit, limit, null) is not null)
            return false;
        Slots.Residency = limit;
        return true;
    }

    public void Detach(ResidentLimit limit)
    {
        Slots.Residency = null;
        Interlocked.CompareExchange(ref _limit, null, limit);
    }
}
