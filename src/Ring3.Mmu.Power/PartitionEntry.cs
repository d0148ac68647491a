namespace Ring3.Mmu.Power;

/// <summary>
/// First doubleword of a partition-table entry: how a VM's guest real addresses are translated, and by which table. One word, so whoever reads it has both or
/// neither. SPEC: Power ISA v3.0 book III, "Partition Table".
/// </summary>
/// <remarks>
/// Radix: bit 0 HR = 1, bits 1-2 and 56-58 RTS (log2 of the tree's size minus 31), bits 4-55 RPDB root, bits 59-63 RPDS its index bits. Hash: HR = 0, bits 4-45
/// HTABORG, bits 59-63 HTABSIZE (log2 of its bytes minus 18).
/// Here in the host's byte order.
/// </remarks>
internal readonly record struct PartitionEntry(ulong Value)
{
    private const ulong HostRadix = 1UL << 63, Base = 0x0fff_ffff_ffff_ff00, Size = 0x1f;
    private const ulong RadixTreeSize = RadixFormat.AddressBits - 31;
    /// <summary>HTABORG is a multiple of this.</summary>
    public const int MinHashOrder = 18;

    public static PartitionEntry Radix(ulong root) =>
        new(HostRadix | RadixTreeSize >> 3 << 61 | (RadixTreeSize & 7) << 5 | root | (uint)RadixFormat.IndexBits(RadixFormat.RootLevel));

    public static PartitionEntry Hash(ulong table, int order) => new(table | (uint)(order - MinHashOrder));

    public bool IsRadix => (Value & HostRadix) != 0;

    /// <summary>Host address of the root, or of the hashed table.</summary>
    public ulong Table => IsRadix ? Value & Base : Value & Base & ~((1UL << MinHashOrder) - 1);

    /// <summary>Index bits of the root, or log2 of the hashed table's bytes.</summary>
    public int SizeField => (int)(Value & Size) + (IsRadix ? 0 : MinHashOrder);
}
