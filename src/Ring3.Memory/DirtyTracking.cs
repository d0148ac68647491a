namespace Ring3.Memory;

/// <summary>How the writes of a guest to a dirty-logged slot are found. All are exact: they differ in what a write, a harvest and a removed mapping
/// cost.</summary>
public enum DirtyTracking
{
    /// <summary><see cref="DirtyLog"/>: the fastest for the guest, whatever it writes.</summary>
    Automatic,
    /// <summary>The processor sets D in the leaf and appends the page to its log (page-modification logging). A write costs the guest a table walk, a harvest
    /// what was written, a removed mapping nothing.</summary>
    DirtyLog,
    /// <summary>The processor sets D in the leaf. A write costs the guest a table walk, a harvest a look at every leaf of the slot, and who removes a leaf has
    /// to keep its D. Not for dirty rings: they get <see cref="DirtyLog"/>.</summary>
    DirtyScan,
    /// <summary>Pages are write-protected. The first write to each leaves the guest, a harvest costs what was written, a removed mapping nothing.</summary>
    WriteProtect,
}
