using Xunit;

namespace Ring3.Cpu.Tests;

/// <summary>Random bytes as code, in every mode, with and without a handler for exceptions: the processor always comes back with an exit.</summary>
public sealed unsafe class CoreGarbageTests
{
    private static readonly byte[] s_likely = [0x0f, 0x48, 0x66, 0xf3, 0xf2, 0x67, 0xf0, 0x8b, 0x89, 0xe8, 0x75, 0xc5, 0xc4, 0xaa, 0xa5];
    private readonly byte[] _input = new byte[4096];

    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    [InlineData(16)]
    public void RandomBytesEndInAnExit(int bits)
    {
        using CpuHarness h = bits == 64 ? CpuHarness.Long([0xf4]) : bits == 32 ? CpuHarness.Protected32([0xf4]) : CpuHarness.Real16([0xf4]);
        CpuState initial = *h.State;
        using Timer kicks = new(_ => h.Cpu.RequestExit(), null, 1, 1);
        for (int seed = 0; seed < 400; seed++)
        {
            Random r = new(seed);
            *h.State = initial;
            h.State->ExceptionIntercepts = seed % 2 == 0 ? uint.MaxValue : 0;
            h.Cpu.RecomputeMode();
            h.Write(CpuHarness.CodeAddress, Bytes(r));
            for (int i = 0; i < 16; i++)
                h.State->Gpr[i] = r.Next(2) == 0 ? (ulong)r.NextInt64() : CpuHarness.DataAddress + (ulong)r.Next(65536);
            for (int entry = 0; entry < 8 && GoesOn(h, h.Cpu.Enter()); entry++)
                h.State->ExitRequest = 0;
            Assert.NotEqual(ExitReason.None, h.Exit->Reason);
        }
    }

    private static byte[] Bytes(Random r)
    {
        byte[] bytes = new byte[256];
        r.NextBytes(bytes);
        for (int i = 0; i < bytes.Length; i++)
            if (r.Next(6) == 0)
                bytes[i] = s_likely[r.Next(s_likely.Length)];
        return bytes;
    }

    /// <summary>Answers an exit as an owner without devices would. False: the run is over.</summary>
    private bool GoesOn(CpuHarness h, ExitReason reason)
    {
        switch (reason)
        {
            case ExitReason.Io:
                if (h.Exit->IsWrite == 0)
                    h.Cpu.CompleteIo(_input.AsSpan(0, (int)(h.Exit->Count * h.Exit->Size)));
                return true;
            case ExitReason.Cpuid or ExitReason.Hypercall or ExitReason.Cr8Write or ExitReason.Xsetbv:
                h.Cpu.SkipInstruction();
                return true;
            case ExitReason.MsrRead or ExitReason.MsrWrite:
                h.Cpu.CompleteMsr(false, 0);
                return true;
            default:
                return reason is ExitReason.Request or ExitReason.Hlt or ExitReason.Pause;
        }
    }
}
