using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>What led to a region whose code was overwritten leads to the one that takes its place.</summary>
/// <remarks>SAFETY: works on the harness's state.</remarks>
public sealed unsafe class RenewedRegionTests
{
    private const ulong Function = CpuHarness.CodeAddress + 0x1000;
    private const int Calls = 1000;

    private static byte[] Returns(int value) => CoreSmokeTests.Assemble(64, a => { a.mov(eax, value); a.ret(); });

    [Fact]
    public void CallsIntoAnOverwrittenFunction_StayInTranslatedCode()
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            Label again = a.CreateLabel();
            a.xor(edx, edx);
            a.mov(ecx, Calls);
            a.mov(rbx, Function);
            a.Label(ref again);
            a.call(rbx);
            a.add(edx, eax);
            a.dec(ecx);
            a.jnz(again);
            a.hlt();
        });
        using CpuHarness h = CpuHarness.Long(code, translate: true);
        for (int value = 1; value <= 3; value++)
        {
            h.Write(Function, Returns(value));
            h.State->Rip = CpuHarness.CodeAddress;
            long before = h.Cpu.Translator.Counters.Entries;
            h.RunToHlt();
            Assert.Equal((ulong)(Calls * value), h.Rdx);
            Assert.InRange(h.Cpu.Translator.Counters.Entries - before, 1, 20);
        }
    }
}
