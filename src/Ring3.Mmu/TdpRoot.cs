using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>What makes two roots different. Vcpus with equal roles share a root.</summary>
public readonly record struct TdpRole(int Level, int AsId)
{
    public bool Smm => AsId != 0;
}

/// <summary>
/// The top of one set of nested tables.
/// </summary>
/// <remarks>
/// INVARIANT: references = one for each vCPU that has it loaded + one of the MMU until the root has been invalidated and zapped. It starts at two: the first
/// vCPU's and the MMU's.
/// <see cref="Invalid"/> goes from false to true once, under mmu_lock-write, and the zap is queued before that lock is released.
/// The root stays on the list, visible to notifiers, until it has been zapped and the last reference is gone.
/// </remarks>
public sealed class TdpRoot : RcuDeferred
{
    private readonly TablePageAllocator _allocator;
    internal readonly unsafe TablePage* Page;
    internal int References;
    /// <summary>Mappings are gone and no more can come.</summary>
    internal bool Zapped;
    /// <summary>A zap is queued; the reference it will drop is counted.</summary>
    internal bool ScheduledToZap;
    /// <summary>The zap has been taken up by a thread, which owns the reference now.</summary>
    internal bool Zapping;
    /// <summary>One of the references is the MMU's own. Changed under mmu_lock-write.</summary>
    internal bool HasMmuReference = true;
    private int _invalid;

    internal unsafe TdpRoot(TdpRole role, TablePage* page, TablePageAllocator allocator)
    {
        Role = role;
        Page = page;
        Hva = (ulong)TablePage.TableOf(page);
        _allocator = allocator;
        References = 2;
    }

    public TdpRole Role { get; }

    /// <summary>Host virtual address of the top table: what the processor's nested-root register takes.</summary>
    public ulong Hva { get; }

    /// <summary>Obsolete: no vCPU enters with it, no fault installs into it.</summary>
    public bool Invalid
    {
        get => Volatile.Read(ref _invalid) != 0;
        internal set => Volatile.Write(ref _invalid, value ? 1 : 0);
    }

    /// <summary>Takes a reference unless the count has reached zero.</summary>
    internal bool TryGet()
    {
        while (true)
        {
            int n = Volatile.Read(ref References);
            if (n == 0)
                return false;
            if (Interlocked.CompareExchange(ref References, n + 1, n) == n)
                return true;
        }
    }

    // SAFETY: runs after a grace period with no reference left.
    protected override unsafe void Reclaim() => _allocator.Free(Page);

    public override string ToString() =>
        $"root 0x{Hva:x} level {Role.Level} as {Role.AsId} refs {References}{(Invalid ? " invalid" : "")}{(Zapped ? " zapped" : "")}";
}
