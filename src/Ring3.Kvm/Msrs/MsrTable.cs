using Ring3.Cpu;

namespace Ring3.Kvm;

/// <summary>
/// Every MSR of this layer, by number. A number has one entry; the processor owns some of them where the guest accesses them (<see
/// cref="LogicalProcessor.OwnsMsr"/>).
/// </summary>
internal static class MsrTable
{
    /// <summary>In the order in which they are listed.</summary>
    private static readonly MsrRegister[] s_registers =
    [
        .. ProcessorMsrs.Registers, .. TimeMsrs.Registers, .. ParavirtMsrs.Registers, .. PlatformMsrs.Registers, .. SpeculationMsrs.Registers,
        .. SmmMsrs.Registers, .. MtrrMsrs.Registers, .. MachineCheckMsrs.Registers, .. ApicMsrs.Registers, .. HypervMsrs.Registers, .. InertMsrs.Registers,
    ];

    private static readonly MsrRegister[] s_sorted = [.. s_registers.OrderBy(r => r.First)];
    private static readonly uint[] s_firsts = [.. s_sorted.Select(r => r.First)];

    private static readonly uint[] s_intel = List(MsrListing.Intel), s_amd = List(MsrListing.Amd);

    /// <summary>Every entry, by number. INVARIANT: they do not overlap.</summary>
    public static ReadOnlySpan<MsrRegister> Registers => s_sorted;

    /// <summary>The register with this number, or null.</summary>
    public static MsrRegister? Find(uint msr)
    {
        int i = Array.BinarySearch(s_firsts, msr);
        if (i < 0)
            i = ~i - 1;
        return i >= 0 && msr <= s_sorted[i].Last ? s_sorted[i] : null;
    }

    /// <summary>KVM_GET_MSR_INDEX_LIST.</summary>
    public static ReadOnlySpan<uint> Listed(ProcessorModel model) => model.IsAmd ? s_amd : s_intel;

    private static uint[] List(MsrListing of)
    {
        List<uint> list = [];
        foreach (MsrRegister r in s_registers)
            for (uint msr = r.First; (r.Listed & of) != 0 && msr <= r.Last; msr++)
                list.Add(msr);
        return [.. list];
    }

    /// <summary>KVM_GET_MSR_FEATURE_INDEX_LIST.</summary>
    public static uint[] Features(ProcessorModel model) => [.. from r in s_registers where r.Feature?.Invoke(model) is not null select r.First];

    /// <summary>Registers that describe the processor rather than its state.</summary>
    public static bool TryGetFeature(ProcessorModel model, uint msr, out ulong value)
    {
        ulong? v = Find(msr)?.Feature?.Invoke(model);
        value = v ?? 0;
        return v.HasValue;
    }
}
