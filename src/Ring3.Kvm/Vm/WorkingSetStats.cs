using Ring3.Reclaim;
using static Ring3.Kvm.StatDescriptor<Ring3.Kvm.Vm>;

namespace Ring3.Kvm;

/// <summary>The working set as statistics of a VM; zeros without a resident limit. Values are those of the last <see cref="Vm.Stats"/>.</summary>
public static class WorkingSetStats
{
    private static readonly WorkingSet s_none = new([], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

    /// <summary>Its statistics, in the order of KVM_GET_STATS_FD's data.</summary>
    public static IReadOnlyList<StatDescriptor<Vm>> Descriptors { get; } =
    [
        Instant("resident_limit_bytes", v => Of(v).Limit), Instant("resident_pages", v => (ulong)Of(v).ResidentPages),
        Instant("evicted_pages", v => (ulong)Of(v).EvictedPages), Peak("max_resident_pages", v => (ulong)Of(v).PeakPages),
        Counter("evictions", v => (ulong)Of(v).Evictions), Counter("eviction_writes", v => (ulong)Of(v).Writes),
        Counter("eviction_failures", v => (ulong)Of(v).Failures), Counter("refaults", v => (ulong)Of(v).Refaults),
        Counter("refaults_recent", v => (ulong)Of(v).RecentRefaults), Counter("direct_reclaims", v => (ulong)Of(v).DirectReclaims),
        Counter("aging_passes", v => (ulong)Of(v).AgingPasses),
        .. from i in Enumerable.Range(0, WorkingSet.MostGenerations) select Instant($"working_set_pages_{i}", v => (ulong)Of(v, i).Pages),
        .. from i in Enumerable.Range(0, WorkingSet.MostGenerations) select Instant($"working_set_age_ms_{i}", v => (ulong)Of(v, i).AgeMs),
    ];

    private static WorkingSet Of(Vm vm) => vm.RawStats.WorkingSet ?? s_none;

    /// <summary>Generation by distance from the youngest.</summary>
    private static GenerationSize Of(Vm vm, int index) => Of(vm).Generations is { } g && index < g.Count ? g[index] : default;
}
