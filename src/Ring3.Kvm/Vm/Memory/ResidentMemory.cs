using Ring3.Kvm.Reclaim;
using Ring3.Memory;

namespace Ring3.Kvm;

/// <summary>Who limits or watches the VM's resident memory: nobody or one.</summary>
internal sealed class ResidentMemory(MemorySlots slots)
{
    private ResidentLimit? _limit;

    public ResidentLimit? Limit => Volatile.Read(ref _limit);

    /// <summary>False: there is one.</summary>
    public bool TrySet(ResidentLimit limit)
    {
        if (Interlocked.CompareExchange(ref _limit, limit, null) is not null)
            return false;
        slots.Residency = limit;
        return true;
    }

    public void Clear(ResidentLimit limit)
    {
        slots.Residency = null;
        Interlocked.CompareExchange(ref _limit, null, limit);
    }
}
