// SAFETY: the state block lives as long as the processor.
namespace Ring3.Cpu;

// What the owner asks of the parts, in one line each.
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>RFLAGS with every bit, outside the guest. After a write the owner calls <see cref="EventUnit.RecomputeMode"/>.</summary>
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

    /// <inheritdoc cref="EventUnit.EventObserver"/>
    public Action<DeliveredEvent>? EventObserver
    {
        get => Events.EventObserver;
        set => Events.EventObserver = value;
    }

    /// <inheritdoc cref="EventUnit.FirstEvent"/>
    public BoundaryEvents FirstEvent(BoundaryEvents waiting, EventBlocking blocking = 0) => Events.FirstEvent(waiting, blocking);

    /// <inheritdoc cref="EventUnit.RecomputeMode"/>
    public void RecomputeMode() => Events.RecomputeMode();

    /// <inheritdoc cref="EventUnit.IsInstructionInProgress"/>
    public bool IsInstructionInProgress => Events.IsInstructionInProgress;

    /// <inheritdoc cref="ControlUnit.ReadMsr"/>
    public bool ReadMsr(uint index, out ulong value) => Control.ReadMsr(index, out value);

    /// <inheritdoc cref="ControlUnit.OwnsMsr"/>
    public bool OwnsMsr(uint index) => Control.OwnsMsr(index);

    /// <inheritdoc cref="ControlUnit.MsrExists"/>
    public bool MsrExists(uint index) => Control.MsrExists(index);

    /// <inheritdoc cref="ControlUnit.TryReadGuestMsr"/>
    public bool TryReadGuestMsr(uint index, out ulong value) => Control.TryReadGuestMsr(index, out value);

    /// <inheritdoc cref="ControlUnit.TryWriteGuestMsr"/>
    public bool TryWriteGuestMsr(uint index, ulong value) => Control.TryWriteGuestMsr(index, value);

    /// <inheritdoc cref="ControlUnit.HasWideSysenter"/>
    public bool HasWideSysenter => Control.HasWideSysenter;

    /// <inheritdoc cref="ControlUnit.IsValidCr4"/>
    public bool IsValidCr4(ulong value) => Control.IsValidCr4(value);

    /// <inheritdoc cref="ControlUnit.IsValidEfer"/>
    public bool IsValidEfer(ulong value) => Control.IsValidEfer(value);

    /// <inheritdoc cref="ControlUnit.CompleteMsr"/>
    public void CompleteMsr(bool ok, ulong value) => Control.CompleteMsr(ok, value);

    /// <inheritdoc cref="PortInput.InputBytes"/>
    public int InputBytes => Input.InputBytes;

    /// <inheritdoc cref="PortInput.InputGoesToMemory"/>
    public bool InputGoesToMemory => Input.InputGoesToMemory;

    /// <inheritdoc cref="PortInput.CompleteIo"/>
    public InputResult CompleteIo(ReadOnlySpan<byte> data) => Input.CompleteIo(data);

    /// <inheritdoc cref="RandomSource.Seed"/>
    public void SeedRandom(ulong seed) => Random.Seed(seed);
}
