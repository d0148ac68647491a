using System.Diagnostics;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>The cost of an exit. Time is printed; allocation is asserted.</summary>
public sealed class ExitPerformanceTests
{
    [Fact]
    public void PortExit_AllocatesNothing()
    {
        using TestGuest g = new();
        // next: out 0x80, al; jmp next
        g.Load(0xe6, 0x80, 0xeb, 0xfc);
        for (int i = 0; i < 200_000; i++)
            g.Run();
        long before = GC.GetAllocatedBytesForCurrentThread(), start = Stopwatch.GetTimestamp();
        const int N = 1_000_000;
        for (int i = 0; i < N; i++)
            _ = g.Cpu.Run();
        double ns = Stopwatch.GetElapsedTime(start).TotalNanoseconds / N;
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
        unsafe { Assert.Equal(KVM_EXIT_IO, g.Cpu.KvmRun->exit_reason); }
        Console.WriteLine($"exit.pio_ns\t{ns:f1}");
    }
}
