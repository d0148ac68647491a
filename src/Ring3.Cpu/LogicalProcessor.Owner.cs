// SAFETY: the state block lives as long as the processor.
namespace Ring3.Cpu;

// What the owner asks of the parts, in one line each.
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>RFLAGS with every bit, outside the guest. After a write the owner calls <see cref="RecomputeMode"/>.</summary>
    public ulong RflagsValue
    {
        get => Flags.Get(State);
        set => Flags.Set(State, value);
    }

    /// <summary>Whether DR6 bits can all come from traps: an instruction breakpoint is a fault.</summary>
    public bool AreTraps(ulong bits) => DebugTraps.AreTraps(State, bits);

    /// <summary>The guest's CPUID, where behaviour depends on it. Set before the first Enter.</summary>
    public ref CpuidFeatures CpuidFeatures => ref Identity.Features;

    /// <inheritdoc cref="PagingUnit.Pkru"/>
    public uint Pkru
    {
        get => Paging.Pkru;
        set => Paging.Pkru = value;
    }

    /// <inheritdoc cref="PagingUnit.FlushAsid"/>
    public void FlushAsid(uint asid) => Paging.FlushAsid(asid);

    /// <inheritdoc cref="PagingUnit.FlushGfns"/>
    public void FlushGfns(ulong start, ulong end) => Paging.FlushGfns(start, end);

    /// <inheritdoc cref="PagingUnit.FlushAll"/>
    public void FlushAll() => Paging.FlushAll();

    /// <inheritdoc cref="PagingUnit.FlushGva"/>
    public void FlushGva(uint asid, ulong gva) => Paging.FlushGva(asid, gva);

    /// <inheritdoc cref="PagingUnit.TranslateGva"/>
    public bool TranslateGva(ulong gva, out ulong gpa, out bool writable, out bool user) => Paging.TranslateGva(gva, out gpa, out writable, out user);

    /// <inheritdoc cref="PagingUnit.ReservedLargePage32"/>
    public ulong ReservedLargePage32 => Paging.ReservedLargePage32;

    /// <inheritdoc cref="PagingUnit.CheckTranslations"/>
    public void CheckTranslations(TlbReference reference) => Paging.CheckTranslations(reference);

    /// <inheritdoc cref="PagingUnit.TranslationChecks"/>
    public ulong TranslationChecks => Paging.TranslationChecks;

    /// <inheritdoc cref="PagingUnit.ExpectFlush"/>
    public void ExpectFlush(uint asid) => Paging.ExpectFlush(asid);

    /// <inheritdoc cref="GuestAccess.CompleteMmio"/>
    public void CompleteMmio(ReadOnlySpan<byte> data) => Access.CompleteMmio(data);
}
