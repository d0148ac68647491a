using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>Why the run loop came back.</summary>
internal enum LoopExit
{
    /// <summary>CpuState.Rip needs a lookup.</summary>
    Lookup,
    /// <summary>The block went stale before the instruction at CpuState.Rip: the jump cache may still hold it.</summary>
    Stale,
    /// <summary>At a block boundary, CpuState.Rip exact: ExitRequest, Attention, the timer or an event needs a look.</summary>
    Poll,
    /// <summary>The instruction at CpuState.Rip did not retire: an exception or an exit is pending.</summary>
    Fault,
    /// <summary>The block at CpuState.Rip has a translation.</summary>
    Hot,
    /// <summary>An instruction retired and left an exit.</summary>
    RetiredExit,
}

/// <summary>The run loop.</summary>
/// <remarks>
/// Everything that is not an inline case is a call of the op's handler; the inline forms of memory operands fall back to it as well when they miss the TLB, so
/// slow paths are outside this method.
/// Keep it below RyuJIT's limits (60,000 bytes of IL, 2,000 basic blocks): beyond them it would be compiled without optimisation.
/// SAFETY: operand offsets come from the decoder and lie in CpuState; host addresses come from TLB hits; block pointers are used within the epoch.
/// </remarks>
internal sealed unsafe partial class Interpreter
{
    [SkipLocalsInit]
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private LoopExit RunLoop(CpuState* c, Block* block)
    {
        // Every case works on these few locals: a temporary of its own for each would be more than the compiler tracks in registers, and helpers more than it
        // inlines.
        byte* g = (byte*)c;
        TlbEntry* tlb = _level1;
        Op* op;
        TlbEntry* e;
        JumpEntry* j;
        uint mode = block->Mode & ~BlockMode.Single;
        ulong rip, linear, key = CodeFetch.JumpKey(c, mode), mask = mode == BlockMode.Code64 ? ulong.MaxValue : uint.MaxValue, x, y, r;
        uint u, v, w;
        int n;
    enter:
        if (block->VerifiedAt < c->EntryStamp && !BlockCache.Verify(block, c->EntryStamp))
        {
            c->Rip = c->BlockRip;
            return LoopExit.Stale;
        }
        x = c->InstructionsRetired;
        if (x >= c->TimerLook)
        {
            c->Rip = c->BlockRip;
            return LoopExit.Poll;
        }
        if (--block->Heat < 0 && _p.Translator.IsHot(c, block))
        {
            c->Rip = c->BlockRip;
            return LoopExit.Hot;
        }
        c->InstructionsRetired = x + block->Instructions;
        op = Block.FirstOp(block) - 1;
    next:
        op++;
        switch ((OpKind)op->Kind)
        {
            case OpKind.Generic: goto generic;
            case OpKind.Nop: goto next;
            case OpKind.MovRR64: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg1); goto next;
            case OpKind.MovRR32: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg1); goto next;
            case OpKind.MovRR8: *(g + op->Reg0) = *(g + op->Reg1); goto next;
            case OpKind.MovRI: *(ulong*)(g + op->Reg0) = op->Imm; goto next;
            case OpKind.MovzxB: *(ulong*)(g + op->Reg0) = *(g + op->Reg1); goto next;
            case OpKind.MovzxW: *(ulong*)(g + op->Reg0) = *(ushort*)(g + op->Reg1); goto next;
            case OpKind.MovsxB64: *(ulong*)(g + op->Reg0) = (ulong)*(sbyte*)(g + op->Reg1); goto next;
            case OpKind.MovsxW64: *(ulong*)(g + op->Reg0) = (ulong)*(short*)(g + op->Reg1); goto next;
            case OpKind.MovsxD64: *(ulong*)(g + op->Reg0) = (ulong)*(int*)(g + op->Reg1); goto next;
            case OpKind.MovsxB32: *(ulong*)(g + op->Reg0) = (uint)*(sbyte*)(g + op->Reg1); goto next;
            case OpKind.MovsxW32: *(ulong*)(g + op->Reg0) = (uint)*(short*)(g + op->Reg1); goto next;
            case OpKind.Lea64: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp; goto next;
            case OpKind.Lea32: *(ulong*)(g + op->Reg0) = (uint)(*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp); goto next;
            case OpKind.LeaBase64: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Base) + (ulong)op->Disp; goto next;
            case OpKind.Cqo: c->Gpr[2] = (ulong)((long)c->Gpr[0] >> 63); goto next;
            case OpKind.Cdq: c->Gpr[2] = (uint)((int)c->Gpr[0] >> 31); goto next;
            case OpKind.AddRR64: x = *(ulong*)(g + op->Reg0); y = *(ulong*)(g + op->Reg1); r = x + y; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = x & y | (x | y) & ~r; goto next;
            case OpKind.AddRI64: x = *(ulong*)(g + op->Reg0); y = op->Imm; r = x + y; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = x & y | (x | y) & ~r; goto next;
            case OpKind.SubRR64: x = *(ulong*)(g + op->Reg0); y = *(ulong*)(g + op->Reg1); r = x - y; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.SubRI64: x = *(ulong*)(g + op->Reg0); y = op->Imm; r = x - y; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.AndRR64: r = *(ulong*)(g + op->Reg0) & *(ulong*)(g + op->Reg1); *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = 0; goto next;
            case OpKind.AndRI64: r = *(ulong*)(g + op->Reg0) & op->Imm; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0;
                goto next;
            case OpKind.OrRR64: r = *(ulong*)(g + op->Reg0) | *(ulong*)(g + op->Reg1); *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = 0; goto next;
            case OpKind.OrRI64: r = *(ulong*)(g + op->Reg0) | op->Imm; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0;
                goto next;
            case OpKind.XorRR64: r = *(ulong*)(g + op->Reg0) ^ *(ulong*)(g + op->Reg1); *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = 0; goto next;
            case OpKind.XorRI64: r = *(ulong*)(g + op->Reg0) ^ op->Imm; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0;
                goto next;
            case OpKind.AdcRR64: x = *(ulong*)(g + op->Reg0); y = *(ulong*)(g + op->Reg1); r = x + y + (c->FlagsCarry >> 63); *(ulong*)(g + op->Reg0) = r;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = x & y | (x | y) & ~r; goto next;
            case OpKind.AdcRI64: x = *(ulong*)(g + op->Reg0); y = op->Imm; r = x + y + (c->FlagsCarry >> 63); *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = x & y | (x | y) & ~r; goto next;
            case OpKind.SbbRR64: x = *(ulong*)(g + op->Reg0); y = *(ulong*)(g + op->Reg1); r = x - y - (c->FlagsCarry >> 63); *(ulong*)(g + op->Reg0) = r;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.SbbRI64: x = *(ulong*)(g + op->Reg0); y = op->Imm; r = x - y - (c->FlagsCarry >> 63); *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.CmpRR64: x = *(ulong*)(g + op->Reg0); y = *(ulong*)(g + op->Reg1); r = x - y; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.CmpRI64: x = *(ulong*)(g + op->Reg0); y = op->Imm; r = x - y; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.TestRR64: r = (*(ulong*)(g + op->Reg0) & *(ulong*)(g + op->Reg1)); c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.TestRI64: r = (*(ulong*)(g + op->Reg0) & op->Imm); c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.Inc64: r = *(ulong*)(g + op->Reg0) + 1; *(ulong*)(g + op->Reg0) = r; y = c->FlagsCarry >> 63; x = r; c->FlagsZero = x;
                c->FlagsSign = x; c->FlagsCarry = y << 63 | (y ^ (r == 0x8000000000000000 ? 1UL : 0)) << 62 | ((r & 15) == 0 ? 8UL : 0); goto next;
            case OpKind.Dec64: r = *(ulong*)(g + op->Reg0) - 1; *(ulong*)(g + op->Reg0) = r; y = c->FlagsCarry >> 63; x = r; c->FlagsZero = x;
                c->FlagsSign = x; c->FlagsCarry = y << 63 | (y ^ (r == 0x7fffffffffffffff ? 1UL : 0)) << 62 | ((r & 15) == 15 ? 8UL : 0); goto next;
            case OpKind.Neg64: x = *(ulong*)(g + op->Reg0); r = 0 - x; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = x | r;
                goto next;
            case OpKind.ShlRI64: n = (int)op->Imm; x = *(ulong*)(g + op->Reg0); r = x << n; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = x << (n - 1) & 1UL << 63 | r >> 63 << 62; goto next;
            case OpKind.ShrRI64: n = (int)op->Imm; x = *(ulong*)(g + op->Reg0); r = x >> n; y = x >> (n - 1) & 1; *(ulong*)(g + op->Reg0) = r;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = y << 63 | (y << 62 ^ r & 1UL << 62); goto next;
            case OpKind.SarRI64: n = (int)op->Imm; x = *(ulong*)(g + op->Reg0); r = (ulong)((long)x >> n); y = (ulong)((long)x >> (n - 1)) & 1;
                *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = y << 63 | y << 62; goto next;
            case OpKind.Not64: *(ulong*)(g + op->Reg0) = ~*(ulong*)(g + op->Reg0); goto next;
            case OpKind.ImulRR64: Imul64(c, op, *(ulong*)(g + op->Reg0), *(ulong*)(g + op->Reg1)); goto next;
            case OpKind.ImulRRI64: Imul64(c, op, *(ulong*)(g + op->Reg1), op->Imm); goto next;
            case OpKind.AddRR32: u = *(uint*)(g + op->Reg0); v = *(uint*)(g + op->Reg1); w = u + v; *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w;
                c->FlagsZero = r; c->FlagsSign = r; w = u & v | (u | v) & ~w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.AddRI32: u = *(uint*)(g + op->Reg0); v = (uint)op->Imm; w = u + v; *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; w = u & v | (u | v) & ~w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.SubRR32: u = *(uint*)(g + op->Reg0); v = *(uint*)(g + op->Reg1); w = u - v; *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w;
                c->FlagsZero = r; c->FlagsSign = r; w = ~u & v | (~u | v) & w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.SubRI32: u = *(uint*)(g + op->Reg0); v = (uint)op->Imm; w = u - v; *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; w = ~u & v | (~u | v) & w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.AndRR32: w = *(uint*)(g + op->Reg0) & *(uint*)(g + op->Reg1); *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.AndRI32: w = *(uint*)(g + op->Reg0) & (uint)op->Imm; *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.OrRR32: w = *(uint*)(g + op->Reg0) | *(uint*)(g + op->Reg1); *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.OrRI32: w = *(uint*)(g + op->Reg0) | (uint)op->Imm; *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.XorRR32: w = *(uint*)(g + op->Reg0) ^ *(uint*)(g + op->Reg1); *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.XorRI32: w = *(uint*)(g + op->Reg0) ^ (uint)op->Imm; *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.CmpRR32: u = *(uint*)(g + op->Reg0); v = *(uint*)(g + op->Reg1); w = u - v; r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r;
                w = ~u & v | (~u | v) & w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.CmpRI32: u = *(uint*)(g + op->Reg0); v = (uint)op->Imm; w = u - v; r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r;
                w = ~u & v | (~u | v) & w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.TestRR32: w = (*(uint*)(g + op->Reg0) & *(uint*)(g + op->Reg1)); r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = 0; goto next;
            case OpKind.TestRI32: w = (*(uint*)(g + op->Reg0) & (uint)op->Imm); r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0;
                goto next;
            case OpKind.Inc32: w = *(uint*)(g + op->Reg0) + 1; *(ulong*)(g + op->Reg0) = w; y = c->FlagsCarry >> 63; x = (ulong)(int)w; c->FlagsZero = x;
                c->FlagsSign = x; c->FlagsCarry = y << 63 | (y ^ (w == 0x80000000 ? 1UL : 0)) << 62 | ((w & 15) == 0 ? 8UL : 0); goto next;
            case OpKind.Dec32: w = *(uint*)(g + op->Reg0) - 1; *(ulong*)(g + op->Reg0) = w; y = c->FlagsCarry >> 63; x = (ulong)(int)w; c->FlagsZero = x;
                c->FlagsSign = x; c->FlagsCarry = y << 63 | (y ^ (w == 0x7fffffff ? 1UL : 0)) << 62 | ((w & 15) == 15 ? 8UL : 0); goto next;
            case OpKind.Neg32: u = *(uint*)(g + op->Reg0); w = 0 - u; *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r;
                w = u | w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.ShlRI32: n = (int)op->Imm; u = *(uint*)(g + op->Reg0); w = u << n; r = (ulong)(int)w; *(ulong*)(g + op->Reg0) = w; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = (ulong)(u << (n - 1) >> 31) << 63 | (ulong)(w >> 31) << 62; goto next;
            case OpKind.ShrRI32: n = (int)op->Imm; u = *(uint*)(g + op->Reg0); w = u >> n; v = u >> (n - 1) & 1; *(ulong*)(g + op->Reg0) = w;
                c->FlagsZero = w; c->FlagsSign = w; c->FlagsCarry = (ulong)v << 63 | (ulong)(v ^ w >> 30) << 62; goto next;
            case OpKind.SarRI32: n = (int)op->Imm; u = *(uint*)(g + op->Reg0); w = (uint)((int)u >> n); v = (uint)((int)u >> (n - 1)) & 1; r = (ulong)(int)w;
                *(ulong*)(g + op->Reg0) = w; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = (ulong)v << 63 | (ulong)v << 62; goto next;
            case OpKind.Not32: *(ulong*)(g + op->Reg0) = ~*(uint*)(g + op->Reg0); goto next;
            case OpKind.ImulRR32: Imul32(c, op, *(uint*)(g + op->Reg0), *(uint*)(g + op->Reg1)); goto next;
            case OpKind.ImulRRI32: Imul32(c, op, *(uint*)(g + op->Reg1), (uint)op->Imm); goto next;
            case OpKind.CmpRR8: u = *(byte*)(g + op->Reg0); v = *(byte*)(g + op->Reg1); w = (byte)(u - v); r = (ulong)(sbyte)w; c->FlagsZero = r;
                c->FlagsSign = r; w = (byte)(~u & v | (~u | v) & w); c->FlagsCarry = (ulong)w << 56 | w; goto next;
            case OpKind.CmpRI8: u = *(byte*)(g + op->Reg0); v = (byte)op->Imm; w = (byte)(u - v); r = (ulong)(sbyte)w; c->FlagsZero = r; c->FlagsSign = r;
                w = (byte)(~u & v | (~u | v) & w); c->FlagsCarry = (ulong)w << 56 | w; goto next;
            case OpKind.TestRR8: w = (uint)(*(byte*)(g + op->Reg0) & *(byte*)(g + op->Reg1)); r = (ulong)(sbyte)w; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = 0; goto next;
            case OpKind.TestRI8: w = (uint)(*(byte*)(g + op->Reg0) & (byte)op->Imm); r = (ulong)(sbyte)w; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = 0; goto next;
            case OpKind.AddRR64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) + *(ulong*)(g + op->Reg1); goto next;
            case OpKind.AddRI64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) + op->Imm; goto next;
            case OpKind.SubRR64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) - *(ulong*)(g + op->Reg1); goto next;
            case OpKind.SubRI64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) - op->Imm; goto next;
            case OpKind.AndRR64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) & *(ulong*)(g + op->Reg1); goto next;
            case OpKind.AndRI64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) & op->Imm; goto next;
            case OpKind.OrRR64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) | *(ulong*)(g + op->Reg1); goto next;
            case OpKind.OrRI64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) | op->Imm; goto next;
            case OpKind.XorRR64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) ^ *(ulong*)(g + op->Reg1); goto next;
            case OpKind.XorRI64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) ^ op->Imm; goto next;
            case OpKind.ShlRI64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) << (int)op->Imm; goto next;
            case OpKind.ShrRI64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) >> (int)op->Imm; goto next;
            case OpKind.SarRI64Nf: *(ulong*)(g + op->Reg0) = (ulong)(*(long*)(g + op->Reg0) >> (int)op->Imm); goto next;
            case OpKind.ShlCl64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) << (int)c->Gpr[1]; goto next;
            case OpKind.ShrCl64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) >> (int)c->Gpr[1]; goto next;
            case OpKind.SarCl64Nf: *(ulong*)(g + op->Reg0) = (ulong)(*(long*)(g + op->Reg0) >> (int)c->Gpr[1]); goto next;
            case OpKind.ImulRR64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg0) * *(ulong*)(g + op->Reg1); goto next;
            case OpKind.ImulRRI64Nf: *(ulong*)(g + op->Reg0) = *(ulong*)(g + op->Reg1) * op->Imm; goto next;
            case OpKind.Neg64Nf: *(ulong*)(g + op->Reg0) = 0 - *(ulong*)(g + op->Reg0); goto next;
            case OpKind.RolRI64: n = (int)op->Imm; x = *(ulong*)(g + op->Reg0); r = x << n | x >> (64 - n); *(ulong*)(g + op->Reg0) = r;
                c->FlagsCarry = c->FlagsCarry & 8 | (ulong)r << 63 | (ulong)(r >> 63) << 62; goto next;
            case OpKind.RolRI64Nf: n = (int)op->Imm; x = *(ulong*)(g + op->Reg0); r = x << n | x >> (64 - n); *(ulong*)(g + op->Reg0) = r; goto next;
            case OpKind.RorRI64: n = (int)op->Imm; x = *(ulong*)(g + op->Reg0); r = x >> n | x << (64 - n); *(ulong*)(g + op->Reg0) = r;
                c->FlagsCarry = c->FlagsCarry & 8 | (ulong)(r >> 63) << 63 | ((ulong)(r >> 62) & 1) << 62; goto next;
            case OpKind.RorRI64Nf: n = (int)op->Imm; x = *(ulong*)(g + op->Reg0); r = x >> n | x << (64 - n); *(ulong*)(g + op->Reg0) = r; goto next;
            case OpKind.ShlCl64: if (((int)c->Gpr[1] & 63) == 0) goto next; n = (int)c->Gpr[1] & 63; x = *(ulong*)(g + op->Reg0); r = x << n;
                *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = x << (n - 1) & 1UL << 63 | r >> 63 << 62; goto next;
            case OpKind.ShrCl64: if (((int)c->Gpr[1] & 63) == 0) goto next; n = (int)c->Gpr[1] & 63; x = *(ulong*)(g + op->Reg0); r = x >> n;
                y = x >> (n - 1) & 1; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = y << 63 | (y << 62 ^ r & 1UL << 62);
                goto next;
            case OpKind.SarCl64: if (((int)c->Gpr[1] & 63) == 0) goto next; n = (int)c->Gpr[1] & 63; x = *(ulong*)(g + op->Reg0); r = (ulong)((long)x >> n);
                y = (ulong)((long)x >> (n - 1)) & 1; *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = y << 63 | y << 62;
                goto next;
            case OpKind.AddRR32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) + *(uint*)(g + op->Reg1); goto next;
            case OpKind.AddRI32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) + (uint)op->Imm; goto next;
            case OpKind.SubRR32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) - *(uint*)(g + op->Reg1); goto next;
            case OpKind.SubRI32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) - (uint)op->Imm; goto next;
            case OpKind.AndRR32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) & *(uint*)(g + op->Reg1); goto next;
            case OpKind.AndRI32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) & (uint)op->Imm; goto next;
            case OpKind.OrRR32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) | *(uint*)(g + op->Reg1); goto next;
            case OpKind.OrRI32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) | (uint)op->Imm; goto next;
            case OpKind.XorRR32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) ^ *(uint*)(g + op->Reg1); goto next;
            case OpKind.XorRI32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) ^ (uint)op->Imm; goto next;
            case OpKind.ShlRI32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) << (int)op->Imm; goto next;
            case OpKind.ShrRI32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) >> (int)op->Imm; goto next;
            case OpKind.SarRI32Nf: *(ulong*)(g + op->Reg0) = (uint)(*(int*)(g + op->Reg0) >> (int)op->Imm); goto next;
            case OpKind.ShlCl32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) << (int)c->Gpr[1]; goto next;
            case OpKind.ShrCl32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) >> (int)c->Gpr[1]; goto next;
            case OpKind.SarCl32Nf: *(ulong*)(g + op->Reg0) = (uint)(*(int*)(g + op->Reg0) >> (int)c->Gpr[1]); goto next;
            case OpKind.ImulRR32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0) * *(uint*)(g + op->Reg1); goto next;
            case OpKind.ImulRRI32Nf: *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg1) * (uint)op->Imm; goto next;
            case OpKind.Neg32Nf: *(ulong*)(g + op->Reg0) = 0 - *(uint*)(g + op->Reg0); goto next;
            case OpKind.RolRI32: n = (int)op->Imm; u = *(uint*)(g + op->Reg0); w = u << n | u >> (32 - n); *(ulong*)(g + op->Reg0) = w;
                c->FlagsCarry = c->FlagsCarry & 8 | (ulong)w << 63 | (ulong)(w >> 31) << 62; goto next;
            case OpKind.RolRI32Nf: n = (int)op->Imm; u = *(uint*)(g + op->Reg0); w = u << n | u >> (32 - n); *(ulong*)(g + op->Reg0) = w; goto next;
            case OpKind.RorRI32: n = (int)op->Imm; u = *(uint*)(g + op->Reg0); w = u >> n | u << (32 - n); *(ulong*)(g + op->Reg0) = w;
                c->FlagsCarry = c->FlagsCarry & 8 | (ulong)(w >> 31) << 63 | ((ulong)(w >> 30) & 1) << 62; goto next;
            case OpKind.RorRI32Nf: n = (int)op->Imm; u = *(uint*)(g + op->Reg0); w = u >> n | u << (32 - n); *(ulong*)(g + op->Reg0) = w; goto next;
            case OpKind.ShlCl32: if (((int)c->Gpr[1] & 31) == 0) { *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0); goto next; } n = (int)c->Gpr[1] & 31;
                u = *(uint*)(g + op->Reg0); w = u << n; r = (ulong)(int)w; *(ulong*)(g + op->Reg0) = w; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = (ulong)(u << (n - 1) >> 31) << 63 | (ulong)(w >> 31) << 62; goto next;
            case OpKind.ShrCl32: if (((int)c->Gpr[1] & 31) == 0) { *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0); goto next; } n = (int)c->Gpr[1] & 31;
                u = *(uint*)(g + op->Reg0); w = u >> n; v = u >> (n - 1) & 1; *(ulong*)(g + op->Reg0) = w; c->FlagsZero = w; c->FlagsSign = w;
                c->FlagsCarry = (ulong)v << 63 | (ulong)(v ^ w >> 30) << 62; goto next;
            case OpKind.SarCl32: if (((int)c->Gpr[1] & 31) == 0) { *(ulong*)(g + op->Reg0) = *(uint*)(g + op->Reg0); goto next; } n = (int)c->Gpr[1] & 31;
                u = *(uint*)(g + op->Reg0); w = (uint)((int)u >> n); v = (uint)((int)u >> (n - 1)) & 1; r = (ulong)(int)w; *(ulong*)(g + op->Reg0) = w;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = (ulong)v << 63 | (ulong)v << 62; goto next;
            case OpKind.MulR64: Mul64(c, *(ulong*)(g + op->Reg0)); goto next;
            case OpKind.MulxRR64: Mulx64(c, op, *(ulong*)(g + op->Reg2)); goto next;
            case OpKind.AdcxRR64: x = *(ulong*)(g + op->Reg0); y = *(ulong*)(g + op->Reg1); linear = c->FlagsCarry; r = x + y + (linear >> 63);
                *(ulong*)(g + op->Reg0) = r; x = (x & y | (x | y) & ~r) >> 63;
                c->FlagsCarry = linear & 8 | x << 63 | (x ^ (linear ^ linear << 1) >> 63) << 62; goto next;
            case OpKind.AdoxRR64: x = *(ulong*)(g + op->Reg0); y = *(ulong*)(g + op->Reg1); linear = c->FlagsCarry;
                r = x + y + ((linear ^ linear << 1) >> 63); *(ulong*)(g + op->Reg0) = r; x = (x & y | (x | y) & ~r) >> 63;
                c->FlagsCarry = linear & (8 | 1UL << 63) | (linear >> 63 ^ x) << 62; goto next;
            case OpKind.Load64B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                *(ulong*)(g + op->Reg0) = *(ulong*)(linear + (ulong)e->Addend); goto next;
            case OpKind.Load32B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                *(ulong*)(g + op->Reg0) = *(uint*)(linear + (ulong)e->Addend); goto next;
            case OpKind.LoadzxWB: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 1) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                *(ulong*)(g + op->Reg0) = *(ushort*)(linear + (ulong)e->Addend); goto next;
            case OpKind.LoadzxBB: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                *(ulong*)(g + op->Reg0) = *(byte*)(linear + (ulong)e->Addend); goto next;
            case OpKind.Load8B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op; *(g + op->Reg0) = *(byte*)(linear + (ulong)e->Addend);
                goto next;
            case OpKind.LoadsxD64B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                *(ulong*)(g + op->Reg0) = (ulong)*(int*)(linear + (ulong)e->Addend); goto next;
            case OpKind.Store64B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(ulong*)(linear + (ulong)e->Addend) = *(ulong*)(g + op->Reg1); if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.Store32B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(uint*)(linear + (ulong)e->Addend) = *(uint*)(g + op->Reg1); if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.Store16B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 1) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(ushort*)(linear + (ulong)e->Addend) = *(ushort*)(g + op->Reg1); if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten;
                goto next;
            case OpKind.Store8B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if ((linear & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(byte*)(linear + (ulong)e->Addend) = *(byte*)(g + op->Reg1); if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.StoreI64B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op; *(ulong*)(linear + (ulong)e->Addend) = op->Imm;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.StoreI32B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(uint*)(linear + (ulong)e->Addend) = (uint)op->Imm; if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.StoreI8B: linear = (*(ulong*)(g + op->Base) + (ulong)op->Disp) & mask; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if ((linear & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op; *(byte*)(linear + (ulong)e->Addend) = (byte)op->Imm;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.Load64X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; *(ulong*)(g + op->Reg0) = *(ulong*)(linear + (ulong)e->Addend); goto next;
            case OpKind.Load32X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; *(ulong*)(g + op->Reg0) = *(uint*)(linear + (ulong)e->Addend); goto next;
            case OpKind.LoadzxWX:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 1) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; *(ulong*)(g + op->Reg0) = *(ushort*)(linear + (ulong)e->Addend); goto next;
            case OpKind.LoadzxBX:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                *(ulong*)(g + op->Reg0) = *(byte*)(linear + (ulong)e->Addend); goto next;
            case OpKind.Load8X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                *(g + op->Reg0) = *(byte*)(linear + (ulong)e->Addend); goto next;
            case OpKind.LoadsxD64X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; *(ulong*)(g + op->Reg0) = (ulong)*(int*)(linear + (ulong)e->Addend); goto next;
            case OpKind.Store64X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; *(ulong*)(linear + (ulong)e->Addend) = *(ulong*)(g + op->Reg1);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.Store32X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; *(uint*)(linear + (ulong)e->Addend) = *(uint*)(g + op->Reg1);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.Store16X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 1) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; *(ushort*)(linear + (ulong)e->Addend) = *(ushort*)(g + op->Reg1);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.Store8X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(byte*)(linear + (ulong)e->Addend) = *(byte*)(g + op->Reg1); if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.StoreI64X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; *(ulong*)(linear + (ulong)e->Addend) = op->Imm; if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten;
                goto next;
            case OpKind.StoreI32X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; *(uint*)(linear + (ulong)e->Addend) = (uint)op->Imm; if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten;
                goto next;
            case OpKind.StoreI8X:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(byte*)(linear + (ulong)e->Addend) = (byte)op->Imm; if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.AddRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; x = *(ulong*)(g + op->Reg0); y = *(ulong*)(linear + (ulong)e->Addend); r = x + y; *(ulong*)(g + op->Reg0) = r;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = x & y | (x | y) & ~r; goto next;
            case OpKind.SubRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; x = *(ulong*)(g + op->Reg0); y = *(ulong*)(linear + (ulong)e->Addend); r = x - y; *(ulong*)(g + op->Reg0) = r;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.AndRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; r = *(ulong*)(g + op->Reg0) & *(ulong*)(linear + (ulong)e->Addend); *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.OrRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; r = *(ulong*)(g + op->Reg0) | *(ulong*)(linear + (ulong)e->Addend); *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r;
                c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.AdcRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; x = *(ulong*)(g + op->Reg0); y = *(ulong*)(linear + (ulong)e->Addend); r = x + y + (c->FlagsCarry >> 63);
                *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = x & y | (x | y) & ~r; goto next;
            case OpKind.SbbRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; x = *(ulong*)(g + op->Reg0); y = *(ulong*)(linear + (ulong)e->Addend); r = x - y - (c->FlagsCarry >> 63);
                *(ulong*)(g + op->Reg0) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.CmpRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; x = *(ulong*)(g + op->Reg0); y = *(ulong*)(linear + (ulong)e->Addend); r = x - y; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.CmpMR64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; x = *(ulong*)(linear + (ulong)e->Addend); y = *(ulong*)(g + op->Reg1); r = x - y; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.CmpMI64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; x = *(ulong*)(linear + (ulong)e->Addend); y = op->Imm; r = x - y; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = ~x & y | (~x | y) & r; goto next;
            case OpKind.AddMR64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; x = *(ulong*)(linear + (ulong)e->Addend); y = *(ulong*)(g + op->Reg1); r = x + y; *(ulong*)(linear + (ulong)e->Addend) = r;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = x & y | (x | y) & ~r; if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten;
                goto next;
            case OpKind.AddMI64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; x = *(ulong*)(linear + (ulong)e->Addend); y = op->Imm; r = x + y; *(ulong*)(linear + (ulong)e->Addend) = r;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = x & y | (x | y) & ~r; if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten;
                goto next;
            case OpKind.AdcMR64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; x = *(ulong*)(linear + (ulong)e->Addend); y = *(ulong*)(g + op->Reg1); r = x + y + (c->FlagsCarry >> 63);
                *(ulong*)(linear + (ulong)e->Addend) = r; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = x & y | (x | y) & ~r;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.IncM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; r = *(ulong*)(linear + (ulong)e->Addend) + 1; *(ulong*)(linear + (ulong)e->Addend) = r; y = c->FlagsCarry >> 63; x = r;
                c->FlagsZero = x; c->FlagsSign = x; c->FlagsCarry = y << 63 | (y ^ (r == 0x8000000000000000 ? 1UL : 0)) << 62 | ((r & 15) == 0 ? 8UL : 0);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.DecM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; r = *(ulong*)(linear + (ulong)e->Addend) - 1; *(ulong*)(linear + (ulong)e->Addend) = r; y = c->FlagsCarry >> 63; x = r;
                c->FlagsZero = x; c->FlagsSign = x; c->FlagsCarry = y << 63 | (y ^ (r == 0x7fffffffffffffff ? 1UL : 0)) << 62 | ((r & 15) == 15 ? 8UL : 0);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.AddRM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; u = *(uint*)(g + op->Reg0); v = *(uint*)(linear + (ulong)e->Addend); w = u + v; *(ulong*)(g + op->Reg0) = w;
                r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r; w = u & v | (u | v) & ~w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.SubRM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; u = *(uint*)(g + op->Reg0); v = *(uint*)(linear + (ulong)e->Addend); w = u - v; *(ulong*)(g + op->Reg0) = w;
                r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r; w = ~u & v | (~u | v) & w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.AndRM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; w = *(uint*)(g + op->Reg0) & *(uint*)(linear + (ulong)e->Addend); *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.OrRM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; w = *(uint*)(g + op->Reg0) | *(uint*)(linear + (ulong)e->Addend); *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.XorRM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; w = *(uint*)(g + op->Reg0) ^ *(uint*)(linear + (ulong)e->Addend); *(ulong*)(g + op->Reg0) = w; r = (ulong)(int)w;
                c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0; goto next;
            case OpKind.CmpRM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; u = *(uint*)(g + op->Reg0); v = *(uint*)(linear + (ulong)e->Addend); w = u - v; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; w = ~u & v | (~u | v) & w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.CmpMR32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; u = *(uint*)(linear + (ulong)e->Addend); v = *(uint*)(g + op->Reg1); w = u - v; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; w = ~u & v | (~u | v) & w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.TestMR32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; w = (*(uint*)(linear + (ulong)e->Addend) & *(uint*)(g + op->Reg1)); r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = 0; goto next;
            case OpKind.CmpMI32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; u = *(uint*)(linear + (ulong)e->Addend); v = (uint)op->Imm; w = u - v; r = (ulong)(int)w; c->FlagsZero = r;
                c->FlagsSign = r; w = ~u & v | (~u | v) & w; c->FlagsCarry = (ulong)w << 32 | w; goto next;
            case OpKind.TestMI32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; w = (*(uint*)(linear + (ulong)e->Addend) & (uint)op->Imm); r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r;
                c->FlagsCarry = 0; goto next;
            case OpKind.AddMR32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; u = *(uint*)(linear + (ulong)e->Addend); v = *(uint*)(g + op->Reg1); w = u + v; *(uint*)(linear + (ulong)e->Addend) = w;
                r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r; w = u & v | (u | v) & ~w; c->FlagsCarry = (ulong)w << 32 | w;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.AddMI32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; u = *(uint*)(linear + (ulong)e->Addend); v = (uint)op->Imm; w = u + v; *(uint*)(linear + (ulong)e->Addend) = w;
                r = (ulong)(int)w; c->FlagsZero = r; c->FlagsSign = r; w = u & v | (u | v) & ~w; c->FlagsCarry = (ulong)w << 32 | w;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.IncM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; w = *(uint*)(linear + (ulong)e->Addend) + 1; *(uint*)(linear + (ulong)e->Addend) = w; y = c->FlagsCarry >> 63;
                x = (ulong)(int)w; c->FlagsZero = x; c->FlagsSign = x;
                c->FlagsCarry = y << 63 | (y ^ (w == 0x80000000 ? 1UL : 0)) << 62 | ((w & 15) == 0 ? 8UL : 0);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.DecM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; w = *(uint*)(linear + (ulong)e->Addend) - 1; *(uint*)(linear + (ulong)e->Addend) = w; y = c->FlagsCarry >> 63;
                x = (ulong)(int)w; c->FlagsZero = x; c->FlagsSign = x;
                c->FlagsCarry = y << 63 | (y ^ (w == 0x7fffffff ? 1UL : 0)) << 62 | ((w & 15) == 15 ? 8UL : 0);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.ImulRM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; Imul32(c, op, *(uint*)(g + op->Reg0), *(uint*)(linear + (ulong)e->Addend)); goto next;
            case OpKind.CmpMI8:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                u = *(byte*)(linear + (ulong)e->Addend); v = (byte)op->Imm; w = (byte)(u - v); r = (ulong)(sbyte)w; c->FlagsZero = r; c->FlagsSign = r;
                w = (byte)(~u & v | (~u | v) & w); c->FlagsCarry = (ulong)w << 56 | w; goto next;
            case OpKind.CmpMR8:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                u = *(byte*)(linear + (ulong)e->Addend); v = *(byte*)(g + op->Reg1); w = (byte)(u - v); r = (ulong)(sbyte)w; c->FlagsZero = r;
                c->FlagsSign = r; w = (byte)(~u & v | (~u | v) & w); c->FlagsCarry = (ulong)w << 56 | w; goto next;
            case OpKind.CmpRM8:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                u = *(byte*)(g + op->Reg0); v = *(byte*)(linear + (ulong)e->Addend); w = (byte)(u - v); r = (ulong)(sbyte)w; c->FlagsZero = r;
                c->FlagsSign = r; w = (byte)(~u & v | (~u | v) & w); c->FlagsCarry = (ulong)w << 56 | w; goto next;
            case OpKind.TestMI8:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                w = (uint)(*(byte*)(linear + (ulong)e->Addend) & (byte)op->Imm); r = (ulong)(sbyte)w; c->FlagsZero = r; c->FlagsSign = r; c->FlagsCarry = 0;
                goto next;
            case OpKind.MulM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; Mul64(c, *(ulong*)(linear + (ulong)e->Addend)); goto next;
            case OpKind.MulxRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; Mulx64(c, op, *(ulong*)(linear + (ulong)e->Addend)); goto next;
            case OpKind.AdcxRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; x = *(ulong*)(g + op->Reg0); y = *(ulong*)(linear + (ulong)e->Addend); linear = c->FlagsCarry; r = x + y + (linear >> 63);
                *(ulong*)(g + op->Reg0) = r; x = (x & y | (x | y) & ~r) >> 63; c->FlagsCarry = linear & 8 | x << 63 | (x ^ (linear ^ linear << 1) >> 63) << 62;
                goto next;
            case OpKind.AdoxRM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; x = *(ulong*)(g + op->Reg0); y = *(ulong*)(linear + (ulong)e->Addend); linear = c->FlagsCarry;
                r = x + y + ((linear ^ linear << 1) >> 63); *(ulong*)(g + op->Reg0) = r; x = (x & y | (x | y) & ~r) >> 63;
                c->FlagsCarry = linear & (8 | 1UL << 63) | (linear >> 63 ^ x) << 62; goto next;
            case OpKind.LoadsxB64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                *(ulong*)(g + op->Reg0) = (ulong)*(sbyte*)(linear + (ulong)e->Addend); goto next;
            case OpKind.LoadsxW64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 1) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; *(ulong*)(g + op->Reg0) = (ulong)*(short*)(linear + (ulong)e->Addend); goto next;
            case OpKind.LoadsxB32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if ((linear & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op;
                *(ulong*)(g + op->Reg0) = (uint)*(sbyte*)(linear + (ulong)e->Addend); goto next;
            case OpKind.LoadsxW32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 1) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; *(ulong*)(g + op->Reg0) = (uint)*(short*)(linear + (ulong)e->Addend); goto next;
            case OpKind.Push64: linear = c->Gpr[4] - 8; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(ulong*)(linear + (ulong)e->Addend) = *(ulong*)(g + op->Reg0); c->Gpr[4] = linear;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.Pop64: linear = c->Gpr[4]; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op; x = *(ulong*)(linear + (ulong)e->Addend);
                c->Gpr[4] = linear + 8; *(ulong*)(g + op->Reg0) = x; goto next;
            case OpKind.Push32: linear = (uint)c->Gpr[4] - 4U; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(uint*)(linear + (ulong)e->Addend) = *(uint*)(g + op->Reg0); c->Gpr[4] = linear;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) goto overwritten; goto next;
            case OpKind.Pop32: linear = (uint)c->Gpr[4]; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op; x = *(uint*)(linear + (ulong)e->Addend);
                c->Gpr[4] = (uint)(linear + 4); *(ulong*)(g + op->Reg0) = x; goto next;
            case OpKind.Jmp: goto taken;
            case OpKind.JO: if ((long)(c->FlagsCarry ^ c->FlagsCarry << 1) < 0) goto taken; goto fall;
            case OpKind.JNo: if (!((long)(c->FlagsCarry ^ c->FlagsCarry << 1) < 0)) goto taken; goto fall;
            case OpKind.JB: if ((long)c->FlagsCarry < 0) goto taken; goto fall;
            case OpKind.JAe: if ((long)c->FlagsCarry >= 0) goto taken; goto fall;
            case OpKind.JZ: if (c->FlagsZero == 0) goto taken; goto fall;
            case OpKind.JNz: if (c->FlagsZero != 0) goto taken; goto fall;
            case OpKind.JBe: if ((long)c->FlagsCarry < 0 || c->FlagsZero == 0) goto taken; goto fall;
            case OpKind.JA: if ((long)c->FlagsCarry >= 0 && c->FlagsZero != 0) goto taken; goto fall;
            case OpKind.JS: if ((long)c->FlagsSign < 0) goto taken; goto fall;
            case OpKind.JNs: if ((long)c->FlagsSign >= 0) goto taken; goto fall;
            case OpKind.JP: if (Flags.PF(c)) goto taken; goto fall;
            case OpKind.JNp: if (!Flags.PF(c)) goto taken; goto fall;
            case OpKind.JL: if ((long)(c->FlagsSign ^ c->FlagsCarry ^ c->FlagsCarry << 1) < 0) goto taken; goto fall;
            case OpKind.JGe: if ((long)(c->FlagsSign ^ c->FlagsCarry ^ c->FlagsCarry << 1) >= 0) goto taken; goto fall;
            case OpKind.JLe: if (c->FlagsZero == 0 || (long)(c->FlagsSign ^ c->FlagsCarry ^ c->FlagsCarry << 1) < 0) goto taken; goto fall;
            case OpKind.JG: if (c->FlagsZero != 0 && (long)(c->FlagsSign ^ c->FlagsCarry ^ c->FlagsCarry << 1) >= 0) goto taken; goto fall;
            case OpKind.Call64: linear = c->Gpr[4] - 8; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(ulong*)(linear + (ulong)e->Addend) = c->BlockRip + op->Offset + op->Length;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) CallOverwritten(c, linear, e); c->Gpr[4] = linear; goto taken;
            case OpKind.Ret64: linear = c->Gpr[4]; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op; rip = *(ulong*)(linear + (ulong)e->Addend);
                j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1)); if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic;
                c->Gpr[4] = linear + 8 + op->Imm; goto jump;
            case OpKind.JmpR64: rip = *(ulong*)(g + op->Reg0); j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1));
                if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic; goto jump;
            case OpKind.JmpM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; rip = *(ulong*)(linear + (ulong)e->Addend); j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1));
                if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic; goto jump;
            case OpKind.CallR64: rip = *(ulong*)(g + op->Reg0); j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1));
                if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic; linear = c->Gpr[4] - 8;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; *(ulong*)(linear + (ulong)e->Addend) = c->BlockRip + op->Offset + op->Length;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) CallOverwritten(c, linear, e); c->Gpr[4] = linear; goto jump;
            case OpKind.CallM64:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; rip = *(ulong*)(linear + (ulong)e->Addend); j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1));
                if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic; linear = c->Gpr[4] - 8; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 7) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                *(ulong*)(linear + (ulong)e->Addend) = c->BlockRip + op->Offset + op->Length;
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) CallOverwritten(c, linear, e); c->Gpr[4] = linear; goto jump;
            case OpKind.Call32: linear = (uint)c->Gpr[4] - 4U; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic; c->CurrentOp = op;
                *(uint*)(linear + (ulong)e->Addend) = (uint)(c->BlockRip + op->Offset + op->Length);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) CallOverwritten(c, linear, e); c->Gpr[4] = linear; goto taken;
            case OpKind.Ret32: linear = (uint)c->Gpr[4]; e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1));
                if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic; c->CurrentOp = op; rip = *(uint*)(linear + (ulong)e->Addend);
                j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1)); if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic;
                c->Gpr[4] = (uint)(linear + 4 + op->Imm); goto jump;
            case OpKind.JmpR32: rip = *(uint*)(g + op->Reg0); j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1));
                if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic; goto jump;
            case OpKind.JmpM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; rip = *(uint*)(linear + (ulong)e->Addend); j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1));
                if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic; goto jump;
            case OpKind.CallR32: rip = *(uint*)(g + op->Reg0); j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1));
                if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic; linear = (uint)c->Gpr[4] - 4U;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                c->CurrentOp = op; *(uint*)(linear + (ulong)e->Addend) = (uint)(c->BlockRip + op->Offset + op->Length);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) CallOverwritten(c, linear, e); c->Gpr[4] = linear; goto jump;
            case OpKind.CallM32:
                linear = (*(ulong*)(g + op->Base) + (*(ulong*)(g + op->Index) << op->Shift) + (ulong)op->Disp + *(ulong*)(g + op->Aux)) & mask;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagRead) goto generic;
                c->CurrentOp = op; rip = *(uint*)(linear + (ulong)e->Addend); j = _jumps + ((uint)(rip ^ rip >> 13) & (JumpEntries - 1));
                if (j->Linear != rip || (j->Packed ^ key) >> 48 != 0) goto generic; linear = (uint)c->Gpr[4] - 4U;
                e = tlb + (linear >> 12 & (Tlb.Level1Entries - 1)); if (((linear + 3) & ~0xfffUL | c->TlbContext) != e->TagWrite) goto generic;
                *(uint*)(linear + (ulong)e->Addend) = (uint)(c->BlockRip + op->Offset + op->Length);
                if ((*e->CodeBits >> (int)(linear >> 6) & 1) != 0) CallOverwritten(c, linear, e); c->Gpr[4] = linear; goto jump;
            case OpKind.FallThrough: goto fall;
            case OpKind.FallThroughNarrow: c->Rip = Addressing.NextRip(c, op); return LoopExit.Lookup;
            case OpKind.Stale: return Abandon(c, block, op);
            default: goto generic;
        }

    overwritten:
        _access.EndWriteSlow(c, (byte*)(linear + (ulong)e->Addend), linear, op->Size);
        goto next;

    generic:
        c->CurrentOp = op;
        switch (op->Handler(_p, c, op))
        {
            case OpResult.Next:
                goto next;
            case OpResult.Skip:
                op += c->SkipOps - 1;
                goto next;
            case OpResult.EndBlock:
                if (EventUnit.NeedsAttention(c) || !_fetch.IsCurrent || CpuMode.CodeMode(c) != mode)
                    return LoopExit.Poll;
                key = CodeFetch.JumpKey(c, mode);
                rip = c->Rip;
                if (key >> 48 == 0xffff)
                {
                    block = _fetch.CachedSegmented(c, mode);
                    if (block == null)
                        return LoopExit.Lookup;
                    goto follow;
                }
                j = _jumps + CodeFetch.JumpIndex(rip);
                if (CodeFetch.JumpMiss(j, rip, key))
                    return LoopExit.Lookup;
                goto jump;
            case OpResult.RetiredExit:
                return LoopExit.RetiredExit;
            default:
                return Interrupt(c, block, op);
        }

    taken:
        rip = (c->BlockRip + (ulong)op->Disp) & mask;
        // Another processor that overwrites the code clears the link, also between the two reads. A variable for one read would cost every other case a
        // register.
        if (block->Taken == null)
        {
            _fetch.Link = &block->Taken;
            goto find;
        }
        block = (Block*)Volatile.Read(ref *(nint*)&block->Taken);
        if (block == null)
            goto find;
        goto follow;

    fall:
        rip = (c->BlockRip + op->Offset + op->Length) & mask;
        if (block->Fall == null)
        {
            _fetch.Link = &block->Fall;
            goto find;
        }
        block = (Block*)Volatile.Read(ref *(nint*)&block->Fall);
        if (block == null)
            goto find;

    follow:
        if (*(ulong*)&c->ExitRequest != 0)
        {
            c->Rip = rip;
            return LoopExit.Poll;
        }
        c->BlockRip = rip;
        goto enter;

    find:
        j = _jumps + CodeFetch.JumpIndex(rip);
        if (*(ulong*)&c->ExitRequest != 0 || CodeFetch.JumpMiss(j, rip, key))
        {
            c->Rip = rip;
            return LoopExit.Lookup;
        }
        block = (Block*)(j->Packed ^ key);
        if (((c->BlockRip ^ rip) & ~0xfffUL) == 0)
        {
            c->Rip = rip;
            _fetch.Connect(c, block);
        }
        _fetch.Link = null;
        c->BlockRip = rip;
        goto enter;

    jump:
        block = (Block*)(j->Packed ^ key);
        goto follow;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void CallOverwritten(CpuState* c, ulong linear, TlbEntry* e) => _access.EndWriteSlow(c, (byte*)(linear + (ulong)e->Addend), linear, 8);

    /// <summary>The block went stale under the processor.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static LoopExit Abandon(CpuState* c, Block* block, Op* op)
    {
        c->Rip = Addressing.RipOf(c, op);
        Uncount(c, block, op);
        return LoopExit.Stale;
    }

    /// <summary>An instruction did not retire.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private LoopExit Interrupt(CpuState* c, Block* block, Op* op)
    {
        c->Rip = Addressing.RipOf(c, op);
        Uncount(c, block, op);
        if (c->ExitPending != 0 && c->Exit->Reason == ExitReason.Mmio)
            NoteLastAccess(c, op);
        // A non-canonical operand in the stack segment is #SS(0).
        if (c->PendingNonCanonical != 0 && c->ExitPending == 0 && op->Seg == SegmentIndex.SS)
            c->PendingVector = Arch.Vector.SS;
        c->PendingNonCanonical = 0;
        return LoopExit.Fault;
    }

    /// <summary>
    /// Takes back the instructions of the block from <paramref name="op"/> on, which were counted at its entry. Ops before the last execute one instruction
    /// each.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void Uncount(CpuState* c, Block* block, Op* op) => c->InstructionsRetired -= (ulong)(block->Instructions - (op - Block.FirstOp(block)));
}
