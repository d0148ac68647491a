using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>What happens to translated code from outside while it runs: another processor's stores, and signals.</summary>
[SupportedOSPlatform("linux")]
public sealed unsafe class ConcurrencyTrapTests
{
    private const ulong Data = RegionMachine.Data, Patched = 0x3_0000;

    /// <summary>
    /// One processor writes rising numbers into an immediate of code that the other calls all the time, in a region of the caller or one of its own.
    /// The caller sees them rise, none that was not written, and the last.
    /// </summary>
    [Theory]
    [InlineData(0, false)]
    [InlineData(0, true)]
    [InlineData(100, true)]
    public void OneProcessorRewritesTheOthersCode(int threshold, bool ownPage)
    {
        const int last = 60_000;
        ulong patched = ownPage ? Patched : CpuHarness.CodeAddress + 0x800;
        // The immediate of mov eax, imm32 is aligned: a store to it is one.
        ulong immediate = patched + 8;
        // It waits until the caller has called some hundred times: then both are in the middle of it, and the caller is translated.
        byte[] write = CoreSmokeTests.Assemble(64, a =>
        {
            Label again = a.CreateLabel(), wait = a.CreateLabel();
            a.mov(rdi, immediate);
            a.mov(rsi, Data);
            a.Label(ref wait);
            a.cmp(__qword_ptr[rsi], 300);
            a.jb(wait);
            a.mov(ecx, 1);
            a.Label(ref again);
            a.mov(__[rdi], ecx);
            a.inc(ecx);
            a.cmp(ecx, last);
            a.jbe(again);
            a.hlt();
        }, Patched + 0x1_0000);
        using CpuHarness writer = CpuHarness.Long([]);
        writer.Machine.TranslationThreshold = threshold;
        CpuHarness caller = CpuHarness.Long([], machine: writer.Machine, memory: writer.Memory);
        writer.Write(Patched + 0x1_0000, write);
        writer.Write(patched + 7, CoreSmokeTests.Assemble(64, a => { a.mov(eax, 0); a.mov(ebx, eax); a.ret(); }, patched + 7));
        writer.Write(CpuHarness.CodeAddress, CoreSmokeTests.Assemble(64, a =>
        {
            Label again = a.CreateLabel(), wrong = a.CreateLabel();
            a.xor(edx, edx);
            a.mov(rsi, Data);
            a.Label(ref again);
            a.inc(__qword_ptr[rsi]);
            a.call(patched + 7);
            a.cmp(eax, edx);
            a.jb(wrong);
            a.cmp(ebx, eax);
            a.jne(wrong);
            a.mov(edx, eax);
            a.cmp(eax, last);
            a.jb(again);
            a.ja(wrong);
            a.hlt();
            a.Label(ref wrong);
            a.ud2();
        }));
        writer.State->Rip = Patched + 0x1_0000;
        caller.State->Gpr[4] = CpuHarness.StackTop;
        Thread thread = new(writer.RunToHlt);
        thread.Start();
        caller.RunToHlt();
        thread.Join();
        Assert.Equal((ulong)last, caller.Rax);
        Assert.True(caller.Cpu.Translator.Counters.Translated > 0);
    }

    [DllImport("libc", EntryPoint = "syscall")]
    private static extern long SystemCall(long number, long a, long b, long c);

    private const long Gettid = 186, Tgkill = 234, WindowChanged = 28;

    /// <summary>Signals while registers are spilled, vectors are live and MXCSR is the guest's: the result is the one without signals.</summary>
    [Fact]
    public void SignalsInTranslatedCode_ChangeNothing()
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            Label again = a.CreateLabel();
            a.mov(ecx, 3_000_000);
            a.Label(ref again);
            a.mulsd(xmm0, xmm1);
            a.addsd(xmm0, xmm2);
            a.sqrtsd(xmm0, xmm0);
            a.paddq(xmm4, xmm3);
            a.fld1();
            a.faddp(st1, st0);
            a.add(r12, r13);
            a.adc(r14, r15);
            a.xor(r13, r14);
            a.push(r12);
            a.pop(r15);
            a.sub(ecx, 1);
            a.jnz(again);
            a.hlt();
        });
        using RegionMachine m = new(code, h =>
        {
            h.State->Mxcsr = 0x1f80 | 2 << 13;
            (*(double*)(h.State->Ymm + 0), *(double*)(h.State->Ymm + 32), *(double*)(h.State->Ymm + 64)) = (1.5, 1.0000001, 0.3);
            *(ulong*)(h.State->Ymm + 96) = 3;
            (h.State->Gpr[12], h.State->Gpr[13], h.State->Gpr[14], h.State->Gpr[15]) = (1, 2, 3, 4);
            // ST(0) is 0.0.
            (h.State->Ftw, h.State->Fsw) = (0x80, 7 << 11);
        });
        using PosixSignalRegistration registration = PosixSignalRegistration.Create(PosixSignal.SIGWINCH, c => c.Cancel = true);
        long thread = SystemCall(Gettid, 0, 0, 0);
        bool done = false;
        int sent = 0;
        Thread sender = new(() =>
        {
            while (!Volatile.Read(ref done))
            {
                SystemCall(Tgkill, Environment.ProcessId, thread, WindowChanged);
                sent++;
                Thread.SpinWait(2000);
            }
        });
        sender.Start();
        Assert.Equal(ExitReason.Hlt, m.Fast.Run());
        Volatile.Write(ref done, true);
        sender.Join();
        Assert.Equal(ExitReason.Hlt, m.Slow.Run());
        m.Compare($"{sent} signals");
        Assert.Equal((m.Slow.State->Mxcsr, m.Slow.State->Fsw), (m.Fast.State->Mxcsr, m.Fast.State->Fsw));
        Assert.True(new Span<byte>(m.Fast.State->X87, 128).SequenceEqual(new Span<byte>(m.Slow.State->X87, 128)));
        Assert.True(sent > 10 && m.Translated > 30_000_000, $"{sent} signals, {m.Translated} translated");
    }
}
