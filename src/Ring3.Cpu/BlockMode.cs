namespace Ring3.Cpu;

/// <summary>
/// Decode mode: how bytes become instructions. Part of a block's key. <c>CpuState.BlockMode</c> holds one of the three sizes; the decoder adds flags.
/// </summary>
public static class BlockMode
{
    /// <summary>16-bit code segment, real mode and virtual-8086 mode.</summary>
    public const uint Code16 = 0;
    /// <summary>32-bit code segment, also in compatibility mode.</summary>
    public const uint Code32 = 1;
    /// <summary>64-bit mode.</summary>
    public const uint Code64 = 2;
    /// <summary>Mask of the three sizes.</summary>
    public const uint SizeMask = 3;
    /// <summary>
    /// With <see cref="Code32"/>: CS, SS, DS and ES are writable or code segments of base 0 and limit 4 GiB, so that an offset is a linear address.
    /// </summary>
    public const uint Flat = 4;
    /// <summary>Block of exactly one instruction: single step, interrupt shadow, breakpoints.</summary>
    public const uint Single = 8;

    /// <summary>Whether blocks of the mode may become hot.</summary>
    public static bool IsTranslatable(uint mode) => (mode & Single) == 0;

    /// <summary>Whether RIP and the offsets of the flat segments are linear addresses without checks, in blocks of any length.</summary>
    public static bool IsFlat(uint mode) => mode is Code64 or (Code32 | Flat);
}
