global using TdpIterator = Ring3.Mmu.TdpIterator<Ring3.Mmu.EptFormat>;
using System.Diagnostics;
using System.Runtime.CompilerServices;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// Pre-order walk over the entries of one root that intersect a range of gfns. Lock-free: the caller is in an RCU section; every step reads the entry again.
/// After a yield (the caller left and re-entered the section) the walk restarts at the top for the gfn it had reached: call <see cref="Restart"/>.
/// </summary>
/// <typeparam name="TFormat">Format of the tables; gfns count its smallest pages. <c>TdpIterator</c> without an argument is the processor's own.</typeparam>
/// <remarks>SAFETY: (whole type) tables reached from the root are not freed while the caller stays in its RCU section.</remarks>
internal ref struct TdpIterator<TFormat> where TFormat : struct, ITableFormat
{
    private unsafe fixed ulong _tables[6];
    private readonly ulong _end;
    private readonly int _minLevel;
    private readonly int _rootLevel;
    private ulong _next;
    private ulong _yieldedGfn;
    private bool _descend, _started;

    /// <summary>Address of the current entry.</summary>
    public unsafe ulong* Sptep;
    /// <summary>Value read at the last step, or by <see cref="Refresh"/>.</summary>
    public ulong OldSpte;
    /// <summary>First gfn that the entry covers (may be below the range's start).</summary>
    public ulong Gfn;
    public int Level;

    public TdpIterator(TdpRoot root, ulong start, ulong end, int minLevel = PgLevel.Level4K) : this(root.Hva, root.Role.Level, start, end, minLevel) { }

    /// <param name="table">Host address of the top table.</param>
    /// <param name="minLevel">The walk goes down no further.</param>
    public unsafe TdpIterator(ulong table, int rootLevel, ulong start, ulong end, int minLevel = PgLevel.Level4K)
    {
        Rcu.AssertInSection();
        _rootLevel = rootLevel;
        _minLevel = minLevel;
        _next = start;
        _yieldedGfn = start;
        _end = Math.Min(end, 1UL << TFormat.PagesShift(rootLevel) + TFormat.IndexBits(rootLevel));
        _tables[rootLevel] = table;
        Level = rootLevel;
    }

    /// <summary>The record of the table that holds the current entry. Of tables that <see cref="TablePageAllocator"/> has made.</summary>
    public readonly unsafe TablePage* Page => TablePage.Of(Sptep);

    /// <summary>Last gfn covered, plus one.</summary>
    public readonly ulong EndGfn => Gfn + (1UL << TFormat.PagesShift(Level));

    public readonly bool IsPresentLeaf => TFormat.IsPresent(OldSpte) && TFormat.IsLeaf(OldSpte, Level);
    public readonly bool IsTable => TFormat.IsPresent(OldSpte) && !TFormat.IsLeaf(OldSpte, Level);

    /// <summary>Goes to the next entry: down if the current one points to a table, else right, else up.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool MoveNext()
    {
        if (!_started)
        {
            _started = true;
            return _next < _end && Load();
        }
        if (_descend && TryDown())
            return true;
        return Right();
    }

    /// <summary>Reads the current entry again, after a lost compare-exchange.</summary>
    public unsafe void Refresh() => OldSpte = Volatile.Read(ref *Sptep);

    /// <summary>The walk has passed the gfn at which it yielded last. Only then may it yield again: otherwise two yielding walks could keep each other at the
    /// same place for ever.</summary>
    public readonly bool MayYield => _next != _yieldedGfn;

    /// <summary>Starts again from the root at the gfn that the walk has reached. For use after the RCU section has been left.</summary>
    public void Restart()
    {
        Rcu.AssertInSection();
        _yieldedGfn = _next;
        Level = _rootLevel;
        _started = false;
        _descend = false;
    }

    /// <summary>Do not go down from the current entry.</summary>
    public void SkipChildren() => _descend = false;

    private unsafe bool TryDown()
    {
        if (Level <= _minLevel)
            return false;
        // The entry may have changed since it was looked at: what it points to now is what counts.
        OldSpte = Volatile.Read(ref *Sptep);
        if (!IsTable)
            return false;
        _tables[Level - 1] = TFormat.TableAddress(OldSpte);
        Level--;
        return Load();
    }

    private bool Right()
    {
        ulong next = EndGfn;
        if (next >= _end)
            return false;
        _next = next;
        while ((next & ((1UL << TFormat.PagesShift(Level) + TFormat.IndexBits(Level)) - 1)) == 0)
        {
            Level++;
            if (Level > _rootLevel)
                return false;
        }
        return Load();
    }

    private unsafe bool Load()
    {
        Debug.Assert(Level >= PgLevel.Level4K && Level <= _rootLevel);
        int shift = TFormat.PagesShift(Level);
        ulong index = _next >> shift;
        Sptep = (ulong*)_tables[Level] + (index & ((1UL << TFormat.IndexBits(Level)) - 1));
        Gfn = index << shift;
        OldSpte = Volatile.Read(ref *Sptep);
        _descend = true;
        return true;
    }
}
