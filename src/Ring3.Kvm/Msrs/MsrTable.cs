using System.Collections.Frozen;
using Ring3.Cpu;

namespace Ring3.Kvm;

/// <summary>
/// Every MSR of this layer, by number. A number has one entry; the processor owns some of them where the guest accesses them
/// (<see cref="LogicalProcessor.OwnsMsr"/>).
/// </summary>
internal static class MsrTable
{
    /// <summary>In the order in which they are listed.</summary>
    private static readonly MsrRegister[] s_registers =
    [
        .. ProcessorMsrs.Registers, .. TimeMsrs.Registers, .. ParavirtMsrs.Registers, .. PlatformMsrs.Registers, .. SpeculationMsrs.Registers,
        .. SmmMsrs.Registers, .. MtrrMsrs.Registers, .. MachineCheckMsrs.Registers, .. ApicMsrs.Registers, .. HypervMsrs.Registers, .. InertMsrs.Registers,
    ];

    private static readonly FrozenDictionary<int, MsrRegister> s_byNumber =
        s_registers.SelectMany(NumbersOf, (r, msr) => KeyValuePair.Create((int)msr, r)).ToFrozenDictionary();

    private static readonly uint[] s_intel = List(MsrListing.Intel), s_amd = List(MsrListing.Amd);

    public static ReadOnlySpan<MsrRegister> Registers => s_registers;

    /// <summary>The register with this number, or null.</summary>
    public static MsrRegister? Find(uint msr) => s_byNumber.GetValueOrDefault((int)msr);

    private static IEnumerable<uint> NumbersOf(MsrRegister r)
    {
        for (uint msr = r.First; msr <= r.Last; msr++)
            yield return msr;
    }

    /// <summary>KVM_GET_MSR_INDEX_LIST.</summary>
    public static ReadOnlySpan<uint> Listed(ProcessorModel model) => model.IsAmd ? s_amd : s_intel;

    private static uint[] List(MsrListing of) => [.. s_registers.Where(r => (r.Listed & of) != 0).SelectMany(NumbersOf)];

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
