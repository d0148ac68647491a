using System.Buffers.Binary;
using System.Numerics;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>BMI1, BMI2, MOVBE, BSWAP and CRC32. MULX is inline in the loop. SPEC: SDM volume 2, the instructions by name.</summary>
/// <remarks>SAFETY: operands go through <see cref="SlowOperands"/>.</remarks>
internal static unsafe class BmiHandlers
{
    internal static void Register()
    {
        HandlerTable.Set(Code.VEX_Andn_r32_r32_rm32, &Andn);
        HandlerTable.Set(Code.VEX_Andn_r64_r64_rm64, &Andn);
        HandlerTable.Set(Code.VEX_Blsi_r32_rm32, &Blsi);
        HandlerTable.Set(Code.VEX_Blsi_r64_rm64, &Blsi);
        HandlerTable.Set(Code.VEX_Blsmsk_r32_rm32, &Blsmsk);
        HandlerTable.Set(Code.VEX_Blsmsk_r64_rm64, &Blsmsk);
        HandlerTable.Set(Code.VEX_Blsr_r32_rm32, &Blsr);
        HandlerTable.Set(Code.VEX_Blsr_r64_rm64, &Blsr);
        HandlerTable.Set(Code.VEX_Bextr_r32_rm32_r32, &Bextr);
        HandlerTable.Set(Code.VEX_Bextr_r64_rm64_r64, &Bextr);
        HandlerTable.Set(Code.VEX_Bzhi_r32_rm32_r32, &Bzhi);
        HandlerTable.Set(Code.VEX_Bzhi_r64_rm64_r64, &Bzhi);
        HandlerTable.Set(Code.VEX_Pdep_r32_r32_rm32, &Pdep);
        HandlerTable.Set(Code.VEX_Pdep_r64_r64_rm64, &Pdep);
        HandlerTable.Set(Code.VEX_Pext_r32_r32_rm32, &Pext);
        HandlerTable.Set(Code.VEX_Pext_r64_r64_rm64, &Pext);
        HandlerTable.Set(Code.VEX_Rorx_r32_rm32_imm8, &Rorx);
        HandlerTable.Set(Code.VEX_Rorx_r64_rm64_imm8, &Rorx);
        HandlerTable.Set(Code.VEX_Sarx_r32_rm32_r32, &Sarx);
        HandlerTable.Set(Code.VEX_Sarx_r64_rm64_r64, &Sarx);
        HandlerTable.Set(Code.VEX_Shlx_r32_rm32_r32, &Shlx);
        HandlerTable.Set(Code.VEX_Shlx_r64_rm64_r64, &Shlx);
        HandlerTable.Set(Code.VEX_Shrx_r32_rm32_r32, &Shrx);
        HandlerTable.Set(Code.VEX_Shrx_r64_rm64_r64, &Shrx);
        HandlerTable.Set(Code.Movbe_r16_m16, &MovbeLoad);
        HandlerTable.Set(Code.Movbe_r32_m32, &MovbeLoad);
        HandlerTable.Set(Code.Movbe_r64_m64, &MovbeLoad);
        HandlerTable.Set(Code.Movbe_m16_r16, &MovbeStore);
        HandlerTable.Set(Code.Movbe_m32_r32, &MovbeStore);
        HandlerTable.Set(Code.Movbe_m64_r64, &MovbeStore);
        HandlerTable.Set(Code.Bswap_r16, &Bswap);
        HandlerTable.Set(Code.Bswap_r32, &Bswap);
        HandlerTable.Set(Code.Bswap_r64, &Bswap);
        HandlerTable.Set(Code.Crc32_r32_rm8, &Crc32Byte);
        HandlerTable.Set(Code.Crc32_r64_rm8, &Crc32Byte);
        HandlerTable.Set(Code.Crc32_r32_rm16, &Crc32Word);
        HandlerTable.Set(Code.Crc32_r32_rm32, &Crc32Dword);
        HandlerTable.Set(Code.Crc32_r64_rm64, &Crc32Qword);
    }

    /// <summary>VEX forms exist in protected and long mode only.</summary>
    private static bool VexAllowed(LogicalProcessor p, CpuState* c)
    {
        if ((c->Cr0 & Cr0.PE) != 0 && (c->Rflags & Rflags.VM) == 0)
            return true;
        p.Raise(c, Arch.Vector.UD);
        return false;
    }

    private static OpResult Logic(CpuState* c, Op* op, ulong result, bool carry)
    {
        int size = op->Size;
        SlowOperands.Set(c, op->Reg0, size, result);
        ulong status = SlowOperands.ResultStatus(result, size) & (Rflags.ZF | Rflags.SF) | Flags.GetStatus(c) & (Rflags.AF | Rflags.PF);
        Flags.SetStatus(c, status | (carry ? Rflags.CF : 0));
        return OpResult.Next;
    }

    private static OpResult Andn(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg2, op->Size, out ulong value))
            return OpResult.Fault;
        return Logic(c, op, ~SlowOperands.Get(c, op->Reg1, op->Size) & value, false);
    }

    private static OpResult Blsi(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        return Logic(c, op, value & (0 - value), value != 0);
    }

    private static OpResult Blsmsk(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        return Logic(c, op, value ^ (value - 1), value == 0);
    }

    private static OpResult Blsr(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        return Logic(c, op, value & (value - 1), value == 0);
    }

    private static OpResult Bextr(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        ulong control = SlowOperands.Get(c, op->Reg2, op->Size);
        int start = (byte)control, length = (byte)(control >> 8);
        ulong result = start >= 64 ? 0 : value >> start;
        if (length < 64)
            result &= (1UL << length) - 1;
        return Logic(c, op, result, false);
    }

    private static OpResult Bzhi(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        int index = (byte)SlowOperands.Get(c, op->Reg2, op->Size), bits = 8 * op->Size;
        return Logic(c, op, index < bits ? value & ((1UL << index) - 1) : value, index >= bits);
    }

    private static OpResult Pdep(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg2, op->Size, out ulong mask))
            return OpResult.Fault;
        ulong source = SlowOperands.Get(c, op->Reg1, op->Size), result = 0;
        for (; mask != 0; mask &= mask - 1, source >>= 1)
            result |= (source & 1) != 0 ? mask & (0 - mask) : 0;
        SlowOperands.Set(c, op->Reg0, op->Size, result);
        return OpResult.Next;
    }

    private static OpResult Pext(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg2, op->Size, out ulong mask))
            return OpResult.Fault;
        ulong source = SlowOperands.Get(c, op->Reg1, op->Size), result = 0;
        for (int to = 0; mask != 0; mask &= mask - 1, to++)
            result |= (source >> BitOperations.TrailingZeroCount(mask) & 1) << to;
        SlowOperands.Set(c, op->Reg0, op->Size, result);
        return OpResult.Next;
    }

    private static OpResult Rorx(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        SlowOperands.Set(c, op->Reg0, op->Size, op->Size == 8 ? BitOperations.RotateRight(value, (int)op->Imm) : BitOperations.RotateRight((uint)value, (int)op->Imm));
        return OpResult.Next;
    }

    private static OpResult Sarx(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        int count = (int)SlowOperands.Get(c, op->Reg2, op->Size);
        SlowOperands.Set(c, op->Reg0, op->Size, op->Size == 8 ? (ulong)((long)value >> count) : (uint)((int)value >> count));
        return OpResult.Next;
    }

    private static OpResult Shlx(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        int count = (int)SlowOperands.Get(c, op->Reg2, op->Size);
        SlowOperands.Set(c, op->Reg0, op->Size, op->Size == 8 ? value << count : (uint)value << count);
        return OpResult.Next;
    }

    private static OpResult Shrx(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VexAllowed(p, c) || !SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        int count = (int)SlowOperands.Get(c, op->Reg2, op->Size);
        SlowOperands.Set(c, op->Reg0, op->Size, op->Size == 8 ? value >> count : (uint)value >> count);
        return OpResult.Next;
    }

    private static ulong Reverse(ulong value, int size) => size switch
    {
        2 => BinaryPrimitives.ReverseEndianness((ushort)value),
        4 => BinaryPrimitives.ReverseEndianness((uint)value),
        _ => BinaryPrimitives.ReverseEndianness(value),
    };

    private static OpResult MovbeLoad(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!SlowOperands.Read(p, c, op, op->Reg1, op->Size, out ulong value))
            return OpResult.Fault;
        SlowOperands.Set(c, op->Reg0, op->Size, Reverse(value, op->Size));
        return OpResult.Next;
    }

    private static OpResult MovbeStore(LogicalProcessor p, CpuState* c, Op* op)
        => SlowOperands.Write(p, c, op, op->Size, Reverse(SlowOperands.Get(c, op->Reg1, op->Size), op->Size));

    /// <summary>A 16-bit operand is undefined; processors clear it.</summary>
    private static OpResult Bswap(LogicalProcessor p, CpuState* c, Op* op)
    {
        int size = op->Size;
        SlowOperands.Set(c, op->Reg0, size, size == 2 ? 0 : Reverse(SlowOperands.Get(c, op->Reg0, size), size));
        return OpResult.Next;
    }

    private static OpResult Crc32Byte(LogicalProcessor p, CpuState* c, Op* op) => Crc32(p, c, op, 1);
    private static OpResult Crc32Word(LogicalProcessor p, CpuState* c, Op* op) => Crc32(p, c, op, 2);
    private static OpResult Crc32Dword(LogicalProcessor p, CpuState* c, Op* op) => Crc32(p, c, op, 4);
    private static OpResult Crc32Qword(LogicalProcessor p, CpuState* c, Op* op) => Crc32(p, c, op, 8);

    private static OpResult Crc32(LogicalProcessor p, CpuState* c, Op* op, int size)
    {
        if (!SlowOperands.Read(p, c, op, op->Reg1, size, out ulong value))
            return OpResult.Fault;
        uint crc = (uint)SlowOperands.Get(c, op->Reg0, 4);
        crc = size switch
        {
            1 => BitOperations.Crc32C(crc, (byte)value),
            2 => BitOperations.Crc32C(crc, (ushort)value),
            4 => BitOperations.Crc32C(crc, (uint)value),
            _ => BitOperations.Crc32C(crc, value),
        };
        *(ulong*)((byte*)c + op->Reg0) = crc;
        return OpResult.Next;
    }
}
