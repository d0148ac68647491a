namespace Ring3.Mmu;

/// <summary>
/// Format of a set of tables, as a policy: implemented by empty structs, so that code that is generic over it is compiled for each as if written for it.
/// </summary>
/// <remarks>
/// Entries are 64-bit values as they lie in memory; a format whose processor reads them in another byte order has its masks in that order, so that tests and
/// compare-exchanges need no conversion.
/// Levels count from 1; a gfn counts pages of level 1.
/// </remarks>
internal interface ITableFormat
{
    /// <summary>Level of the top table.</summary>
    static abstract int RootLevel { get; }

    /// <summary>log2 of the number of entries of a table of a level.</summary>
    static abstract int IndexBits(int level);

    /// <summary>log2 of the pages of level 1 that an entry of a level covers.</summary>
    static abstract int PagesShift(int level);

    /// <summary>Maps memory or points to a table.</summary>
    static abstract bool IsPresent(ulong entry);

    /// <summary>A present entry maps memory.</summary>
    static abstract bool IsLeaf(ulong entry, int level);

    /// <summary>Host address of the table that a present entry points to.</summary>
    static abstract ulong TableAddress(ulong entry);

    /// <summary>The Accessed bit of a leaf.</summary>
    static abstract ulong Accessed { get; }

    /// <summary>The Dirty bit of a leaf.</summary>
    static abstract ulong Dirty { get; }

    /// <summary>Bits that are set in an entry of level 1 if, and only if, it maps a page that has been accessed.</summary>
    static abstract ulong YoungLeaf { get; }

    /// <summary>The processor sets <see cref="Accessed"/> in every entry it passes on its way to a leaf, not only in the leaf.</summary>
    static abstract bool TablesHaveAccessed { get; }
}
