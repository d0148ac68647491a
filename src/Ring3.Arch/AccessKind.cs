namespace Ring3.Arch;

/// <summary>Kind of a memory access: what a processor asks of translation, and what a nested fault reports to who keeps the nested tables.</summary>
[Flags]
public enum AccessKind : uint
{
    Read = 1, Write = 2, Execute = 4,
    /// <summary>Performed with user privilege (for page-table checks).</summary>
    User = 8,
    /// <summary>Nested fault: the access was to a guest page table (walk), not to the final page.</summary>
    GuestPageWalk = 16,
    /// <summary>Nested fault: the entry was present but lacked the permission.</summary>
    Present = 32,
    /// <summary>A supervisor access that the processor makes by itself (descriptor tables, TSS, IDT): RFLAGS.AC does not lift SMAP. Never reported.</summary>
    Implicit = 0x100,
}
