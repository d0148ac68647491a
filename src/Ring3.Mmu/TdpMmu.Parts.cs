using Ring3.Memory;

namespace Ring3.Mmu;

/// <summary>What others do on the tables, each a class of its own: dirty logging, aging, checks, the tables as text.</summary>
public sealed partial class TdpMmu
{
    private readonly DirtyLogging _dirtyLogging;
    private readonly PageAging _aging;

    internal readonly LeafHarvest Leaves;

    /// <inheritdoc cref="LeafHarvest.AccessTracker"/>
    public IAccessTracker? AccessTracker
    {
        get => Leaves.AccessTracker;
        set => Leaves.AccessTracker = value;
    }

    /// <summary>Whether aging takes mmu_lock although it need not.</summary>
    public AgingPolicy Aging { get; set; } = AgingPolicy.Lockless;

    /// <summary>
    /// The processor sets Accessed bits. If not (EPT without Accessed and Dirty flags), a page is made old by taking all its permissions: the next access
    /// faults, and the fault gives them back. Set before the first fault.
    /// </summary>
    public bool AccessedBits { get; init; } = true;

    /// <summary>Young pages can be found and made old without mmu_lock.</summary>
    public bool CanAgeLockless => AccessedBits && Aging == AgingPolicy.Lockless;

    /// <inheritdoc cref="PageAging.TestClearYoung"/>
    public bool TestClearYoung(ulong start, ulong end, Span<ulong> bitmap, int asId = 0) => _aging.TestClearYoung(start, end, bitmap, asId);

    /// <inheritdoc cref="PageAging.TestClearYoungLocked"/>
    public void TestClearYoungLocked(ulong start, ulong end, Span<ulong> bitmap, int asId = 0) => _aging.TestClearYoungLocked(start, end, bitmap, asId);

    /// <inheritdoc cref="PageAging.HarvestYoung"/>
    public void HarvestYoung(ulong start, ulong end, Span<ulong> bitmap, int asId = 0) => _aging.HarvestYoung(start, end, bitmap, asId);

    bool IMmuNotifierHandler.AgeGfnRange(in GfnRange range) => _aging.AgeGfnRange(range);

    bool IMmuNotifierHandler.TestAgeGfnRange(in GfnRange range) => _aging.TestAgeGfnRange(range);

    /// <inheritdoc cref="DirtyLogging.GetDirtyLog"/>
    public int GetDirtyLog(uint slotAndAs, ulong bitmap) => _dirtyLogging.GetDirtyLog(slotAndAs, bitmap);

    /// <inheritdoc cref="DirtyLogging.ClearDirtyLog"/>
    public int ClearDirtyLog(uint slotAndAs, ulong firstPage, uint numPages, ulong bitmap) =>
        _dirtyLogging.ClearDirtyLog(slotAndAs, firstPage, numPages, bitmap);

    /// <inheritdoc cref="DirtyLogging.MarkLogged"/>
    public void MarkLogged(VcpuMmu vcpu, ReadOnlySpan<ulong> gpas) => _dirtyLogging.MarkLogged(vcpu, gpas);

    /// <inheritdoc cref="DirtyLogging.HarvestDirty"/>
    public ulong HarvestDirty(ulong start, ulong end, Span<ulong> bitmap, int asId = 0) => _dirtyLogging.HarvestDirty(start, end, bitmap, asId);

    /// <inheritdoc cref="DirtyLogging.ResetDirtyRings"/>
    public int ResetDirtyRings(ReadOnlySpan<DirtyRing> rings) => _dirtyLogging.ResetDirtyRings(rings);

    /// <inheritdoc cref="MmuInvariants.Check"/>
    public void CheckInvariants(bool quiet = false) => new MmuInvariants(this).Check(quiet);

    /// <inheritdoc cref="MmuDump.Write"/>
    public void Dump(TextWriter writer) => MmuDump.Write(this, writer);
}
