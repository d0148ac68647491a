using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>The vector and x87 state for the owner of a processor that is outside the guest, in the layouts of KVM_GET_XSAVE and of FXSAVE.</summary>
public static unsafe class XsaveImage
{
    /// <summary>Bytes of the standard-format image with x87, SSE and AVX state: CPUID leaf 0xD with XCR0 = 7.</summary>
    public const int Size = StateImage.Size;
    /// <summary>Offset and size of the AVX component, also in the compacted format.</summary>
    public const int AvxOffset = StateImage.AvxOffset, AvxSize = StateImage.AvxSize;
    /// <summary>Components that the processor implements.</summary>
    public const ulong Components = StateImage.AllComponents;

    /// <summary>
    /// Writes the state of <paramref name="c"/>. <paramref name="area"/>: at least <see cref="Size"/> bytes; bytes behind the image are left alone.
    /// </summary>
    public static void Store(CpuState* c, Span<byte> area, bool compacted = false)
    {
        if (area.Length < Size)
            throw new ArgumentException("the area is smaller than the XSAVE image", nameof(area));
        area[..Size].Clear();
        // SAFETY: <c>area</c> is at least as long as the compacted image, which was checked.
        fixed (byte* image = area)
        {
            StoreLegacy(c, image);
            StateImage.StoreAvx(c, image, 16);
            *(ulong*)(image + StateImage.StateBvOffset) = StateImage.InUse(c) & StateImage.AllComponents;
            if (compacted)
                *(ulong*)(image + StateImage.CompBvOffset) = StateImage.AllComponents | StateImage.Compacted;
        }
    }

    /// <summary>Replaces the state. False (state unchanged) when the header names unknown components or MXCSR has reserved bits, as XRSTOR's #GP.</summary>
    public static bool Load(CpuState* c, ReadOnlySpan<byte> area)
    {
        if (area.Length < Size)
            return false;
        // SAFETY: the header and MXCSR lie in the part whose length was checked first.
        fixed (byte* image = area)
        {
            ulong stateBv = *(ulong*)(image + StateImage.StateBvOffset), compBv = *(ulong*)(image + StateImage.CompBvOffset) & ~StateImage.Compacted;
            uint mxcsr = *(uint*)(image + StateImage.MxcsrOffset);
            if (((stateBv | compBv) & ~StateImage.AllComponents) != 0 || (mxcsr & ~MxcsrUnit.Common) != 0)
                return false;
            VectorUnit.Park(c);
            if ((stateBv & Xcr0.X87) != 0)
                StateImage.LoadX87(c, image, wide: true);
            else
                StateImage.InitializeX87(c);
            if ((stateBv & (Xcr0.Sse | Xcr0.Avx)) != 0)
                c->Mxcsr = mxcsr;
            else
                c->Mxcsr = MxcsrUnit.Default;
            if ((stateBv & Xcr0.Sse) != 0)
                StateImage.LoadXmm(c, image, 16);
            else
                StateImage.InitializeXmm(c, 16);
            if ((stateBv & Xcr0.Avx) != 0)
                StateImage.LoadAvx(c, image, 16);
            else
                StateImage.InitializeAvx(c, 16);
            return true;
        }
    }

    /// <summary>Writes the 512-byte FXSAVE64 image, from which KVM_GET_FPU is filled.</summary>
    public static void StoreFxsave(CpuState* c, Span<byte> area)
    {
        if (area.Length < StateImage.LegacySize)
            throw new ArgumentException("the area is smaller than the FXSAVE image", nameof(area));
        area[..StateImage.LegacySize].Clear();
        // SAFETY: the legacy image is 512 bytes, and <c>area</c> at least as many.
        fixed (byte* image = area)
            StoreLegacy(c, image);
    }

    /// <summary>Replaces x87 and SSE state, not the upper halves. False (state unchanged) when MXCSR has reserved bits.</summary>
    public static bool LoadFxsave(CpuState* c, ReadOnlySpan<byte> area)
    {
        if (area.Length < StateImage.LegacySize)
            return false;
        // SAFETY: 512 bytes were asked for before MXCSR is read from inside them.
        fixed (byte* image = area)
        {
            uint mxcsr = *(uint*)(image + StateImage.MxcsrOffset);
            if ((mxcsr & ~MxcsrUnit.Common) != 0)
                return false;
            VectorUnit.Park(c);
            c->Mxcsr = mxcsr;
            StateImage.LoadX87(c, image, wide: true);
            StateImage.LoadXmm(c, image, 16);
            return true;
        }
    }

    private static void StoreLegacy(CpuState* c, byte* image)
    {
        VectorUnit.Park(c);
        StateImage.StoreX87(c, image, wide: true);
        StateImage.StoreMxcsr(c, image, MxcsrUnit.Common);
        StateImage.StoreXmm(c, image, 16);
    }
}
