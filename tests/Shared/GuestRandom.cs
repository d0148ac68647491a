using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Tests.Shared;

/// <summary>The random numbers of guest code: one step of a 64-bit xorshift in R8, by way of RAX.</summary>
internal static class GuestRandom
{
    public static void Next(Assembler a)
    {
        foreach (int shift in (ReadOnlySpan<int>)[13, -7, 17])
        {
            a.mov(rax, r8);
            if (shift > 0)
                a.shl(rax, (byte)shift);
            else
                a.shr(rax, (byte)-shift);
            a.xor(r8, rax);
        }
    }
}
