using Iced.Intel;
using System.Runtime.CompilerServices;

namespace Ring3.Differential;

internal sealed unsafe partial class Placement
{
    // ---- the explicit memory operand

    private bool Explicit(ref FuzzRandom r, ref Instruction i, CaseInput* s)
    {
        bool hasMemory = false;
        for (int n = 0; n < i.OpCount; n++)
            hasMemory |= i.GetOpKind(n) == OpKind.Memory;
        if (!hasMemory)
            return true;
        int size = i.MemorySize.GetSize();
        if (size == 0)
            size = Math.Max(1, UnsizedOperand(i));
        if (i.IsVsib)
            return Gather(ref r, ref i, s, size);
        // Offsets of masked elements wrap one by one: keep them where nothing wraps. CS and null segments hold no branch targets.
        if (UsesWordAddress(i) && bits == 32 && i.Mnemonic is Mnemonic.Vmaskmovps or Mnemonic.Vmaskmovpd or Mnemonic.Vpmaskmovd or Mnemonic.Vpmaskmovq)
            return false;
        if (bits == 16 && i.FlowControl != FlowControl.Next && i.MemorySegment is Register.CS or Register.FS or Register.GS)
            return false;
        if (UsesWordAddress(i) && bits == 32)
            return true; // lands in the first 64 KiB, which nothing maps
        if (!BitOffset(ref r, ref i, s))
            return false;
        if (i.MemoryBase is Register.RIP or Register.EIP || i.MemoryBase == Register.None && i.MemoryIndex == Register.None)
            PlaceByDisplacement(ref r, ref i, s, size);
        else if (UsesWordAddress(i))
            PlaceByWordRegister(ref r, i, s, size);
        else
            PlaceByRegister(ref r, ref i, s, size);
        Contents(ref r, i, s, size);
        return true;
    }

    /// <summary>[BX+SI+disp] and its relatives.</summary>
    private void PlaceByWordRegister(ref FuzzRandom r, in Instruction i, CaseInput* s, int size)
    {
        ulong offset = Resolve(ref r, size, false, i.MemorySegment, s);
        ushort rest = (ushort)(offset - i.MemoryDisplacement64), index = 0;
        if (i.MemoryIndex != Register.None)
        {
            index = i.MemoryBase == Register.None ? rest : (ushort)r.Next();
            s->Gpr[Number(i.MemoryIndex)] = index | r.Next() << 16;
        }
        if (i.MemoryBase != Register.None)
            s->Gpr[Number(i.MemoryBase)] = (ushort)(rest - index) | r.Next() << 16;
        _address = (ushort)offset + SegmentBase(i.MemorySegment, s);
    }

    private static bool UsesWordAddress(in Instruction i) => i.MemoryBase.IsGPR16() || i.MemoryIndex.IsGPR16() || i.MemoryBase == Register.None
        && i.MemoryIndex == Register.None && i.MemoryDisplSize == 2;

    private static int UnsizedOperand(in Instruction i) => i.Mnemonic switch
    {
        Mnemonic.Fxsave or Mnemonic.Fxsave64 or Mnemonic.Fxrstor or Mnemonic.Fxrstor64 => 512,
        Mnemonic.Fnsave or Mnemonic.Frstor => 108,
        Mnemonic.Fnstenv or Mnemonic.Fldenv => 28,
        _ => 8,
    };

    /// <summary>Bit offsets in a register reach far beyond the operand: keep them on the data pages. The register must not be part of the address.</summary>
    private static bool BitOffset(ref FuzzRandom r, ref Instruction i, CaseInput* s)
    {
        if (i.Mnemonic is not (Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc) || i.Op1Kind != OpKind.Register)
            return true;
        Register full = i.Op1Register.GetFullRegister();
        if (full == i.MemoryBase.GetFullRegister() || full == i.MemoryIndex.GetFullRegister())
            return false;
        ulong offset = (ulong)(long)(r.Below(8192) - 4096);
        s->Gpr[Number(full)] = i.Op1Register.GetSize() switch
        {
            2 => (r.Next() & ~0xffffUL) | (ushort)offset,
            4 => (r.Next() & ~0xffff_ffffUL) | (uint)offset,
            _ => offset,
        };
        return true;
    }

    /// <summary>[RIP+disp32], [disp32] and moffs: the displacement is the only thing to choose.</summary>
    private void PlaceByDisplacement(ref FuzzRandom r, ref Instruction i, CaseInput* s, int size)
    {
        ConstantOffsets offsets = source.Offsets(i);
        ulong target = Target(ref r, size);
        if (offsets.DisplacementSize != 8 && !IsInWindow(target))
            target = Interior(ref r, size, 1);
        ulong b = SegmentBase(i.MemorySegment, s);
        ulong displacement = target - b - (i.MemoryBase is Register.RIP or Register.EIP ? i.NextIP : 0);
        source.Patch(offsets.DisplacementOffset, displacement, offsets.DisplacementSize);
        i = source.Decode(i.IP);
        _address = target;
    }

    private void PlaceByRegister(ref FuzzRandom r, ref Instruction i, CaseInput* s, int size)
    {
        bool narrow = UsesNarrowAddress(i);
        ulong offset = Resolve(ref r, size, narrow, i.MemorySegment, s), displacement = i.MemoryDisplacement64, scale = (ulong)i.MemoryIndexScale;
        if (narrow && i.MemoryIndex.GetFullRegister() == i.MemoryBase.GetFullRegister())
            displacement = (ulong)(long)(int)displacement;
        ulong rest = offset - displacement;
        if (narrow)
            rest = (uint)rest;
        int b = i.MemoryBase == Register.None ? -1 : Number(i.MemoryBase), x = i.MemoryIndex == Register.None ? -1 : Number(i.MemoryIndex);
        ulong high = narrow ? r.Next() << 32 : 0;
        if (x < 0)
        {
            s->Gpr[b] = rest | high;
        }
        else if (b < 0)
        {
            s->Gpr[x] = (narrow ? rest / scale : (ulong)((long)rest / (long)scale)) | high;
        }
        else if (b == x)
        {
            s->Gpr[x] = (narrow ? rest / (1 + scale) : (ulong)((long)rest / (long)(1 + scale))) | high;
        }
        else
        {
            ulong index = r.Chance(60) ? (ulong)(long)(r.Below(512) - 256) : s->Gpr[x];
            s->Gpr[x] = index;
            s->Gpr[b] = rest - index * scale;
            if (narrow)
                s->Gpr[b] = (uint)s->Gpr[b] | high;
        }
        ulong effective = displacement + (b < 0 ? 0 : s->Gpr[b]) + (x < 0 ? 0 : s->Gpr[x] * scale);
        _address = (narrow ? (uint)effective : effective) + SegmentBase(i.MemorySegment, s);
    }

    private bool Gather(ref FuzzRandom r, ref Instruction i, CaseInput* s, int size)
    {
        if (i.MemoryBase == Register.RIP || i.MemoryBase == Register.EIP)
            return false;
        bool narrow = UsesNarrowAddress(i) || i.MemoryBase == Register.None && i.MemoryDisplSize == 4;
        if (i.MemoryBase == Register.None || narrow && bits == 64)
            return false; // without a 64-bit base the lanes would have to carry the address
        if (bits == 16 && i.MemoryBase.IsGPR16())
            return false;
        ulong at = (r.Chance(80) ? Interior(ref r, 512, 1) : Target(ref r, size)) - SegmentBase(i.MemorySegment, s);
        s->Gpr[Number(i.MemoryBase)] = at - i.MemoryDisplacement64;
        bool wide = i.Mnemonic is Mnemonic.Vgatherqps or Mnemonic.Vgatherqpd or Mnemonic.Vpgatherqd or Mnemonic.Vpgatherqq;
        int v = (int)(i.MemoryIndex.IsYMM() ? i.MemoryIndex - Register.YMM0 : i.MemoryIndex - Register.XMM0);
        byte* low = s->Xsave + XsaveArea.Xmm + 16 * v, upper = s->Xsave + XsaveArea.YmmHigh + 16 * v;
        for (int lane = 0; lane < 16; lane += wide ? 8 : 4)
        {
            long a = r.Below(80) - 40, b = r.Below(80) - 40;
            if (wide)
            {
                Unsafe.WriteUnaligned(low + lane, a);
                Unsafe.WriteUnaligned(upper + lane, b);
            }
            else
            {
                Unsafe.WriteUnaligned(low + lane, (int)a);
                Unsafe.WriteUnaligned(upper + lane, (int)b);
            }
        }
        return true;
    }

    // ---- contents of memory

    private void Contents(ref FuzzRandom r, in Instruction i, CaseInput* s, int size)
    {
        ulong at = _address;
        if (i.Mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc || size > Sandbox.MaxPatch || r.Chance(25)
            && i.Mnemonic is not (Mnemonic.Ldmxcsr or Mnemonic.Vldmxcsr or Mnemonic.Fxrstor or Mnemonic.Fxrstor64))
            return;
        byte* value = stackalloc byte[512];
        switch (i.Mnemonic)
        {
            case Mnemonic.Cmpxchg when r.Chance(50):
                Unsafe.WriteUnaligned(value, s->Gpr[Rax]);
                break;
            case Mnemonic.Cmpxchg8b when r.Chance(50):
                Unsafe.WriteUnaligned(value, (uint)s->Gpr[Rax] | s->Gpr[Rdx] << 32);
                break;
            case Mnemonic.Cmpxchg16b when r.Chance(50):
                Unsafe.WriteUnaligned(value, s->Gpr[Rax]);
                Unsafe.WriteUnaligned(value + 8, s->Gpr[Rdx]);
                break;
            case Mnemonic.Ldmxcsr or Mnemonic.Vldmxcsr:
                Unsafe.WriteUnaligned(value, (uint)r.Next() & (r.Chance(80) ? 0xffffu : 0xfffd_ffff));
                break;
            case Mnemonic.Fbld when r.Chance(80):
                for (int n = 0; n < 9; n++)
                    value[n] = (byte)(r.Below(10) | r.Below(10) << 4);
                value[9] = (byte)(r.Next() & 0x80);
                break;
            case Mnemonic.Fldenv or Mnemonic.Frstor or Mnemonic.Fxrstor or Mnemonic.Fxrstor64:
                StateImage(ref r, i, s, value);
                break;
            default:
                Values.Operand(ref r, value, Math.Min(size, 512));
                break;
        }
        Patch(s, at, value, Math.Min(size, 512));
    }

    /// <summary>Images that x87 and SSE state is loaded from: the state of another random case.</summary>
    private static void StateImage(ref FuzzRandom r, in Instruction i, CaseInput* s, byte* value)
    {
        CaseInput other;
        StateBuilder.Fill(ref r, &other);
        if (i.Mnemonic is Mnemonic.Fxrstor or Mnemonic.Fxrstor64)
        {
            Buffer.MemoryCopy(other.Xsave, value, 512, 512);
            if (r.Chance(15))
                Unsafe.WriteUnaligned(value + XsaveArea.Mxcsr, (uint)r.Next() & 0xfffd_ffff);
            return;
        }
        bool wide = i.Code is Code.Fldenv_m28byte or Code.Frstor_m108byte;
        int environment = wide ? 28 : 14, step = wide ? 4 : 2;
        new Span<byte>(value, 512).Clear();
        for (int n = 0; n < 2; n++)
            Unsafe.WriteUnaligned(value + n * step, Unsafe.ReadUnaligned<ushort>(other.Xsave + 2 * n));
        Unsafe.WriteUnaligned(value + 2 * step, (ushort)(r.Chance(40) ? 0 : r.Next()));
        // Instruction pointer, selector and opcode, data pointer, selector.
        Buffer.MemoryCopy(other.Xsave + XsaveArea.Fip, value + 3 * step, step, step);
        Buffer.MemoryCopy(other.Xsave + XsaveArea.Xmm, value + 4 * step, step, step);
        Buffer.MemoryCopy(other.Xsave + XsaveArea.Fdp, value + 5 * step, step, step);
        Buffer.MemoryCopy(other.Xsave + XsaveArea.Xmm + step, value + 6 * step, step, step);
        for (int n = 0; n < 8; n++)
            Buffer.MemoryCopy(other.Xsave + XsaveArea.St + 16 * n, value + environment + 10 * n, 10, 10);
    }

    // ---- branches

    /// <summary>Places the RIP-relative operand of an instruction inside a sequence. Memory contents stay.</summary>
    internal void PlaceFollower(ref FuzzRandom r, ref Instruction i, CaseInput* s)
    {
        int size = i.MemorySize.GetSize();
        PlaceByDisplacement(ref r, ref i, s, size == 0 ? 8 : size);
    }

    /// <summary>Gives a direct branch a target that is known on both sides.</summary>
    internal bool TryPlaceBranch(ref FuzzRandom r, ref Instruction i, CaseInput* s) => Branches(ref r, ref i, s);

    private bool Branches(ref FuzzRandom r, ref Instruction i, CaseInput* s)
    {
        switch (i.Code)
        {
            case Code.Jmp_rm64 or Code.Call_rm64:
                ulong to = BranchTarget(ref r, i);
                if (i.Op0Kind == OpKind.Register)
                {
                    s->Gpr[Number(i.Op0Register)] = to;
                    return true;
                }
                return _address + 8 <= Sandbox.DataAddress || _address >= DataEnd || Patch(s, _address, &to, 8);
            case Code.Jmp_rm32 or Code.Call_rm32:
                ulong near = BranchTarget(ref r, i);
                if (i.Op0Kind == OpKind.Register)
                {
                    s->Gpr[Number(i.Op0Register)] = near;
                    return true;
                }
                return UsesWordAddress(i) && bits == 32 || _address + 4 <= Sandbox.DataAddress || _address >= DataEnd || Patch(s, _address, &near, 4);
            case Code.Jmp_rm16 or Code.Call_rm16:
                ulong word = BranchTarget(ref r, i);
                if (i.Op0Kind == OpKind.Register)
                {
                    s->Gpr[Number(i.Op0Register)] = (s->Gpr[Number(i.Op0Register)] & ~0xffffUL) | (ushort)word;
                    return true;
                }
                return UsesWordAddress(i) && bits == 32 || _address + 2 <= Sandbox.DataAddress || _address >= DataEnd || Patch(s, _address, &word, 2);
            case Code.Retnw or Code.Retnw_imm16:
                return PatchStack(s, BranchTarget(ref r, i), 2);
            case Code.Retnd or Code.Retnd_imm16:
                return PatchStack(s, BranchTarget(ref r, i), 4);
            case Code.Retnq or Code.Retnq_imm16:
                return PatchStack(s, BranchTarget(ref r, i), 8);
        }
        if (i.Op0Kind is not (OpKind.NearBranch64 or OpKind.NearBranch32 or OpKind.NearBranch16))
            return true;
        ConstantOffsets offsets = source.Offsets(i);
        if (offsets.ImmediateSize != 1)
        {
            source.Patch(offsets.ImmediateOffset, BranchTarget(ref r, i, direct: true) - i.NextIP, offsets.ImmediateSize);
            i = source.Decode(i.IP);
        }
        // Not into the instruction itself nor into the jump that follows it.
        ulong target = i.NearBranchTarget;
        return target == i.NextIP || target < s->Rip || target >= i.NextIP + 8;
    }

    private ulong BranchTarget(ref FuzzRandom r, in Instruction i, bool direct = false) => r.Below(bits == 16 ? 5 : 10) switch
    {
        < 5 => (i.IP & ~((ulong)Sandbox.SlotSize - 1)) + (r.Chance(50) ? 8 + (ulong)r.Below(100) : 300 + (ulong)r.Below(100)),
        < 7 => Sandbox.DataAddress + (ulong)r.Below(Sandbox.DataSize),
        < 9 => DataEnd + (ulong)r.Below(4096),
        _ => direct || bits == 32 ? i.NextIP : NonCanonical(ref r),
    };
}
