using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>An indirect branch target that translated code finds itself: linear address, context, and the host's.</summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
internal struct TranslatedJump
{
    public ulong Linear, Context;
    public nint Code;
}

/// <summary>
/// The memory of one processor that translated code addresses from one register: the state, slots, the level-1 TLB, the translated jumps, at the same
/// distances in every processor of the process.
/// </summary>
/// <remarks>SAFETY: one mapping, whose parts do not overlap.</remarks>
internal static unsafe class ProcessorMemory
{
    public const int JumpEntries = 32768, JumpShift = 5;
    public const uint JumpFactor = 0x9e37_79b1;

    /// <summary>Words in front of the TLB that a trace keeps something in: so near that a byte's displacement reaches them.</summary>
    public const int Slots = 16;

    /// <summary>Displacement of a slot from the TLB.</summary>
    public static int Slot(int n) => (n - Slots) * sizeof(ulong);

    /// <summary>Bytes between the state and the TLB, and between the TLB and the jumps.</summary>
    public static int StateBytes => Pages(sizeof(CpuState) + Slots * sizeof(ulong));
    public static int TlbBytes => Pages((int)Tlb.Bytes);

    private static nuint Bytes => (nuint)(StateBytes + TlbBytes + JumpEntries * sizeof(TranslatedJump));

    /// <summary>Index of the entry for a target in the context that the salt stands for. Emitted code computes the same.</summary>
    public static uint JumpIndex(ulong target, ulong salt) => ((uint)target * JumpFactor ^ (uint)salt) >> JumpShift & (JumpEntries - 1);

    public static ulong JumpSalt(ulong context) => (uint)context * JumpFactor;

    public static CpuState* Map() => (CpuState*)HostMemory.Map(Bytes);

    public static void Unmap(CpuState* state) => HostMemory.Unmap(state, Bytes);

    /// <summary>Level 1 of the TLB, <see cref="Tlb.Level1Entries"/> entries.</summary>
    public static TlbEntry* Level1Of(CpuState* state) => (TlbEntry*)TlbOf(state);

    public static byte* TlbOf(CpuState* state) => (byte*)state + StateBytes;

    public static TranslatedJump* JumpsOf(CpuState* state) => (TranslatedJump*)(TlbOf(state) + TlbBytes);

    private static int Pages(int bytes) => (bytes + 4095) & ~4095;
}
