using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>Why the run loop came back.</summary>
internal enum LoopExit
{
    /// <summary>CpuState.Rip needs a lookup.</summary>
    Lookup,
    /// <summary>The block went stale before the instruction at CpuState.Rip: the jump cache may still hold it.</summary>
    Stale,
    /// <summary>At a block boundary, CpuState.Rip exact: ExitRequest, Attention or an event needs a look.</summary>
    Poll,
    /// <summary>The instruction at CpuState.Rip did not retire: an exception or an exit is pending.</summary>
    Fault,
    /// <summary>An instruction retired and left an exit.</summary>
    RetiredExit,
}

/// <summary>The run loop.</summary>
/// <remarks>
/// Everything that is not an inline case is a call of the op's handler; the inline forms of memory operands fall back to it as well when they miss the TLB, so slow paths are outside this method.
/// Keep it below RyuJIT's limits (60,000 bytes of IL, 2,000 basic blocks): beyond them it would be compiled without optimisation.
/// SAFETY: operand offsets come from the decoder and lie in CpuState; host addresses come from TLB hits; block pointers are used within the epoch.
/// </remarks>
public sealed unsafe partial class LogicalProcessor
{
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private LoopExit RunLoop(CpuState* c, Block* block)
    {
        TlbEntry* tlb = Level1;
        Op* op;
        TlbEntry* e;
        JumpEntry* j;
        ulong rip, linear;
    enter:
        c->InstructionsRetired += block->Instructions;
        op = Block.FirstOp(block) - 1;
    next:
        op++;
        switch ((OpKind)op->Kind)
        {
            case OpKind.Nop: goto next;
            case OpKind.MovRR64: W64(c, op->Reg0, R64(c, op->Reg1)); goto next;
            case OpKind.MovRR32: W64(c, op->Reg0, R32(c, op->Reg1)); goto next;
            case OpKind.MovRR8: *((byte*)c + op->Reg0) = *((byte*)c + op->Reg1); goto next;
            case OpKind.MovRI: W64(c, op->Reg0, op->Imm); goto next;
            case OpKind.MovzxB: W64(c, op->Reg0, *((byte*)c + op->Reg1)); goto next;
            case OpKind.MovzxW: W64(c, op->Reg0, *(ushort*)((byte*)c + op->Reg1)); goto next;
            case OpKind.MovsxB64: W64(c, op->Reg0, (ulong)*(sbyte*)((byte*)c + op->Reg1)); goto next;
            case OpKind.MovsxW64: W64(c, op->Reg0, (ulong)*(short*)((byte*)c + op->Reg1)); goto next;
            case OpKind.MovsxD64: W64(c, op->Reg0, (ulong)*(int*)((byte*)c + op->Reg1)); goto next;
            case OpKind.MovsxB32: W64(c, op->Reg0, (uint)*(sbyte*)((byte*)c + op->Reg1)); goto next;
            case OpKind.MovsxW32: W64(c, op->Reg0, (uint)*(short*)((byte*)c + op->Reg1)); goto next;
            case OpKind.Lea64: W64(c, op->Reg0, EffectiveAddress(c, op)); goto next;
            case OpKind.Lea32: W64(c, op->Reg0, (uint)EffectiveAddress(c, op)); goto next;
            case OpKind.LeaBase64: W64(c, op->Reg0, R64(c, op->Base) + (ulong)op->Disp); goto next;
            case OpKind.Cqo: c->Gpr[2] = (ulong)((long)c->Gpr[0] >> 63); goto next;
            case OpKind.Cdq: c->Gpr[2] = (uint)((int)c->Gpr[0] >> 31); goto next;
            case OpKind.AddRR64: Add64(c, op, R64(c, op->Reg1)); goto next;
            case OpKind.AddRI64: Add64(c, op, op->Imm); goto next;
            case OpKind.SubRR64: Sub64(c, op, R64(c, op->Reg1)); goto next;
            case OpKind.SubRI64: Sub64(c, op, op->Imm); goto next;
            case OpKind.AndRR64: And64(c, op, R64(c, op->Reg1)); goto next;
            case OpKind.AndRI64: And64(c, op, op->Imm); goto next;
            case OpKind.OrRR64: Or64(c, op, R64(c, op->Reg1)); goto next;
            case OpKind.OrRI64: Or64(c, op, op->Imm); goto next;
            case OpKind.XorRR64: Xor64(c, op, R64(c, op->Reg1)); goto next;
            case OpKind.XorRI64: Xor64(c, op, op->Imm); goto next;
            case OpKind.AdcRR64: Adc64(c, op, R64(c, op->Reg1)); goto next;
            case OpKind.AdcRI64: Adc64(c, op, op->Imm); goto next;
            case OpKind.SbbRR64: Sbb64(c, op, R64(c, op->Reg1)); goto next;
            case OpKind.SbbRI64: Sbb64(c, op, op->Imm); goto next;
            case OpKind.CmpRR64: Cmp64(c, R64(c, op->Reg0), R64(c, op->Reg1)); goto next;
            case OpKind.CmpRI64: Cmp64(c, R64(c, op->Reg0), op->Imm); goto next;
            case OpKind.TestRR64: Test64(c, R64(c, op->Reg0), R64(c, op->Reg1)); goto next;
            case OpKind.TestRI64: Test64(c, R64(c, op->Reg0), op->Imm); goto next;
            case OpKind.Inc64: Inc64(c, op); goto next;
            case OpKind.Dec64: Dec64(c, op); goto next;
            case OpKind.Neg64: Neg64(c, op); goto next;
            case OpKind.ShlRI64: Shl64(c, op, (int)op->Imm); goto next;
            case OpKind.ShrRI64: Shr64(c, op, (int)op->Imm); goto next;
            case OpKind.SarRI64: Sar64(c, op, (int)op->Imm); goto next;
            case OpKind.Not64: W64(c, op->Reg0, ~R64(c, op->Reg0)); goto next;
            case OpKind.ImulRR64: Imul64(c, op, R64(c, op->Reg0), R64(c, op->Reg1)); goto next;
            case OpKind.ImulRRI64: Imul64(c, op, R64(c, op->Reg1), op->Imm); goto next;
            case OpKind.AddRR32: Add32(c, op, R32(c, op->Reg1)); goto next;
            case OpKind.AddRI32: Add32(c, op, (uint)op->Imm); goto next;
            case OpKind.SubRR32: Sub32(c, op, R32(c, op->Reg1)); goto next;
            case OpKind.SubRI32: Sub32(c, op, (uint)op->Imm); goto next;
            case OpKind.AndRR32: And32(c, op, R32(c, op->Reg1)); goto next;
            case OpKind.AndRI32: And32(c, op, (uint)op->Imm); goto next;
            case OpKind.OrRR32: Or32(c, op, R32(c, op->Reg1)); goto next;
            case OpKind.OrRI32: Or32(c, op, (uint)op->Imm); goto next;
            case OpKind.XorRR32: Xor32(c, op, R32(c, op->Reg1)); goto next;
            case OpKind.XorRI32: Xor32(c, op, (uint)op->Imm); goto next;
            case OpKind.AdcRR32: Adc32(c, op, R32(c, op->Reg1)); goto next;
            case OpKind.AdcRI32: Adc32(c, op, (uint)op->Imm); goto next;
            case OpKind.SbbRR32: Sbb32(c, op, R32(c, op->Reg1)); goto next;
            case OpKind.SbbRI32: Sbb32(c, op, (uint)op->Imm); goto next;
            case OpKind.CmpRR32: Cmp32(c, R32(c, op->Reg0), R32(c, op->Reg1)); goto next;
            case OpKind.CmpRI32: Cmp32(c, R32(c, op->Reg0), (uint)op->Imm); goto next;
            case OpKind.TestRR32: Test32(c, R32(c, op->Reg0), R32(c, op->Reg1)); goto next;
            case OpKind.TestRI32: Test32(c, R32(c, op->Reg0), (uint)op->Imm); goto next;
            case OpKind.Inc32: Inc32(c, op); goto next;
            case OpKind.Dec32: Dec32(c, op); goto next;
            case OpKind.Neg32: Neg32(c, op); goto next;
            case OpKind.ShlRI32: Shl32(c, op, (int)op->Imm); goto next;
            case OpKind.ShrRI32: Shr32(c, op, (int)op->Imm); goto next;
            case OpKind.SarRI32: Sar32(c, op, (int)op->Imm); goto next;
            case OpKind.Not32: W64(c, op->Reg0, (uint)~R32(c, op->Reg0)); goto next;
            case OpKind.ImulRR32: Imul32(c, op, R32(c, op->Reg0), R32(c, op->Reg1)); goto next;
            case OpKind.ImulRRI32: Imul32(c, op, R32(c, op->Reg1), (uint)op->Imm); goto next;
            case OpKind.CmpRR8: Cmp8(c, *((byte*)c + op->Reg0), *((byte*)c + op->Reg1)); goto next;
            case OpKind.CmpRI8: Cmp8(c, *((byte*)c + op->Reg0), (byte)op->Imm); goto next;
            case OpKind.TestRR8: Test8(c, *((byte*)c + op->Reg0), *((byte*)c + op->Reg1)); goto next;
            case OpKind.TestRI8: Test8(c, *((byte*)c + op->Reg0), (byte)op->Imm); goto next;
            case OpKind.AddRR64Nf: W64(c, op->Reg0, R64(c, op->Reg0) + R64(c, op->Reg1)); goto next;
            case OpKind.AddRI64Nf: W64(c, op->Reg0, R64(c, op->Reg0) + op->Imm); goto next;
            case OpKind.SubRR64Nf: W64(c, op->Reg0, R64(c, op->Reg0) - R64(c, op->Reg1)); goto next;
            case OpKind.SubRI64Nf: W64(c, op->Reg0, R64(c, op->Reg0) - op->Imm); goto next;
            case OpKind.AndRR64Nf: W64(c, op->Reg0, R64(c, op->Reg0) & R64(c, op->Reg1)); goto next;
            case OpKind.AndRI64Nf: W64(c, op->Reg0, R64(c, op->Reg0) & op->Imm); goto next;
            case OpKind.OrRR64Nf: W64(c, op->Reg0, R64(c, op->Reg0) | R64(c, op->Reg1)); goto next;
            case OpKind.OrRI64Nf: W64(c, op->Reg0, R64(c, op->Reg0) | op->Imm); goto next;
            case OpKind.XorRR64Nf: W64(c, op->Reg0, R64(c, op->Reg0) ^ R64(c, op->Reg1)); goto next;
            case OpKind.XorRI64Nf: W64(c, op->Reg0, R64(c, op->Reg0) ^ op->Imm); goto next;
            case OpKind.ShlRI64Nf: W64(c, op->Reg0, R64(c, op->Reg0) << (int)op->Imm); goto next;
            case OpKind.ShrRI64Nf: W64(c, op->Reg0, R64(c, op->Reg0) >> (int)op->Imm); goto next;
            case OpKind.SarRI64Nf: W64(c, op->Reg0, (ulong)((long)R64(c, op->Reg0) >> (int)op->Imm)); goto next;
            case OpKind.ImulRR64Nf: W64(c, op->Reg0, R64(c, op->Reg0) * R64(c, op->Reg1)); goto next;
            case OpKind.ImulRRI64Nf: W64(c, op->Reg0, R64(c, op->Reg1) * op->Imm); goto next;
            case OpKind.Neg64Nf: W64(c, op->Reg0, 0 - R64(c, op->Reg0)); goto next;
            case OpKind.AddRR32Nf: W64(c, op->Reg0, R32(c, op->Reg0) + R32(c, op->Reg1)); goto next;
            case OpKind.AddRI32Nf: W64(c, op->Reg0, R32(c, op->Reg0) + (uint)op->Imm); goto next;
            case OpKind.SubRR32Nf: W64(c, op->Reg0, R32(c, op->Reg0) - R32(c, op->Reg1)); goto next;
            case OpKind.SubRI32Nf: W64(c, op->Reg0, R32(c, op->Reg0) - (uint)op->Imm); goto next;
            case OpKind.AndRR32Nf: W64(c, op->Reg0, R32(c, op->Reg0) & R32(c, op->Reg1)); goto next;
            case OpKind.AndRI32Nf: W64(c, op->Reg0, R32(c, op->Reg0) & (uint)op->Imm); goto next;
            case OpKind.OrRR32Nf: W64(c, op->Reg0, R32(c, op->Reg0) | R32(c, op->Reg1)); goto next;
            case OpKind.OrRI32Nf: W64(c, op->Reg0, R32(c, op->Reg0) | (uint)op->Imm); goto next;
            case OpKind.XorRR32Nf: W64(c, op->Reg0, R32(c, op->Reg0) ^ R32(c, op->Reg1)); goto next;
            case OpKind.XorRI32Nf: W64(c, op->Reg0, R32(c, op->Reg0) ^ (uint)op->Imm); goto next;
            case OpKind.ShlRI32Nf: W64(c, op->Reg0, R32(c, op->Reg0) << (int)op->Imm); goto next;
            case OpKind.ShrRI32Nf: W64(c, op->Reg0, R32(c, op->Reg0) >> (int)op->Imm); goto next;
            case OpKind.SarRI32Nf: W64(c, op->Reg0, (uint)((int)R32(c, op->Reg0) >> (int)op->Imm)); goto next;
            case OpKind.ImulRR32Nf: W64(c, op->Reg0, R32(c, op->Reg0) * R32(c, op->Reg1)); goto next;
            case OpKind.ImulRRI32Nf: W64(c, op->Reg0, R32(c, op->Reg1) * (uint)op->Imm); goto next;
            case OpKind.Neg32Nf: W64(c, op->Reg0, 0 - R32(c, op->Reg0)); goto next;
            case OpKind.MulR64: Mul64(c, R64(c, op->Reg0)); goto next;
            case OpKind.MulxRR64: Mulx64(c, op, R64(c, op->Reg2)); goto next;
            case OpKind.AdcxRR64: Adcx64(c, op, R64(c, op->Reg1)); goto next;
            case OpKind.AdoxRR64: Adox64(c, op, R64(c, op->Reg1)); goto next;
            case OpKind.Load64B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; W64(c, op->Reg0, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.Load32B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; W64(c, op->Reg0, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.LoadzxWB: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 2)) goto generic; W64(c, op->Reg0, Volatile.Read(ref *(ushort*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.LoadzxBB: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 1)) goto generic; W64(c, op->Reg0, Volatile.Read(ref *(byte*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.Load8B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 1)) goto generic; *((byte*)c + op->Reg0) = Volatile.Read(ref *(byte*)(linear + (ulong)e->Addend)); goto next;
            case OpKind.LoadsxD64B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; W64(c, op->Reg0, (ulong)Volatile.Read(ref *(int*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.Store64B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; Volatile.Write(ref *(ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.Store32B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; Volatile.Write(ref *(uint*)(linear + (ulong)e->Addend), R32(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.Store16B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 2)) goto generic; Volatile.Write(ref *(ushort*)(linear + (ulong)e->Addend), *(ushort*)((byte*)c + op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.Store8B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 1)) goto generic; Volatile.Write(ref *(byte*)(linear + (ulong)e->Addend), *((byte*)c + op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.StoreI64B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; Volatile.Write(ref *(ulong*)(linear + (ulong)e->Addend), op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.StoreI32B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; Volatile.Write(ref *(uint*)(linear + (ulong)e->Addend), (uint)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.StoreI8B: linear = R64(c, op->Base) + (ulong)op->Disp; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 1)) goto generic; Volatile.Write(ref *(byte*)(linear + (ulong)e->Addend), (byte)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.Load64X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; W64(c, op->Reg0, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.Load32X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; W64(c, op->Reg0, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.LoadzxWX: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 2)) goto generic; W64(c, op->Reg0, Volatile.Read(ref *(ushort*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.LoadzxBX: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 1)) goto generic; W64(c, op->Reg0, Volatile.Read(ref *(byte*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.Load8X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 1)) goto generic; *((byte*)c + op->Reg0) = Volatile.Read(ref *(byte*)(linear + (ulong)e->Addend)); goto next;
            case OpKind.LoadsxD64X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; W64(c, op->Reg0, (ulong)Volatile.Read(ref *(int*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.Store64X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; Volatile.Write(ref *(ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.Store32X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; Volatile.Write(ref *(uint*)(linear + (ulong)e->Addend), R32(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.Store16X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 2)) goto generic; Volatile.Write(ref *(ushort*)(linear + (ulong)e->Addend), *(ushort*)((byte*)c + op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.Store8X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 1)) goto generic; Volatile.Write(ref *(byte*)(linear + (ulong)e->Addend), *((byte*)c + op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.StoreI64X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; Volatile.Write(ref *(ulong*)(linear + (ulong)e->Addend), op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.StoreI32X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; Volatile.Write(ref *(uint*)(linear + (ulong)e->Addend), (uint)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.StoreI8X: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 1)) goto generic; Volatile.Write(ref *(byte*)(linear + (ulong)e->Addend), (byte)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AddRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Add64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.SubRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Sub64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.AndRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; And64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.OrRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Or64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.XorRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Xor64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.AdcRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Adc64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.SbbRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Sbb64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.CmpRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Cmp64(c, R64(c, op->Reg0), Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.CmpMR64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Cmp64(c, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend)), R64(c, op->Reg1)); goto next;
            case OpKind.CmpMI64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Cmp64(c, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend)), op->Imm); goto next;
            case OpKind.TestMR64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Test64(c, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend)), R64(c, op->Reg1)); goto next;
            case OpKind.TestMI64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Test64(c, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend)), op->Imm); goto next;
            case OpKind.AddMR64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; AddMemory64(c, (ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AddMI64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; AddMemory64(c, (ulong*)(linear + (ulong)e->Addend), op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.SubMR64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; SubMemory64(c, (ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.SubMI64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; SubMemory64(c, (ulong*)(linear + (ulong)e->Addend), op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AndMR64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; AndMemory64(c, (ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AndMI64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; AndMemory64(c, (ulong*)(linear + (ulong)e->Addend), op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.OrMR64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; OrMemory64(c, (ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.OrMI64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; OrMemory64(c, (ulong*)(linear + (ulong)e->Addend), op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.XorMR64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; XorMemory64(c, (ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.XorMI64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; XorMemory64(c, (ulong*)(linear + (ulong)e->Addend), op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AdcMR64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; AdcMemory64(c, (ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AdcMI64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; AdcMemory64(c, (ulong*)(linear + (ulong)e->Addend), op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.SbbMR64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; SbbMemory64(c, (ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.SbbMI64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; SbbMemory64(c, (ulong*)(linear + (ulong)e->Addend), op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.IncM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; IncMemory64(c, (ulong*)(linear + (ulong)e->Addend)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.DecM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; DecMemory64(c, (ulong*)(linear + (ulong)e->Addend)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.ImulRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Imul64(c, op, R64(c, op->Reg0), Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.AddRM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Add32(c, op, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.SubRM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Sub32(c, op, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.AndRM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; And32(c, op, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.OrRM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Or32(c, op, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.XorRM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Xor32(c, op, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.AdcRM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Adc32(c, op, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.SbbRM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Sbb32(c, op, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.CmpRM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Cmp32(c, R32(c, op->Reg0), Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.CmpMR32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Cmp32(c, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend)), R32(c, op->Reg1)); goto next;
            case OpKind.CmpMI32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Cmp32(c, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend)), (uint)op->Imm); goto next;
            case OpKind.TestMR32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Test32(c, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend)), R32(c, op->Reg1)); goto next;
            case OpKind.TestMI32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Test32(c, Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend)), (uint)op->Imm); goto next;
            case OpKind.AddMR32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; AddMemory32(c, (uint*)(linear + (ulong)e->Addend), R32(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AddMI32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; AddMemory32(c, (uint*)(linear + (ulong)e->Addend), (uint)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.SubMR32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; SubMemory32(c, (uint*)(linear + (ulong)e->Addend), R32(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.SubMI32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; SubMemory32(c, (uint*)(linear + (ulong)e->Addend), (uint)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AndMR32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; AndMemory32(c, (uint*)(linear + (ulong)e->Addend), R32(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AndMI32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; AndMemory32(c, (uint*)(linear + (ulong)e->Addend), (uint)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.OrMR32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; OrMemory32(c, (uint*)(linear + (ulong)e->Addend), R32(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.OrMI32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; OrMemory32(c, (uint*)(linear + (ulong)e->Addend), (uint)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.XorMR32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; XorMemory32(c, (uint*)(linear + (ulong)e->Addend), R32(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.XorMI32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; XorMemory32(c, (uint*)(linear + (ulong)e->Addend), (uint)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AdcMR32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; AdcMemory32(c, (uint*)(linear + (ulong)e->Addend), R32(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.AdcMI32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; AdcMemory32(c, (uint*)(linear + (ulong)e->Addend), (uint)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.SbbMR32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; SbbMemory32(c, (uint*)(linear + (ulong)e->Addend), R32(c, op->Reg1)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.SbbMI32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; SbbMemory32(c, (uint*)(linear + (ulong)e->Addend), (uint)op->Imm); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.IncM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; IncMemory32(c, (uint*)(linear + (ulong)e->Addend)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.DecM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 4)) goto generic; DecMemory32(c, (uint*)(linear + (ulong)e->Addend)); if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.ImulRM32: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 4)) goto generic; Imul32(c, op, R32(c, op->Reg0), Volatile.Read(ref *(uint*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.CmpMI8: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 1)) goto generic; Cmp8(c, Volatile.Read(ref *(byte*)(linear + (ulong)e->Addend)), (byte)op->Imm); goto next;
            case OpKind.CmpMR8: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 1)) goto generic; Cmp8(c, Volatile.Read(ref *(byte*)(linear + (ulong)e->Addend)), *((byte*)c + op->Reg1)); goto next;
            case OpKind.CmpRM8: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 1)) goto generic; Cmp8(c, *((byte*)c + op->Reg0), Volatile.Read(ref *(byte*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.TestMI8: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 1)) goto generic; Test8(c, Volatile.Read(ref *(byte*)(linear + (ulong)e->Addend)), (byte)op->Imm); goto next;
            case OpKind.MulM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Mul64(c, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.MulxRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Mulx64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.AdcxRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Adcx64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.AdoxRM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; Adox64(c, op, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.Push64: linear = c->Gpr[4] - 8; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8)) goto generic; Volatile.Write(ref *(ulong*)(linear + (ulong)e->Addend), R64(c, op->Reg0)); c->Gpr[4] = linear; if (CodeHit(e, linear)) goto overwritten; goto next;
            case OpKind.Pop64: linear = c->Gpr[4]; e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; c->Gpr[4] = linear + 8; W64(c, op->Reg0, Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend))); goto next;
            case OpKind.Jmp: goto taken;
            case OpKind.JO: if (Flags.OF(c)) goto taken; goto fall;
            case OpKind.JNo: if (!(Flags.OF(c))) goto taken; goto fall;
            case OpKind.JB: if (Flags.CF(c)) goto taken; goto fall;
            case OpKind.JAe: if (!(Flags.CF(c))) goto taken; goto fall;
            case OpKind.JZ: if (Flags.ZF(c)) goto taken; goto fall;
            case OpKind.JNz: if (!(Flags.ZF(c))) goto taken; goto fall;
            case OpKind.JBe: if (Flags.CF(c) | Flags.ZF(c)) goto taken; goto fall;
            case OpKind.JA: if (!(Flags.CF(c) | Flags.ZF(c))) goto taken; goto fall;
            case OpKind.JS: if (Flags.SF(c)) goto taken; goto fall;
            case OpKind.JNs: if (!(Flags.SF(c))) goto taken; goto fall;
            case OpKind.JP: if (Flags.PF(c)) goto taken; goto fall;
            case OpKind.JNp: if (!(Flags.PF(c))) goto taken; goto fall;
            case OpKind.JL: if (Flags.Less(c)) goto taken; goto fall;
            case OpKind.JGe: if (!(Flags.Less(c))) goto taken; goto fall;
            case OpKind.JLe: if (Flags.Less(c) | Flags.ZF(c)) goto taken; goto fall;
            case OpKind.JG: if (!(Flags.Less(c) | Flags.ZF(c))) goto taken; goto fall;
            case OpKind.CmpRR64JZ: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if (a == b) goto taken; goto fall; }
            case OpKind.CmpRR64JNz: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if (a != b) goto taken; goto fall; }
            case OpKind.CmpRR64JB: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if (a < b) goto taken; goto fall; }
            case OpKind.CmpRR64JAe: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if (a >= b) goto taken; goto fall; }
            case OpKind.CmpRR64JBe: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if (a <= b) goto taken; goto fall; }
            case OpKind.CmpRR64JA: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if (a > b) goto taken; goto fall; }
            case OpKind.CmpRR64JL: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if ((long)a < (long)b) goto taken; goto fall; }
            case OpKind.CmpRR64JGe: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if ((long)a >= (long)b) goto taken; goto fall; }
            case OpKind.CmpRR64JLe: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if ((long)a <= (long)b) goto taken; goto fall; }
            case OpKind.CmpRR64JG: { ulong a = R64(c, op->Reg0), b = R64(c, op->Reg1); Cmp64(c, a, b); if ((long)a > (long)b) goto taken; goto fall; }
            case OpKind.TestRR64JZ: { ulong r = R64(c, op->Reg0) & R64(c, op->Reg1); Logic64(c, r); if (r == 0) goto taken; goto fall; }
            case OpKind.TestRR64JNz: { ulong r = R64(c, op->Reg0) & R64(c, op->Reg1); Logic64(c, r); if (r != 0) goto taken; goto fall; }
            case OpKind.TestRR64JS: { ulong r = R64(c, op->Reg0) & R64(c, op->Reg1); Logic64(c, r); if ((long)r < 0) goto taken; goto fall; }
            case OpKind.TestRR64JNs: { ulong r = R64(c, op->Reg0) & R64(c, op->Reg1); Logic64(c, r); if ((long)r >= 0) goto taken; goto fall; }
            case OpKind.TestRR64JLe: { ulong r = R64(c, op->Reg0) & R64(c, op->Reg1); Logic64(c, r); if ((long)r <= 0) goto taken; goto fall; }
            case OpKind.TestRR64JG: { ulong r = R64(c, op->Reg0) & R64(c, op->Reg1); Logic64(c, r); if ((long)r > 0) goto taken; goto fall; }
            case OpKind.CmpRI64JZ: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if (a == b) goto taken; goto fall; }
            case OpKind.CmpRI64JNz: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if (a != b) goto taken; goto fall; }
            case OpKind.CmpRI64JB: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if (a < b) goto taken; goto fall; }
            case OpKind.CmpRI64JAe: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if (a >= b) goto taken; goto fall; }
            case OpKind.CmpRI64JBe: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if (a <= b) goto taken; goto fall; }
            case OpKind.CmpRI64JA: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if (a > b) goto taken; goto fall; }
            case OpKind.CmpRI64JL: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if ((long)a < (long)b) goto taken; goto fall; }
            case OpKind.CmpRI64JGe: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if ((long)a >= (long)b) goto taken; goto fall; }
            case OpKind.CmpRI64JLe: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if ((long)a <= (long)b) goto taken; goto fall; }
            case OpKind.CmpRI64JG: { ulong a = R64(c, op->Reg0), b = op->Imm; Cmp64(c, a, b); if ((long)a > (long)b) goto taken; goto fall; }
            case OpKind.TestRI64JZ: { ulong r = R64(c, op->Reg0) & op->Imm; Logic64(c, r); if (r == 0) goto taken; goto fall; }
            case OpKind.TestRI64JNz: { ulong r = R64(c, op->Reg0) & op->Imm; Logic64(c, r); if (r != 0) goto taken; goto fall; }
            case OpKind.TestRI64JS: { ulong r = R64(c, op->Reg0) & op->Imm; Logic64(c, r); if ((long)r < 0) goto taken; goto fall; }
            case OpKind.TestRI64JNs: { ulong r = R64(c, op->Reg0) & op->Imm; Logic64(c, r); if ((long)r >= 0) goto taken; goto fall; }
            case OpKind.TestRI64JLe: { ulong r = R64(c, op->Reg0) & op->Imm; Logic64(c, r); if ((long)r <= 0) goto taken; goto fall; }
            case OpKind.TestRI64JG: { ulong r = R64(c, op->Reg0) & op->Imm; Logic64(c, r); if ((long)r > 0) goto taken; goto fall; }
            case OpKind.Dec64JZ: Dec64(c, op); if (Flags.ZF(c)) goto taken; goto fall;
            case OpKind.SubRI64JZ: Sub64(c, op, op->Imm); if (Flags.ZF(c)) goto taken; goto fall;
            case OpKind.AddRI64JZ: Add64(c, op, op->Imm); if (Flags.ZF(c)) goto taken; goto fall;
            case OpKind.Dec64JNz: Dec64(c, op); if (!(Flags.ZF(c))) goto taken; goto fall;
            case OpKind.SubRI64JNz: Sub64(c, op, op->Imm); if (!(Flags.ZF(c))) goto taken; goto fall;
            case OpKind.AddRI64JNz: Add64(c, op, op->Imm); if (!(Flags.ZF(c))) goto taken; goto fall;
            case OpKind.CmpRR32JZ: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if (a == b) goto taken; goto fall; }
            case OpKind.CmpRR32JNz: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if (a != b) goto taken; goto fall; }
            case OpKind.CmpRR32JB: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if (a < b) goto taken; goto fall; }
            case OpKind.CmpRR32JAe: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if (a >= b) goto taken; goto fall; }
            case OpKind.CmpRR32JBe: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if (a <= b) goto taken; goto fall; }
            case OpKind.CmpRR32JA: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if (a > b) goto taken; goto fall; }
            case OpKind.CmpRR32JL: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if ((int)a < (int)b) goto taken; goto fall; }
            case OpKind.CmpRR32JGe: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if ((int)a >= (int)b) goto taken; goto fall; }
            case OpKind.CmpRR32JLe: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if ((int)a <= (int)b) goto taken; goto fall; }
            case OpKind.CmpRR32JG: { uint a = R32(c, op->Reg0), b = R32(c, op->Reg1); Cmp32(c, a, b); if ((int)a > (int)b) goto taken; goto fall; }
            case OpKind.TestRR32JZ: { uint r = R32(c, op->Reg0) & R32(c, op->Reg1); Logic32(c, r); if (r == 0) goto taken; goto fall; }
            case OpKind.TestRR32JNz: { uint r = R32(c, op->Reg0) & R32(c, op->Reg1); Logic32(c, r); if (r != 0) goto taken; goto fall; }
            case OpKind.TestRR32JS: { uint r = R32(c, op->Reg0) & R32(c, op->Reg1); Logic32(c, r); if ((int)r < 0) goto taken; goto fall; }
            case OpKind.TestRR32JNs: { uint r = R32(c, op->Reg0) & R32(c, op->Reg1); Logic32(c, r); if ((int)r >= 0) goto taken; goto fall; }
            case OpKind.TestRR32JLe: { uint r = R32(c, op->Reg0) & R32(c, op->Reg1); Logic32(c, r); if ((int)r <= 0) goto taken; goto fall; }
            case OpKind.TestRR32JG: { uint r = R32(c, op->Reg0) & R32(c, op->Reg1); Logic32(c, r); if ((int)r > 0) goto taken; goto fall; }
            case OpKind.CmpRI32JZ: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if (a == b) goto taken; goto fall; }
            case OpKind.CmpRI32JNz: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if (a != b) goto taken; goto fall; }
            case OpKind.CmpRI32JB: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if (a < b) goto taken; goto fall; }
            case OpKind.CmpRI32JAe: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if (a >= b) goto taken; goto fall; }
            case OpKind.CmpRI32JBe: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if (a <= b) goto taken; goto fall; }
            case OpKind.CmpRI32JA: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if (a > b) goto taken; goto fall; }
            case OpKind.CmpRI32JL: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if ((int)a < (int)b) goto taken; goto fall; }
            case OpKind.CmpRI32JGe: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if ((int)a >= (int)b) goto taken; goto fall; }
            case OpKind.CmpRI32JLe: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if ((int)a <= (int)b) goto taken; goto fall; }
            case OpKind.CmpRI32JG: { uint a = R32(c, op->Reg0), b = (uint)op->Imm; Cmp32(c, a, b); if ((int)a > (int)b) goto taken; goto fall; }
            case OpKind.TestRI32JZ: { uint r = R32(c, op->Reg0) & (uint)op->Imm; Logic32(c, r); if (r == 0) goto taken; goto fall; }
            case OpKind.TestRI32JNz: { uint r = R32(c, op->Reg0) & (uint)op->Imm; Logic32(c, r); if (r != 0) goto taken; goto fall; }
            case OpKind.TestRI32JS: { uint r = R32(c, op->Reg0) & (uint)op->Imm; Logic32(c, r); if ((int)r < 0) goto taken; goto fall; }
            case OpKind.TestRI32JNs: { uint r = R32(c, op->Reg0) & (uint)op->Imm; Logic32(c, r); if ((int)r >= 0) goto taken; goto fall; }
            case OpKind.TestRI32JLe: { uint r = R32(c, op->Reg0) & (uint)op->Imm; Logic32(c, r); if ((int)r <= 0) goto taken; goto fall; }
            case OpKind.TestRI32JG: { uint r = R32(c, op->Reg0) & (uint)op->Imm; Logic32(c, r); if ((int)r > 0) goto taken; goto fall; }
            case OpKind.Dec32JZ: Dec32(c, op); if (Flags.ZF(c)) goto taken; goto fall;
            case OpKind.SubRI32JZ: Sub32(c, op, (uint)op->Imm); if (Flags.ZF(c)) goto taken; goto fall;
            case OpKind.AddRI32JZ: Add32(c, op, (uint)op->Imm); if (Flags.ZF(c)) goto taken; goto fall;
            case OpKind.Dec32JNz: Dec32(c, op); if (!(Flags.ZF(c))) goto taken; goto fall;
            case OpKind.SubRI32JNz: Sub32(c, op, (uint)op->Imm); if (!(Flags.ZF(c))) goto taken; goto fall;
            case OpKind.AddRI32JNz: Add32(c, op, (uint)op->Imm); if (!(Flags.ZF(c))) goto taken; goto fall;
            case OpKind.TestRR8JZ: { byte r = (byte)(*((byte*)c + op->Reg0) & *((byte*)c + op->Reg1)); Logic8(c, r); if (r == 0) goto taken; goto fall; }
            case OpKind.TestRI8JZ: { byte r = (byte)(*((byte*)c + op->Reg0) & (byte)op->Imm); Logic8(c, r); if (r == 0) goto taken; goto fall; }
            case OpKind.CmpRI8JZ: { byte a = *((byte*)c + op->Reg0), b = (byte)op->Imm; Cmp8(c, a, b); if (a == b) goto taken; goto fall; }
            case OpKind.TestRR8JNz: { byte r = (byte)(*((byte*)c + op->Reg0) & *((byte*)c + op->Reg1)); Logic8(c, r); if (r != 0) goto taken; goto fall; }
            case OpKind.TestRI8JNz: { byte r = (byte)(*((byte*)c + op->Reg0) & (byte)op->Imm); Logic8(c, r); if (r != 0) goto taken; goto fall; }
            case OpKind.CmpRI8JNz: { byte a = *((byte*)c + op->Reg0), b = (byte)op->Imm; Cmp8(c, a, b); if (a != b) goto taken; goto fall; }
            case OpKind.Call64: linear = c->Gpr[4] - 8; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8) || CodeHit(e, linear)) goto generic; Volatile.Write(ref *(ulong*)(linear + (ulong)e->Addend), c->BlockRip + op->Offset + op->Length); if (CodeHit(e, linear)) CallOverwritten(c, linear, e); c->Gpr[4] = linear; goto taken;
            case OpKind.Ret64: linear = c->Gpr[4]; e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; rip = Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend)); j = _jumps + JumpIndex(rip); if (JumpMiss(c, j, rip)) goto generic; c->Gpr[4] = linear + 8 + op->Imm; goto jump;
            case OpKind.JmpR64: rip = R64(c, op->Reg0); j = _jumps + JumpIndex(rip); if (JumpMiss(c, j, rip)) goto generic; goto jump;
            case OpKind.JmpM64: linear = EffectiveAddress(c, op); e = Level1At(tlb, linear); if (ReadMiss(c, e, linear, 8)) goto generic; rip = Volatile.Read(ref *(ulong*)(linear + (ulong)e->Addend)); j = _jumps + JumpIndex(rip); if (JumpMiss(c, j, rip)) goto generic; goto jump;
            case OpKind.CallR64: rip = R64(c, op->Reg0); j = _jumps + JumpIndex(rip); if (JumpMiss(c, j, rip)) goto generic; linear = c->Gpr[4] - 8; e = Level1At(tlb, linear); if (WriteMiss(c, e, linear, 8) || CodeHit(e, linear)) goto generic; Volatile.Write(ref *(ulong*)(linear + (ulong)e->Addend), c->BlockRip + op->Offset + op->Length); if (CodeHit(e, linear)) CallOverwritten(c, linear, e); c->Gpr[4] = linear; goto jump;
            case OpKind.FallThrough: goto fall;
            case OpKind.FallThroughNarrow: c->Rip = NextRip(c, op); return LoopExit.Lookup;
            case OpKind.Stale: return Abandon(c, block, op);
            default: goto generic;
        }

    overwritten:
        EndWriteSlow(c, (byte*)(linear + (ulong)e->Addend), linear, op->Size);
        goto next;

    generic:
        switch (op->Handler(this, c, op))
        {
            case OpResult.Next:
                goto next;
            case OpResult.Skip:
                op += c->SkipOps - 1;
                goto next;
            case OpResult.EndBlock:
                if (NeedsAttention(c))
                    return LoopExit.Poll;
                rip = c->Rip;
                j = _jumps + JumpIndex(rip);
                if (JumpMiss(c, j, rip))
                    return LoopExit.Lookup;
                goto jump;
            case OpResult.RetiredExit:
                return LoopExit.RetiredExit;
            default:
                return Interrupt(c, block, op);
        }

    taken:
        rip = c->BlockRip + (ulong)op->Disp;
        if (block->Taken == null)
        {
            _link = &block->Taken;
            goto find;
        }
        block = block->Taken;
        goto follow;

    fall:
        rip = c->BlockRip + op->Offset + op->Length;
        if (block->Fall == null)
        {
            _link = &block->Fall;
            goto find;
        }
        block = block->Fall;

    follow:
        if (*(ulong*)&c->ExitRequest != 0)
        {
            c->Rip = rip;
            return LoopExit.Poll;
        }
        c->BlockRip = rip;
        goto enter;

    find:
        j = _jumps + JumpIndex(rip);
        if (*(ulong*)&c->ExitRequest != 0 || JumpMiss(c, j, rip))
        {
            c->Rip = rip;
            return LoopExit.Lookup;
        }
        c->Rip = rip;
        block = (Block*)(j->Packed & BlockAddress);
        Connect(c, block);
        c->BlockRip = rip;
        goto enter;

    jump:
        block = (Block*)(j->Packed & BlockAddress);
        goto follow;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)] private static ulong R64(CpuState* c, int offset) => *(ulong*)((byte*)c + offset);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] private static uint R32(CpuState* c, int offset) => *(uint*)((byte*)c + offset);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] private static void W64(CpuState* c, int offset, ulong value) => *(ulong*)((byte*)c + offset) = value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TlbEntry* Level1At(TlbEntry* tlb, ulong linear) => tlb + (linear >> 12 & (Tlb.Level1Entries - 1));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool ReadMiss(CpuState* c, TlbEntry* e, ulong linear, ulong size) => (((linear + size - 1) & ~0xfffUL) | c->TlbContext) != e->TagRead;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool WriteMiss(CpuState* c, TlbEntry* e, ulong linear, ulong size) => (((linear + size - 1) & ~0xfffUL) | c->TlbContext) != e->TagWrite;

    /// <summary>After a store: whether decoded code may lie where it went.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool CodeHit(TlbEntry* e, ulong linear) => (Volatile.Read(ref *e->CodeBits) >> (int)(linear >> 6) & 1) != 0;

    /// <summary>Whether the jump cache does not know a 64-bit target.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool JumpMiss(CpuState* c, JumpEntry* j, ulong rip)
        => j->Linear != rip || j->Packed >> 48 != (c->TlbContext | (ulong)c->BlockMode << 12) || c->BlockMode != BlockMode.Code64 || _jumpGeneration != Tlb.FetchGeneration;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void CallOverwritten(CpuState* c, ulong linear, TlbEntry* e) => EndWriteSlow(c, (byte*)(linear + (ulong)e->Addend), linear, 8);

    /// <summary>The block went stale under the processor.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static LoopExit Abandon(CpuState* c, Block* block, Op* op)
    {
        c->Rip = RipOf(c, op);
        Uncount(c, block, op);
        return LoopExit.Stale;
    }

    /// <summary>An instruction did not retire.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static LoopExit Interrupt(CpuState* c, Block* block, Op* op)
    {
        c->Rip = RipOf(c, op);
        Uncount(c, block, op);
        // A non-canonical operand in the stack segment is #SS(0).
        if (c->PendingNonCanonical != 0 && c->ExitPending == 0 && op->Seg == SegmentIndex.SS)
            c->PendingVector = Arch.Vector.SS;
        c->PendingNonCanonical = 0;
        return LoopExit.Fault;
    }

    /// <summary>Takes back the instructions of the block from <paramref name="op"/> on, which were counted at its entry. Ops before the last execute one instruction each.</summary>
    private static void Uncount(CpuState* c, Block* block, Op* op) => c->InstructionsRetired -= (ulong)(block->Instructions - (op - Block.FirstOp(block)));

    /// <summary>Links the successor slot in <see cref="_link"/> to its block when both lie in one page, so that the next transfer needs no lookup.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Connect(CpuState* c, Block* target)
    {
        Block** slot = _link;
        _link = null;
        bool samePage = ((c->BlockRip ^ c->Rip) & ~0xfffUL) == 0;
        if (!samePage || target->HostNext != null || c->BlockMode != BlockMode.Code64 || (target->Mode & BlockMode.Single) != 0 || Machine.ExternalWriters)
            return;
        *slot = target;
        // The block may have been invalidated by another processor before the link existed.
        Interlocked.MemoryBarrier();
        if (Block.FirstOp(target)->Kind == (ushort)OpKind.Stale)
            *slot = null;
    }

    /// <summary>Whether something must happen at this instruction boundary before the fast loop goes on.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool NeedsAttention(CpuState* c)
        => (c->InterruptShadow | c->StepMode | c->PendingDebug) != 0
        || (c->RequestInterruptWindow != 0 && (c->Rflags & Arch.Rflags.IF) != 0)
        || (c->RequestNmiWindow != 0 && c->NmiBlocked == 0);
}
