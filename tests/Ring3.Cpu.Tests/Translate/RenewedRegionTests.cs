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

    /// <summary>
    /// Two processors that come to a branch before it leads anywhere both make it lead to its target: it is one of those that lead there, once.
    /// </summary>
    [Fact]
    public void ABranchThatIsLinkedTwice_LeavesNoLoop()
    {
        const ulong Target = CpuHarness.CodeAddress + 0x100;
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            Label again = a.CreateLabel();
            a.mov(ecx, 8);
            a.Label(ref again);
            a.dec(ecx);
            a.jz(Target);
            a.jmp(again);
        });
        using CpuHarness h = CpuHarness.Long(code, translate: true);
        BlockCache blocks = h.Machine.Blocks;
        h.Write(Target, CoreSmokeTests.Assemble(64, a => { a.mov(eax, 1); a.hlt(); }, Target));
        // The first pass translates the target, the second links the branch to it.
        for (int pass = 0; pass < 2; pass++)
        {
            h.State->Rip = CpuHarness.CodeAddress;
            h.RunToHlt();
        }
        Block* target = blocks.Find(h.Memory + Target, h.State->BlockMode, null);
        Assert.True(target != null && target->Uses != null && target->Uses->Region->Incoming != null);
        Site* site = target->Uses->Region->Incoming;
        Site* next = site->NextIncoming;
        blocks.Link(site, target);
        Assert.True(target->Uses->Region->Incoming == site && site->NextIncoming == next && next != site);
        // Nothing hangs when the target is written, and what is there then is what runs.
        h.Write(Target, CoreSmokeTests.Assemble(64, a => { a.mov(eax, 2); a.hlt(); }, Target));
        h.State->Rip = CpuHarness.CodeAddress;
        h.RunToHlt();
        Assert.Equal(2UL, h.Rax);
    }

    /// <summary>
    /// Everything is dropped while a processor is in translated code: it does not look for what takes the place of its region in what was dropped.
    /// </summary>
    [Fact]
    public void EverythingIsDropped_WhileALoopRuns()
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            Label again = a.CreateLabel();
            a.Label(ref again);
            a.mov(__qword_ptr[rdi], rcx);
            a.inc(rcx);
            a.cmp(__dword_ptr[rsi], 0);
            a.je(again);
            a.hlt();
        });
        using CpuHarness h = CpuHarness.Long(code, translate: true);
        h.State->Gpr[6] = CpuHarness.DataAddress;
        h.State->Gpr[7] = CpuHarness.DataAddress + 64;
        ExitReason reason = default;
        Thread thread = new(() => reason = h.Run());
        thread.Start();
        for (int round = 0; round < 8; round++)
        {
            ulong seen = Volatile.Read(ref h.Word(CpuHarness.DataAddress + 64));
            while (Volatile.Read(ref h.Word(CpuHarness.DataAddress + 64)) < seen + 1000)
                Thread.Yield();
            h.Machine.ExternalWriters = round % 2 == 0;
        }
        Volatile.Write(ref h.Word(CpuHarness.DataAddress), 1);
        thread.Join();
        Assert.Equal(ExitReason.Hlt, reason);
    }
}
