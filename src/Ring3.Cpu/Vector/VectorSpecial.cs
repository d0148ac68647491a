using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Instructions whose memory accesses depend on a mask or that touch whole registers files: EMMS, VZEROUPPER, MASKMOV, VMASKMOV, gathers.</summary>
/// <remarks>SAFETY: elements are accessed one at a time through the memory interface; register pointers are places in the state.</remarks>
internal static unsafe class VectorSpecial
{
    internal static void Register()
    {
        VectorHandlers.SetSpecial(Code.Emms, &Emms);
        VectorHandlers.SetSpecial(Code.VEX_Vzeroupper, &ZeroUpper);
        VectorHandlers.SetSpecial(Code.VEX_Vzeroall, &ZeroAll);
        VectorHandlers.SetSpecial(Code.Maskmovq_rDI_mm_mm, &MaskmovMmx);
        VectorHandlers.SetSpecial(Code.Maskmovdqu_rDI_xmm_xmm, &Maskmov<SseGate>);
        VectorHandlers.SetSpecial(Code.VEX_Vmaskmovdqu_rDI_xmm_xmm, &Maskmov<AvxGate>);

        Masked(Code.VEX_Vmaskmovps_xmm_xmm_m128, Code.VEX_Vmaskmovps_m128_xmm_xmm, Code.VEX_Vmaskmovps_ymm_ymm_m256, Code.VEX_Vmaskmovps_m256_ymm_ymm, false);
        Masked(Code.VEX_Vpmaskmovd_xmm_xmm_m128, Code.VEX_Vpmaskmovd_m128_xmm_xmm, Code.VEX_Vpmaskmovd_ymm_ymm_m256, Code.VEX_Vpmaskmovd_m256_ymm_ymm, false);
        Masked(Code.VEX_Vmaskmovpd_xmm_xmm_m128, Code.VEX_Vmaskmovpd_m128_xmm_xmm, Code.VEX_Vmaskmovpd_ymm_ymm_m256, Code.VEX_Vmaskmovpd_m256_ymm_ymm, true);
        Masked(Code.VEX_Vpmaskmovq_xmm_xmm_m128, Code.VEX_Vpmaskmovq_m128_xmm_xmm, Code.VEX_Vpmaskmovq_ymm_ymm_m256, Code.VEX_Vpmaskmovq_m256_ymm_ymm, true);

        VectorHandlers.SetSpecial(Code.VEX_Vpgatherdd_xmm_vm32x_xmm, &Gather<int, uint, L4>);
        VectorHandlers.SetSpecial(Code.VEX_Vpgatherdd_ymm_vm32y_ymm, &Gather<int, uint, L8>);
        VectorHandlers.SetSpecial(Code.VEX_Vpgatherdq_xmm_vm32x_xmm, &Gather<int, ulong, L2>);
        VectorHandlers.SetSpecial(Code.VEX_Vpgatherdq_ymm_vm32x_ymm, &Gather<int, ulong, L4>);
        VectorHandlers.SetSpecial(Code.VEX_Vpgatherqd_xmm_vm64x_xmm, &Gather<long, uint, L2>);
        VectorHandlers.SetSpecial(Code.VEX_Vpgatherqd_xmm_vm64y_xmm, &Gather<long, uint, L4>);
        VectorHandlers.SetSpecial(Code.VEX_Vpgatherqq_xmm_vm64x_xmm, &Gather<long, ulong, L2>);
        VectorHandlers.SetSpecial(Code.VEX_Vpgatherqq_ymm_vm64y_ymm, &Gather<long, ulong, L4>);
        VectorHandlers.SetSpecial(Code.VEX_Vgatherdps_xmm_vm32x_xmm, &Gather<int, uint, L4>);
        VectorHandlers.SetSpecial(Code.VEX_Vgatherdps_ymm_vm32y_ymm, &Gather<int, uint, L8>);
        VectorHandlers.SetSpecial(Code.VEX_Vgatherdpd_xmm_vm32x_xmm, &Gather<int, ulong, L2>);
        VectorHandlers.SetSpecial(Code.VEX_Vgatherdpd_ymm_vm32x_ymm, &Gather<int, ulong, L4>);
        VectorHandlers.SetSpecial(Code.VEX_Vgatherqps_xmm_vm64x_xmm, &Gather<long, uint, L2>);
        VectorHandlers.SetSpecial(Code.VEX_Vgatherqps_xmm_vm64y_xmm, &Gather<long, uint, L4>);
        VectorHandlers.SetSpecial(Code.VEX_Vgatherqpd_xmm_vm64x_xmm, &Gather<long, ulong, L2>);
        VectorHandlers.SetSpecial(Code.VEX_Vgatherqpd_ymm_vm64y_ymm, &Gather<long, ulong, L4>);
    }

    private static void Masked(Code load128, Code store128, Code load256, Code store256, bool wide)
    {
        VectorHandlers.SetSpecial(load128, wide ? &MaskedLoad<ulong, L2> : &MaskedLoad<uint, L4>);
        VectorHandlers.SetSpecial(load256, wide ? &MaskedLoad<ulong, L4> : &MaskedLoad<uint, L8>);
        VectorHandlers.SetSpecial(store128, wide ? &MaskedStore<ulong, L2> : &MaskedStore<uint, L4>);
        VectorHandlers.SetSpecial(store256, wide ? &MaskedStore<ulong, L4> : &MaskedStore<uint, L8>);
    }

    /// <summary>Number of elements as a type argument.</summary>
    private interface ICount { static abstract int Value { get; } }
    private readonly struct L2 : ICount { public static int Value => 2; }
    private readonly struct L4 : ICount { public static int Value => 4; }
    private readonly struct L8 : ICount { public static int Value => 8; }

    private static OpResult Emms(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!MmxGate.IsOpen(c) && MmxGate.Refuse(p, c) != OpResult.Next)
            return OpResult.Fault;
        c->Ftw = 0;
        c->Fsw &= unchecked((ushort)~X87Status.Top);
        return OpResult.Next;
    }

    private static OpResult ZeroUpper(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!AvxGate.IsOpen(c))
            return AvxGate.Refuse(p, c);
        StateImage.InitializeAvx(c, CpuMode.Is64(c) ? 16 : 8);
        return OpResult.Next;
    }

    private static OpResult ZeroAll(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!AvxGate.IsOpen(c))
            return AvxGate.Refuse(p, c);
        Unsafe.InitBlock(c->Ymm, 0, CpuMode.Is64(c) ? 512u : 256u);
        return OpResult.Next;
    }

    private static OpResult MaskmovMmx(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!MmxGate.IsOpen(c) && MmxGate.Refuse(p, c) != OpResult.Next)
            return OpResult.Fault;
        // The switch to MMX is not taken back by a fault of the store.
        c->Fsw &= unchecked((ushort)~X87Status.Top);
        c->Ftw = 0xff;
        return StoreBytes(p, c, op, c->X87 + 16 * op->Reg1, c->X87 + 16 * op->Reg2, 8);
    }

    private static OpResult Maskmov<TGate>(LogicalProcessor p, CpuState* c, Op* op) where TGate : struct, IVectorGate
        => TGate.IsOpen(c) ? StoreBytes(p, c, op, c->Ymm + 32 * op->Reg1, c->Ymm + 32 * op->Reg2, 16) : TGate.Refuse(p, c);

    /// <summary>
    /// Byte store at (E/R)DI under a mask of sign bits. The whole operand is checked before the first byte is written, masked bytes too, as processors do: by
    /// halves whose offsets wrap at the address size.
    /// </summary>
    private static OpResult StoreBytes(LogicalProcessor p, CpuState* c, Op* op, byte* data, byte* mask, int count)
    {
        ulong offset = c->Gpr[7] & Addressing.AddressMask(op->AddressSize);
        if (!Addressing.SegmentLinear(c, op->Seg, offset, count, AccessKind.Write, out _))
            return OpResult.Fault;
        bool fromAbove = p.Model.MaskedStoresFromAbove;
        for (int at = 0; at < count; at += 8)
        {
            ulong half = offset + (ulong)(fromAbove ? count - 8 - at : at);
            if (!ElementLinear(p, c, op, half, 8, AccessKind.Write, out ulong linear) || p.Access.WritePtr(c, linear, 8) == null)
                return OpResult.Fault;
        }
        return StoreElements(p, c, op, offset, data, mask, 1, count) ? OpResult.Next : OpResult.Fault;
    }

    private static OpResult MaskedStore<T, TCount>(LogicalProcessor p, CpuState* c, Op* op) where T : unmanaged where TCount : struct, ICount
    {
        if (!AvxGate.IsOpen(c))
            return AvxGate.Refuse(p, c);
        ulong offset = Addressing.EffectiveAddress(c, op);
        byte* mask = c->Ymm + 32 * op->Reg1;
        if (StoreElements(p, c, op, offset, c->Ymm + 32 * op->Reg2, mask, sizeof(T), TCount.Value))
            return OpResult.Next;
        if (c->ExitPending == 0 && c->PendingVector == Arch.Vector.PF && p.Model.MaskedStoresFromAbove)
            ReportLastByte(c, op, offset, mask, sizeof(T), TCount.Value);
        return OpResult.Fault;
    }

    /// <summary>CR2 of a page fault in the second page of a masked store whose first element begins in the first: the last byte of the last element.</summary>
    private static void ReportLastByte(CpuState* c, Op* op, ulong offset, byte* mask, int size, int count)
    {
        int first = 0, last = count - 1;
        while (!IsSet(mask, size, first))
            first++;
        while (!IsSet(mask, size, last))
            last--;
        ulong start = CpuState.SegmentAt(c, op->Seg)->Base;
        start = (c->BlockMode != BlockMode.Code64 || op->Seg >= SegmentIndex.FS ? start : 0) + (offset & Addressing.AddressMask(op->AddressSize));
        if (c->BlockMode != BlockMode.Code64)
            start = (uint)start;
        ulong end = start + (ulong)(size * (last + 1) - 1), page = c->PendingAddress & ~0xfffUL;
        if (page == (end & ~0xfffUL) && page != ((start + (ulong)(size * first)) & ~0xfffUL))
            c->PendingAddress = end;
    }

    private static bool IsSet(byte* mask, int size, int i) => (sbyte)mask[size * i + size - 1] < 0;

    /// <summary>
    /// Linear address of <paramref name="size"/> bytes of an operand, with the segment's checks for just these; offsets wrap at the address size.
    /// </summary>
    private static bool ElementLinear(LogicalProcessor p, CpuState* c, Op* op, ulong offset, int size, AccessKind access, out ulong linear)
        => Addressing.SegmentLinear(c, op->Seg, offset & Addressing.AddressMask(op->AddressSize), size, access, out linear);

    private static bool StoreElements(LogicalProcessor p, CpuState* c, Op* op, ulong offset, byte* data, byte* mask, int size, int count)
    {
        for (int i = 0; i < count; i++)
            if (IsSet(mask, size, i) && !StoreElement(p, c, op, offset + (ulong)(i * size), null, size))
                return false;
        for (int i = 0; i < count; i++)
            if (IsSet(mask, size, i) && !StoreElement(p, c, op, offset + (ulong)(i * size), data + i * size, size))
                return false;
        return true;
    }

    /// <summary>Stores one element, or only checks that it can be stored when <paramref name="from"/> is null.</summary>
    private static bool StoreElement(LogicalProcessor p, CpuState* c, Op* op, ulong offset, byte* from, int size)
    {
        if (!ElementLinear(p, c, op, offset, size, AccessKind.Write, out ulong linear))
            return false;
        int piece = Piece(c, linear, size);
        for (int at = 0; at < size; at += piece)
        {
            byte* m = p.Access.WritePtr(c, linear + (ulong)at, piece);
            if (m == null)
                return false;
            if (from == null)
                continue;
            CopyElement(m, from + at, piece);
            if (p.Access.EndWrite(c, m, linear + (ulong)at, piece) != OpResult.Next)
                return false;
        }
        return true;
    }

    private static bool LoadElement(LogicalProcessor p, CpuState* c, Op* op, ulong offset, byte* to, int size)
    {
        if (!ElementLinear(p, c, op, offset, size, AccessKind.Read, out ulong linear))
            return false;
        int piece = Piece(c, linear, size);
        for (int at = 0; at < size; at += piece)
        {
            byte* m = p.Access.ReadPtr(c, linear + (ulong)at, piece);
            if (m == null)
                return false;
            CopyElement(to + at, m, piece);
        }
        return true;
    }

    /// <summary>Elements are never subject to alignment checks: with those enabled, misaligned ones are accessed by bytes.</summary>
    private static int Piece(CpuState* c, ulong linear, int size) => (linear & (ulong)(size - 1)) != 0 && CpuMode.AlignmentChecked(c) ? 1 : size;

    private static void CopyElement(byte* to, byte* from, int size)
    {
        switch (size)
        {
            case 1: *to = *from; break;
            case 4: *(uint*)to = *(uint*)from; break;
            default: *(ulong*)to = *(ulong*)from; break;
        }
    }

    private static OpResult MaskedLoad<T, TCount>(LogicalProcessor p, CpuState* c, Op* op) where T : unmanaged where TCount : struct, ICount
    {
        if (!AvxGate.IsOpen(c))
            return AvxGate.Refuse(p, c);
        ulong offset = Addressing.EffectiveAddress(c, op);
        byte* result = stackalloc byte[32];
        Unsafe.InitBlock(result, 0, 32);
        byte* mask = c->Ymm + 32 * op->Reg1;
        for (int i = 0; i < TCount.Value; i++)
        {
            if (!IsSet(mask, sizeof(T), i))
                continue;
            if (!LoadElement(p, c, op, offset + (ulong)(i * sizeof(T)), result + i * sizeof(T), sizeof(T)))
                return OpResult.Fault;
        }
        Unsafe.CopyBlock(c->Ymm + 32 * op->Reg0, result, 32);
        return OpResult.Next;
    }

    /// <summary>
    /// Gathers: elements are loaded in order, and each one loaded clears its mask element, so that a fault leaves a state from which the instruction continues.
    /// Destination, index and mask must be three different registers, else #UD.
    /// </summary>
    private static OpResult Gather<TIndex, T, TCount>(LogicalProcessor p, CpuState* c, Op* op) where TIndex : unmanaged where T : unmanaged where TCount
        : struct, ICount
    {
        if (!AvxGate.IsOpen(c))
            return AvxGate.Refuse(p, c);
        int index = op->Imm2, target = op->Reg0, maskRegister = op->Reg2;
        if (index == target || index == maskRegister || target == maskRegister)
            return Outcome.Raise(c, Arch.Vector.UD);
        T* to = (T*)(c->Ymm + 32 * target);
        byte* mask = c->Ymm + 32 * maskRegister;
        TIndex* indices = (TIndex*)(c->Ymm + 32 * index);
        ulong start = *(ulong*)((byte*)c + op->Base) + (ulong)op->Disp;
        bool normalizes = p.Model.GathersNormalizeMask, wide = TCount.Value * Math.Max(sizeof(T), sizeof(TIndex)) == 32;
        if (normalizes)
            NormalizeMask(mask, sizeof(T), wide ? 32 : 16);
        for (int i = 0; i < TCount.Value; i++)
        {
            if (!IsSet(mask, sizeof(T), i))
            {
                ClearElement<T>(mask, i);
                continue;
            }
            long scaled = sizeof(TIndex) == 4 ? *(int*)(indices + i) : *(long*)(indices + i);
            T value;
            if (!LoadElement(p, c, op, start + ((ulong)scaled << op->Shift), (byte*)&value, sizeof(T)))
                return OpResult.Fault;
            to[i] = value;
            ClearElement<T>(mask, i);
            if (normalizes && !wide)
                Unsafe.InitBlock((byte*)to + 16, 0, 16);
        }
        uint used = (uint)(sizeof(T) * TCount.Value);
        Unsafe.InitBlock((byte*)to + used, 0, 32 - used);
        Unsafe.InitBlock(mask, 0, 32);
        return OpResult.Next;
    }

    /// <summary>Each element all ones or zero; what lies above <paramref name="bytes"/> zero.</summary>
    private static void NormalizeMask(byte* mask, int size, int bytes)
    {
        for (int i = 0; i < bytes / size; i++)
            new Span<byte>(mask + i * size, size).Fill(IsSet(mask, size, i) ? (byte)0xff : (byte)0);
        Unsafe.InitBlock(mask + bytes, 0, (uint)(32 - bytes));
    }

    private static void ClearElement<T>(byte* mask, int i) where T : unmanaged => ((T*)mask)[i] = default;
}
