using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// The FXSAVE and XSAVE images of the parked state. SPEC: SDM volume 1, "Managing State Using the XSAVE Feature Set".
/// AVX state has the same offset in the standard and in the compacted format, because nothing precedes it; PKRU follows it in the compacted one, and has the
/// model's place in the standard one.
/// </summary>
/// <remarks>SAFETY: images are at least <see cref="Size"/> bytes, or <see cref="LegacySize"/> for the legacy part.</remarks>
internal static unsafe class StateImage
{
    public const int LegacySize = 512, HeaderSize = 64, AvxOffset = LegacySize + HeaderSize, AvxSize = 256, PkruSize = 8, Size = AvxOffset + AvxSize;
    public const int MxcsrOffset = 24, RegistersOffset = 32, XmmOffset = 160, XmmEnd = XmmOffset + 256, StateBvOffset = LegacySize,
        CompBvOffset = LegacySize + 8;
    public const ulong Compacted = 1UL << 63, AllComponents = Xcr0.X87 | Xcr0.Sse | Xcr0.Avx;

    /// <summary>Bytes 0-23 and 32-159.</summary>
    public static void StoreX87(CpuState* c, byte* image, bool wide)
    {
        *(ushort*)image = c->Fcw;
        *(ushort*)(image + 2) = c->Fsw;
        image[4] = c->Ftw;
        image[5] = 0;
        *(ushort*)(image + 6) = c->Fop;
        *(ulong*)(image + 8) = wide ? c->Fip : (uint)c->Fip | (ulong)c->FipSelector << 32;
        *(ulong*)(image + 16) = wide ? c->Fdp : (uint)c->Fdp | (ulong)c->FdpSelector << 32;
        int top = X87Status.TopOf(c->Fsw);
        for (int i = 0; i < 8; i++)
        {
            byte* from = c->X87 + 16 * (top + i & 7), to = image + RegistersOffset + 16 * i;
            *(ulong*)to = *(ulong*)from;
            *(ulong*)(to + 8) = *(ushort*)(from + 8);
        }
    }

    public static void LoadX87(CpuState* c, byte* image, bool wide)
    {
        c->Fcw = (ushort)(*(ushort*)image & 0x1f3f | 0x40);
        c->Fsw = X87Status.WithSummary(*(ushort*)(image + 2), c->Fcw);
        c->Ftw = image[4];
        c->Fop = (ushort)(*(ushort*)(image + 6) & 0x7ff);
        ulong fip = *(ulong*)(image + 8), fdp = *(ulong*)(image + 16);
        c->Fip = wide ? fip : (uint)fip;
        c->Fdp = wide ? fdp : (uint)fdp;
        c->FipSelector = wide ? (ushort)0 : (ushort)(fip >> 32);
        c->FdpSelector = wide ? (ushort)0 : (ushort)(fdp >> 32);
        int top = X87Status.TopOf(c->Fsw);
        for (int i = 0; i < 8; i++)
        {
            byte* to = c->X87 + 16 * (top + i & 7), from = image + RegistersOffset + 16 * i;
            *(ulong*)to = *(ulong*)from;
            *(ulong*)(to + 8) = *(ushort*)(from + 8);
        }
    }

    public static void StoreMxcsr(CpuState* c, byte* image, uint mask)
    {
        *(uint*)(image + MxcsrOffset) = c->Mxcsr;
        *(uint*)(image + MxcsrOffset + 4) = mask;
    }

    /// <summary>Low halves of the vector registers: bytes 160-415. <paramref name="count"/> registers (8 outside 64-bit mode).</summary>
    public static void StoreXmm(CpuState* c, byte* image, int count)
    {
        for (int i = 0; i < count; i++)
            Unsafe.CopyBlock(image + XmmOffset + 16 * i, c->Ymm + 32 * i, 16);
    }

    public static void LoadXmm(CpuState* c, byte* image, int count)
    {
        for (int i = 0; i < count; i++)
            Unsafe.CopyBlock(c->Ymm + 32 * i, image + XmmOffset + 16 * i, 16);
    }

    public static void StoreAvx(CpuState* c, byte* image, int count)
    {
        for (int i = 0; i < count; i++)
            Unsafe.CopyBlock(image + AvxOffset + 16 * i, c->Ymm + 32 * i + 16, 16);
    }

    public static void LoadAvx(CpuState* c, byte* image, int count)
    {
        for (int i = 0; i < count; i++)
            Unsafe.CopyBlock(c->Ymm + 32 * i + 16, image + AvxOffset + 16 * i, 16);
    }

    public static void InitializeXmm(CpuState* c, int count)
    {
        for (int i = 0; i < count; i++)
            Unsafe.InitBlock(c->Ymm + 32 * i, 0, 16);
    }

    public static void InitializeAvx(CpuState* c, int count)
    {
        for (int i = 0; i < count; i++)
            Unsafe.InitBlock(c->Ymm + 32 * i + 16, 0, 16);
    }

    public static void InitializeX87(CpuState* c)
    {
        X87Unit.Initialize(c);
        Unsafe.InitBlock(c->X87, 0, 128);
    }

    /// <summary>Offset of PKRU in the compacted format of an image with these components.</summary>
    public static int CompactedPkru(ulong components) => (components & Xcr0.Avx) != 0 ? Size : AvxOffset;

    /// <summary>Components that are not in their initial configuration (XINUSE). x87 and SSE always count as used, which the ISA allows.</summary>
    public static ulong InUse(CpuState* c)
    {
        ulong upper = 0;
        for (int i = 0; i < 16; i++)
            upper |= *(ulong*)(c->Ymm + 32 * i + 16) | *(ulong*)(c->Ymm + 32 * i + 24);
        return Xcr0.X87 | Xcr0.Sse | (upper != 0 ? Xcr0.Avx : 0) | (c->Pkru != 0 ? Xcr0.Pkru : 0);
    }
}
