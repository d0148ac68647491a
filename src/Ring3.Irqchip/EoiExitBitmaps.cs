using Ring3.Abi;
using Ring3.Host;

namespace Ring3.Irqchip;

/// <summary>
/// Split irqchip: the vectors of each vCPU whose EOI leaves to the client (KVM_EXIT_IOAPIC_EOI). They are the level-triggered MSI routes among the reserved
/// ones that can reach the vCPU.
/// Each vCPU computes its own set again when routes or APIC ids have changed since. Acknowledgement notifiers have no part in it: their callbacks run when the
/// client's IOAPIC says so.
/// </summary>
internal sealed class EoiExitBitmaps(ApicBus bus, IrqRouting routing, int reservedRoutes)
{
    private sealed class PerVcpu
    {
        internal Bits256 Vectors;
        internal long Version = -1;
    }

    private PerVcpu[] _vcpus = [];
    private readonly RankedLock _lock = new(LockRank.EoiExitBitmaps);

    /// <summary>Owner of <paramref name="apic"/> only.</summary>
    internal bool Contains(Lapic apic, byte vector)
    {
        PerVcpu[] all = Volatile.Read(ref _vcpus);
        PerVcpu mine = apic.Index < all.Length ? all[apic.Index] : Grow(apic.Index);
        long version = ((long)routing.Generation << 32) + bus.Generation;
        if (mine.Version != version)
        {
            Scan(apic, ref mine.Vectors);
            mine.Version = version;
        }
        return mine.Vectors.Test(vector);
    }

    private PerVcpu Grow(int index)
    {
        using (_lock.Enter())
        {
            int old = _vcpus.Length;
            if (index >= old)
            {
                var next = new PerVcpu[Math.Max(index + 1, old * 2)];
                _vcpus.CopyTo(next, 0);
                for (int i = old; i < next.Length; i++)
                    next[i] = new PerVcpu();
                Volatile.Write(ref _vcpus, next);
            }
            return _vcpus[index];
        }
    }

    private void Scan(Lapic apic, ref Bits256 vectors)
    {
        vectors.ClearAll();
        Route[][] routes = routing.Current.ByGsi;
        for (int gsi = 0; gsi < Math.Min(reservedRoutes, routes.Length); gsi++)
            foreach (ref readonly Route route in routes[gsi].AsSpan())
                if (route.Type == KvmApi.KVM_IRQ_ROUTING_MSI && route.Message.Level
                    && (bus.Reaches(apic, route.Message) || apic.IsPendingOrInService(route.Message.Vector)))
                    vectors.Set(route.Message.Vector);
    }
}
