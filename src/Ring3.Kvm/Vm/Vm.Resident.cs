using Ring3.Kvm.Reclaim;
using Ring3.Memory;

namespace Ring3.Kvm;

// The resident limit.
public sealed partial class Vm
{
    private ResidentLimit? _resident;

    /// <summary>What limits or watches this VM's resident memory; null when nothing does.</summary>
    public ResidentLimit? Resident => Volatile.Read(ref _resident);

    /// <summary>Keeps guest memory inside a resident limit; see <see cref="ResidentLimit.Start"/>.</summary>
    public ResidentLimit LimitResident(ulong bytes, IEnumerable<HvaRange> memory, ResidentOptions? options = null) => ResidentLimit.Start(this, memory, bytes, options);

    internal bool TrySetResident(ResidentLimit limit)
    {
        if (Interlocked.CompareExchange(ref _resident, limit, null) is not null)
            return false;
        Slots.Residency = limit;
        return true;
    }

    internal void ClearResident(ResidentLimit limit)
    {
        Slots.Residency = null;
        Interlocked.CompareExchange(ref _resident, null, limit);
    }
}
