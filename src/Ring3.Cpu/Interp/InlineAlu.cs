using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>Arithmetic of the loop's inline cases: results and lazy flags, without a call.</summary>
/// <remarks>SAFETY: register operands are offsets into the processor's own state; memory operands are host pointers from a TLB hit.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Result64(CpuState* c, ulong r, ulong carry)
    {
        c->FlagsZero = r;
        c->FlagsSign = r;
        c->FlagsCarry = carry;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Logic64(CpuState* c, ulong r)
    {
        ulong s = r;
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = 0;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Cmp64(CpuState* c, ulong a, ulong b)
    {
        ulong r = a - b;
        Result64(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Test64(CpuState* c, ulong a, ulong b) => Logic64(c, a & b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Add64(CpuState* c, Op* op, ulong b)
    {
        ulong a = R64(c, op->Reg0), r = a + b;
        W64(c, op->Reg0, r);
        Result64(c, r, a & b | (a | b) & ~r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddMemory64(CpuState* c, ulong* at, ulong b)
    {
        ulong a = Volatile.Read(ref *at), r = a + b;
        Volatile.Write(ref *at, r);
        Result64(c, r, a & b | (a | b) & ~r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Sub64(CpuState* c, Op* op, ulong b)
    {
        ulong a = R64(c, op->Reg0), r = a - b;
        W64(c, op->Reg0, r);
        Result64(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SubMemory64(CpuState* c, ulong* at, ulong b)
    {
        ulong a = Volatile.Read(ref *at), r = a - b;
        Volatile.Write(ref *at, r);
        Result64(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Adc64(CpuState* c, Op* op, ulong b)
    {
        ulong a = R64(c, op->Reg0), r = a + b + (ulong)(c->FlagsCarry >> 63);
        W64(c, op->Reg0, r);
        Result64(c, r, a & b | (a | b) & ~r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AdcMemory64(CpuState* c, ulong* at, ulong b)
    {
        ulong a = Volatile.Read(ref *at), r = a + b + (ulong)(c->FlagsCarry >> 63);
        Volatile.Write(ref *at, r);
        Result64(c, r, a & b | (a | b) & ~r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Sbb64(CpuState* c, Op* op, ulong b)
    {
        ulong a = R64(c, op->Reg0), r = a - b - (ulong)(c->FlagsCarry >> 63);
        W64(c, op->Reg0, r);
        Result64(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SbbMemory64(CpuState* c, ulong* at, ulong b)
    {
        ulong a = Volatile.Read(ref *at), r = a - b - (ulong)(c->FlagsCarry >> 63);
        Volatile.Write(ref *at, r);
        Result64(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void And64(CpuState* c, Op* op, ulong b)
    {
        ulong r = R64(c, op->Reg0) & b;
        W64(c, op->Reg0, r);
        Logic64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AndMemory64(CpuState* c, ulong* at, ulong b)
    {
        ulong r = Volatile.Read(ref *at) & b;
        Volatile.Write(ref *at, r);
        Logic64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Or64(CpuState* c, Op* op, ulong b)
    {
        ulong r = R64(c, op->Reg0) | b;
        W64(c, op->Reg0, r);
        Logic64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void OrMemory64(CpuState* c, ulong* at, ulong b)
    {
        ulong r = Volatile.Read(ref *at) | b;
        Volatile.Write(ref *at, r);
        Logic64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Xor64(CpuState* c, Op* op, ulong b)
    {
        ulong r = R64(c, op->Reg0) ^ b;
        W64(c, op->Reg0, r);
        Logic64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void XorMemory64(CpuState* c, ulong* at, ulong b)
    {
        ulong r = Volatile.Read(ref *at) ^ b;
        Volatile.Write(ref *at, r);
        Logic64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void IncFlags64(CpuState* c, ulong r)
    {
        ulong s = r, cf = c->FlagsCarry >> 63;
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = cf << 63 | (cf ^ (r == 0x8000000000000000 ? 1UL : 0)) << 62 | ((r & 15) == 0 ? 8UL : 0);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Inc64(CpuState* c, Op* op)
    {
        ulong r = R64(c, op->Reg0) + 1;
        W64(c, op->Reg0, r);
        IncFlags64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void IncMemory64(CpuState* c, ulong* at)
    {
        ulong r = Volatile.Read(ref *at) + 1;
        Volatile.Write(ref *at, r);
        IncFlags64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void DecFlags64(CpuState* c, ulong r)
    {
        ulong s = r, cf = c->FlagsCarry >> 63;
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = cf << 63 | (cf ^ (r == 0x7fffffffffffffff ? 1UL : 0)) << 62 | ((r & 15) == 15 ? 8UL : 0);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Dec64(CpuState* c, Op* op)
    {
        ulong r = R64(c, op->Reg0) - 1;
        W64(c, op->Reg0, r);
        DecFlags64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void DecMemory64(CpuState* c, ulong* at)
    {
        ulong r = Volatile.Read(ref *at) - 1;
        Volatile.Write(ref *at, r);
        DecFlags64(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Neg64(CpuState* c, Op* op)
    {
        ulong a = R64(c, op->Reg0), r = 0 - a;
        W64(c, op->Reg0, r);
        Result64(c, r, a | r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Shl64(CpuState* c, Op* op, int n)
    {
        ulong a = R64(c, op->Reg0), r = a << n;
        W64(c, op->Reg0, r);
        c->FlagsZero = r;
        c->FlagsSign = r;
        c->FlagsCarry = a << (n - 1) & 1UL << 63 | r >> 63 << 62;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Shr64(CpuState* c, Op* op, int n)
    {
        ulong a = R64(c, op->Reg0), r = a >> n, cf = a >> (n - 1) & 1;
        W64(c, op->Reg0, r);
        c->FlagsZero = r;
        c->FlagsSign = r;
        c->FlagsCarry = cf << 63 | (cf << 62 ^ r & 1UL << 62);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Sar64(CpuState* c, Op* op, int n)
    {
        ulong a = R64(c, op->Reg0), r = (ulong)((long)a >> n), cf = (ulong)((long)a >> (n - 1)) & 1;
        W64(c, op->Reg0, r);
        c->FlagsZero = r;
        c->FlagsSign = r;
        c->FlagsCarry = cf << 63 | cf << 62;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Result32(CpuState* c, uint r, uint carry)
    {
        ulong s = (ulong)(int)r;
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = (ulong)carry << 32 | carry;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Logic32(CpuState* c, uint r)
    {
        ulong s = (ulong)(int)r;
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = 0;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Cmp32(CpuState* c, uint a, uint b)
    {
        uint r = a - b;
        Result32(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Test32(CpuState* c, uint a, uint b) => Logic32(c, a & b);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Add32(CpuState* c, Op* op, uint b)
    {
        uint a = R32(c, op->Reg0), r = a + b;
        W64(c, op->Reg0, r);
        Result32(c, r, a & b | (a | b) & ~r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddMemory32(CpuState* c, uint* at, uint b)
    {
        uint a = Volatile.Read(ref *at), r = a + b;
        Volatile.Write(ref *at, r);
        Result32(c, r, a & b | (a | b) & ~r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Sub32(CpuState* c, Op* op, uint b)
    {
        uint a = R32(c, op->Reg0), r = a - b;
        W64(c, op->Reg0, r);
        Result32(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SubMemory32(CpuState* c, uint* at, uint b)
    {
        uint a = Volatile.Read(ref *at), r = a - b;
        Volatile.Write(ref *at, r);
        Result32(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Adc32(CpuState* c, Op* op, uint b)
    {
        uint a = R32(c, op->Reg0), r = a + b + (uint)(c->FlagsCarry >> 63);
        W64(c, op->Reg0, r);
        Result32(c, r, a & b | (a | b) & ~r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AdcMemory32(CpuState* c, uint* at, uint b)
    {
        uint a = Volatile.Read(ref *at), r = a + b + (uint)(c->FlagsCarry >> 63);
        Volatile.Write(ref *at, r);
        Result32(c, r, a & b | (a | b) & ~r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Sbb32(CpuState* c, Op* op, uint b)
    {
        uint a = R32(c, op->Reg0), r = a - b - (uint)(c->FlagsCarry >> 63);
        W64(c, op->Reg0, r);
        Result32(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SbbMemory32(CpuState* c, uint* at, uint b)
    {
        uint a = Volatile.Read(ref *at), r = a - b - (uint)(c->FlagsCarry >> 63);
        Volatile.Write(ref *at, r);
        Result32(c, r, ~a & b | (~a | b) & r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void And32(CpuState* c, Op* op, uint b)
    {
        uint r = R32(c, op->Reg0) & b;
        W64(c, op->Reg0, r);
        Logic32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AndMemory32(CpuState* c, uint* at, uint b)
    {
        uint r = Volatile.Read(ref *at) & b;
        Volatile.Write(ref *at, r);
        Logic32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Or32(CpuState* c, Op* op, uint b)
    {
        uint r = R32(c, op->Reg0) | b;
        W64(c, op->Reg0, r);
        Logic32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void OrMemory32(CpuState* c, uint* at, uint b)
    {
        uint r = Volatile.Read(ref *at) | b;
        Volatile.Write(ref *at, r);
        Logic32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Xor32(CpuState* c, Op* op, uint b)
    {
        uint r = R32(c, op->Reg0) ^ b;
        W64(c, op->Reg0, r);
        Logic32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void XorMemory32(CpuState* c, uint* at, uint b)
    {
        uint r = Volatile.Read(ref *at) ^ b;
        Volatile.Write(ref *at, r);
        Logic32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void IncFlags32(CpuState* c, uint r)
    {
        ulong s = (ulong)(int)r, cf = c->FlagsCarry >> 63;
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = cf << 63 | (cf ^ (r == 0x80000000 ? 1UL : 0)) << 62 | ((r & 15) == 0 ? 8UL : 0);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Inc32(CpuState* c, Op* op)
    {
        uint r = R32(c, op->Reg0) + 1;
        W64(c, op->Reg0, r);
        IncFlags32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void IncMemory32(CpuState* c, uint* at)
    {
        uint r = Volatile.Read(ref *at) + 1;
        Volatile.Write(ref *at, r);
        IncFlags32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void DecFlags32(CpuState* c, uint r)
    {
        ulong s = (ulong)(int)r, cf = c->FlagsCarry >> 63;
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = cf << 63 | (cf ^ (r == 0x7fffffff ? 1UL : 0)) << 62 | ((r & 15) == 15 ? 8UL : 0);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Dec32(CpuState* c, Op* op)
    {
        uint r = R32(c, op->Reg0) - 1;
        W64(c, op->Reg0, r);
        DecFlags32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void DecMemory32(CpuState* c, uint* at)
    {
        uint r = Volatile.Read(ref *at) - 1;
        Volatile.Write(ref *at, r);
        DecFlags32(c, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Neg32(CpuState* c, Op* op)
    {
        uint a = R32(c, op->Reg0), r = 0 - a;
        W64(c, op->Reg0, r);
        Result32(c, r, a | r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Shl32(CpuState* c, Op* op, int n)
    {
        uint a = R32(c, op->Reg0), r = a << n;
        ulong s = (ulong)(int)r;
        W64(c, op->Reg0, r);
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = (ulong)(a << (n - 1) >> 31) << 63 | (ulong)(r >> 31) << 62;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Shr32(CpuState* c, Op* op, int n)
    {
        uint a = R32(c, op->Reg0), r = a >> n, cf = a >> (n - 1) & 1;
        W64(c, op->Reg0, r);
        c->FlagsZero = r;
        c->FlagsSign = r;
        c->FlagsCarry = (ulong)cf << 63 | (ulong)(cf ^ r >> 30) << 62;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Sar32(CpuState* c, Op* op, int n)
    {
        int a = (int)R32(c, op->Reg0), r = a >> n;
        ulong cf = (ulong)(a >> (n - 1)) & 1, s = (ulong)r;
        W64(c, op->Reg0, (uint)r);
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = cf << 63 | cf << 62;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Result8(CpuState* c, byte r, byte carry)
    {
        ulong s = (ulong)(sbyte)r;
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = (ulong)carry << 56 | carry;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Logic8(CpuState* c, byte r)
    {
        ulong s = (ulong)(sbyte)r;
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = 0;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Cmp8(CpuState* c, byte a, byte b)
    {
        byte r = (byte)(a - b);
        Result8(c, r, (byte)(~a & b | (~a | b) & r));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Test8(CpuState* c, byte a, byte b) => Logic8(c, (byte)(a & b));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SetOverflow(CpuState* c, bool over) => c->FlagsCarry = c->FlagsCarry & 8 | (over ? 1UL << 63 : 0);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Imul64(CpuState* c, Op* op, ulong a, ulong b)
    {
        long high = Math.BigMul((long)a, (long)b, out long low);
        W64(c, op->Reg0, (ulong)low);
        SetOverflow(c, high != low >> 63);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Imul32(CpuState* c, Op* op, uint a, uint b)
    {
        long r = (long)(int)a * (int)b;
        W64(c, op->Reg0, (uint)r);
        SetOverflow(c, r != (int)r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Mul64(CpuState* c, ulong b)
    {
        ulong high = Math.BigMul(c->Gpr[0], b, out ulong low);
        c->Gpr[0] = low;
        c->Gpr[2] = high;
        SetOverflow(c, high != 0);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Mulx64(CpuState* c, Op* op, ulong b)
    {
        ulong high = Math.BigMul(c->Gpr[2], b, out ulong low);
        W64(c, op->Reg1, low);
        W64(c, op->Reg0, high);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Adcx64(CpuState* c, Op* op, ulong b)
    {
        ulong a = R64(c, op->Reg0), x = c->FlagsCarry, r = a + b + (x >> 63), cout = (a & b | (a | b) & ~r) >> 63;
        W64(c, op->Reg0, r);
        c->FlagsCarry = x & 8 | cout << 63 | (cout ^ (x ^ x << 1) >> 63) << 62;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Adox64(CpuState* c, Op* op, ulong b)
    {
        ulong a = R64(c, op->Reg0), x = c->FlagsCarry, r = a + b + ((x ^ x << 1) >> 63), cout = (a & b | (a | b) & ~r) >> 63;
        W64(c, op->Reg0, r);
        c->FlagsCarry = x & (8 | 1UL << 63) | (x >> 63 ^ cout) << 62;
    }
}
