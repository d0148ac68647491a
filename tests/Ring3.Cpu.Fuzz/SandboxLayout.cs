using System.Runtime.InteropServices;

namespace Ring3.Differential;

/// <summary>
/// The sandbox that the native process and the guest share: the same linear addresses on both sides, so that results match bit for bit.
/// The guest's linear pages around code and data are unmapped. Same numbers as tests/native/oracle.h.
/// </summary>
internal static class Sandbox
{
    internal const ulong CodeAddress = 0x5001_0000;
    internal const int CodeSize = 0x20000;
    /// <summary>Two writable pages, then one read-only page; not executable.</summary>
    internal const ulong DataAddress = 0x5010_0000;
    internal const int DataWritable = 0x2000, DataSize = 0x3000;

    /// <summary>
    /// 16-bit cases: base of the data and stack segment (limit 0xffff); offset 0x4000 is the first data page. The code segments start at CodeAddress
    /// and 64 KiB behind it.
    /// </summary>
    internal const ulong WordDataBase = DataAddress - 0x4000;
    internal const uint WordDataSelector = 0x17, WordCodeSelector0 = 0x07, WordCodeSelector1 = 0x0f;

    /// <summary>
    /// Cases of one batch; each has its own code slot, filled with INT3 around the instruction so that near branches land on something known.
    /// </summary>
    internal const int MaxCases = 256;
    internal const int SlotSize = CodeSize / MaxCases;
    internal const int MaxDiffs = 16, Line = 64, MaxPatch = 1024;

    /// <summary>Generated accesses stay in this window, or are non-canonical.</summary>
    internal const ulong WindowStart = 0x5000_0000, WindowEnd = 0x5020_0000;
}

/// <summary>Header of the shared file.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct SharedHeader
{
    internal ulong Magic;
    internal uint Count, Done;
    internal ulong ExitAddress, Quirks;
    /// <summary>A fault of the child's own code, which ended it: where, CR2 and vector.</summary>
    internal ulong OwnRip, OwnAddress;
    internal uint OwnVector, Reserved;
}

/// <summary>State before the instruction.</summary>
[StructLayout(LayoutKind.Sequential, Size = 2048)]
internal unsafe struct CaseInput
{
    internal fixed ulong Gpr[16];
    internal ulong Rip, Rflags, FsBase, GsBase, NextRip;
    internal uint PatchOffset, PatchLength;
    /// <summary>64; 32: compatibility mode; 16: 16-bit segments. The code selector is for 32 and 16.</summary>
    internal uint Bits, CodeSelector;
    /// <summary>Nonzero: not for this host; only <see cref="CaseOutput.SkippedVector"/> is answered.</summary>
    internal uint Skip;
    /// <summary>Nonzero: one instruction, by KVM's single step (tests/native/kvm_oracle.c alone).</summary>
    internal uint Step;
    /// <summary>XSAVE area in the standard format: x87, SSE, AVX.</summary>
    internal fixed byte Xsave[XsaveArea.Size];
    internal fixed byte Patch[Sandbox.MaxPatch];
}

/// <summary>State after the instruction.</summary>
[StructLayout(LayoutKind.Sequential, Size = 2112)]
internal unsafe struct CaseOutput
{
    internal fixed ulong Gpr[16];
    internal ulong Rip, Rflags, FsBase, GsBase;
    internal uint Vector, ErrorCode;
    internal ulong Cr2;
    internal uint Diffs, Signal;
    internal ulong Reserved;
    internal fixed byte Xsave[XsaveArea.Size];
    internal fixed uint DiffLine[Sandbox.MaxDiffs];
    internal fixed byte DiffBytes[Sandbox.MaxDiffs * Sandbox.Line];

    internal const uint NoVector = 0xffff_ffff, TimeoutVector = 254, SystemCallVector = 253, SkippedVector = 252, NotEnteredVector = 251;
}

/// <summary>Offsets in an XSAVE area. SPEC: SDM volume 1, "XSAVE Area".</summary>
internal static class XsaveArea
{
    internal const int Size = 832, Fcw = 0, Fsw = 2, Ftw = 4, Fop = 6, Fip = 8, Fdp = 16, Mxcsr = 24, St = 32, Xmm = 160, Header = 512, YmmHigh = 576;
}

/// <summary>Offsets in the shared file.</summary>
internal static class SharedFile
{
    internal const int Code = 4096, Data = Code + Sandbox.CodeSize, Inputs = Data + Sandbox.DataSize + 4096;
    internal const int Outputs = Inputs + Sandbox.MaxCases * 2048, Size = Outputs + Sandbox.MaxCases * 2112;
    internal const ulong Magic = 0x33_6769_6e52;
}
