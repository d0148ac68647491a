using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Cpu;

namespace Ring3.Kvm;

/// <summary>
/// The state-save area of system management mode: 512 bytes at SMBASE + 0xFE00. Processors with long mode use the AMD64 map (SPEC: APM volume 2, "SMRAM
/// State-Save Area"), others the P6 map, as KVM does. Fields are named by their offset from SMBASE, the way the manuals list them.
/// </summary>
/// <remarks>SAFETY: <see cref="At{T}"/> is called with constants and indices inside the area.</remarks>
internal struct SaveState
{
    public const int Size = 512, Start = 0xfe00;
    /// <summary>Revision identifiers: SMBASE relocation, and in the low half the map.</summary>
    public const uint Revision64 = 0x0002_0064, Revision32 = 0x0002_0000;

    private unsafe fixed byte _bytes[Size];

    /// <summary>The field at an offset from SMBASE.</summary>
    [UnscopedRef]
    public unsafe ref T At<T>(int offset) where T : unmanaged
    {
        System.Diagnostics.Debug.Assert(offset >= Start && offset + sizeof(T) <= Start + Size);
        return ref Unsafe.As<byte, T>(ref _bytes[offset - Start]);
    }

    // PendingDebug: in room that the manuals reserve, as KVM's InterruptShadow is.
    // An SMI comes before the debug traps of its boundary, which wait here for RSM.

    /// <summary>64-bit map.</summary>
    public static class Map64
    {
        public const int Es = 0xfe00, Cs = 0xfe10, Ss = 0xfe20, Ds = 0xfe30, Fs = 0xfe40, Gs = 0xfe50, Gdtr = 0xfe60, Ldtr = 0xfe70, Idtr = 0xfe80, Tr = 0xfe90;
        public const int InterruptShadow = 0xfecb, PendingDebug = 0xfece, Efer = 0xfed0, Revision = 0xfefc, Smbase = 0xff00, Cr4 = 0xff48, Cr3 = 0xff50,
            Cr0 = 0xff58, Dr7 = 0xff60, Dr6 = 0xff68, Rflags = 0xff70, Rip = 0xff78;
        /// <summary>R15 first, RAX last.</summary>
        public const int Gpr15 = 0xff80;
    }

    /// <summary>32-bit map. Descriptor parts are attributes, limit, base.</summary>
    public static class Map32
    {
        public const int Smbase = 0xfef8, Revision = 0xfefc, Cr4 = 0xff14, InterruptShadow = 0xff1a, PendingDebug = 0xff1c, Ds = 0xff2c, Fs = 0xff38,
            Gs = 0xff44, Idtr = 0xff50, Tr = 0xff5c, Gdtr = 0xff6c, Ldtr = 0xff78, Es = 0xff84, Cs = 0xff90, Ss = 0xff9c;
        public const int EsSelector = 0xffa8, CsSelector = 0xffac, SsSelector = 0xffb0, DsSelector = 0xffb4, FsSelector = 0xffb8, GsSelector = 0xffbc,
            LdtrSelector = 0xffc0, TrSelector = 0xffc4;
        /// <summary>EAX first, EDI last.</summary>
        public const int Eax = 0xffd0;
        public const int Dr7 = 0xffc8, Dr6 = 0xffcc, Eip = 0xfff0, Eflags = 0xfff4, Cr3 = 0xfff8, Cr0 = 0xfffc;
    }

    private const uint AttributeBits = 0xf0ff;

    /// <summary>Attributes as a descriptor has them; an unusable segment is stored as not present.</summary>
    private static uint Attributes(in Segment s) => (s.Access & Segment.Unusable) != 0 ? s.Access & AttributeBits & ~Segment.P : s.Access & AttributeBits;

    private static uint Access(uint attributes) => attributes & AttributeBits | ((attributes & Segment.P) == 0 ? Segment.Unusable : 0);

    public void Store64(int offset, in Segment s)
    {
        At<ushort>(offset) = s.Selector;
        At<ushort>(offset + 2) = (ushort)Attributes(s);
        At<uint>(offset + 4) = s.Limit;
        At<ulong>(offset + 8) = s.Base;
    }

    public Segment Load64(int offset) => new()
    {
        Selector = At<ushort>(offset), Access = Access(At<ushort>(offset + 2)), Limit = At<uint>(offset + 4), Base = At<ulong>(offset + 8),
    };

    public void Store64(int offset, in TableRegister t)
    {
        At<uint>(offset + 4) = t.Limit;
        At<ulong>(offset + 8) = t.Base;
    }

    public TableRegister LoadTable64(int offset) => new() { Limit = (ushort)At<uint>(offset + 4), Base = At<ulong>(offset + 8) };

    public void Store32(int offset, int selector, in Segment s)
    {
        At<uint>(selector) = s.Selector;
        At<uint>(offset) = Attributes(s) << 8;
        At<uint>(offset + 4) = s.Limit;
        At<uint>(offset + 8) = (uint)s.Base;
    }

    public Segment Load32(int offset, int selector) => new()
    {
        Selector = (ushort)At<uint>(selector), Access = Access(At<uint>(offset) >> 8), Limit = At<uint>(offset + 4), Base = At<uint>(offset + 8),
    };

    public void Store32(int offset, in TableRegister t)
    {
        At<uint>(offset + 4) = t.Limit;
        At<uint>(offset + 8) = (uint)t.Base;
    }

    public TableRegister LoadTable32(int offset) => new() { Limit = (ushort)At<uint>(offset + 4), Base = At<uint>(offset + 8) };

    [UnscopedRef]
    public unsafe Span<byte> Bytes => MemoryMarshal.CreateSpan(ref _bytes[0], Size);
}
