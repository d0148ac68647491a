using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Kvm.Tests;

/// <summary>
/// The walkers of ReadingShadowPageTables: the vCPU's thread follows translations outside the guest when it finishes a string input and when it reports
/// an instruction.
/// </summary>
public sealed unsafe class TableWalkerTests
{
    private const ulong Target = 0x200_0000;
    private const int Size = 4096;

    // again: mov edi, Target; mov ecx, 4096; mov edx, 0x99; rep insb; jmp again
    private static ReadOnlySpan<byte> InputLoop => [0xbf, 0, 0, 0, 2, 0xb9, 0, 0x10, 0, 0, 0xba, 0x99, 0, 0, 0, 0xf3, 0x6c, 0xeb, 0xed];

    private static void Put(TestGuest g, GuestRam ram)
    {
        _ = g.Vm.SetUserMemoryRegion(1, 0, Target, 0, 0);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, 0, Target, Size, ram.Hva));
    }

    private static Span<byte> Data(kvm_run* run) => new((byte*)run + run->io.data_offset, (int)run->io.count);

    [Fact]
    public void StringInput_GoesToTheMemoryThatIsThereWhenItIsFinished()
    {
        using TestGuest g = new();
        using GuestRam first = new(Size), second = new(Size);
        Put(g, first);
        g.Load(InputLoop);
        // The translation of the target is cached from here on.
        Assert.Equal(KvmApi.KVM_EXIT_IO, g.Run());
        Data(g.Cpu.KvmRun).Fill(0x11);
        Assert.Equal(KvmApi.KVM_EXIT_IO, g.Run());
        Assert.Equal(0x11, *(byte*)first.Hva);
        Put(g, second);
        Data(g.Cpu.KvmRun).Fill(0x22);
        Assert.Equal(KvmApi.KVM_EXIT_IO, g.Run());
        Assert.Equal(0x11, *(byte*)first.Hva);
        int done = new ReadOnlySpan<byte>((byte*)second.Hva, Size).Count((byte)0x22);
        Assert.True(done > 0, "the input went nowhere");
    }

    /// <summary>
    /// A slot moves between two pieces of memory while the vCPU stores its input: what a slot no longer shows is not written after SetUserMemoryRegion
    /// has returned.
    /// </summary>
    [Fact]
    public void StringInput_EndsWithTheSlotItGoesTo()
    {
        using TestGuest g = new();
        using GuestRam even = new(Size), odd = new(Size);
        GuestRam[] ram = [even, odd];
        Put(g, ram[0]);
        g.Load(InputLoop);
        int stop = 0;
        string? failure = null;
        Thread vcpu = new(() =>
        {
            while (Volatile.Read(ref stop) == 0)
            {
                int r = g.Cpu.Run();
                // Between the two slots the input goes to a device.
                if (r == 0 && g.Cpu.KvmRun->exit_reason == KvmApi.KVM_EXIT_MMIO)
                    continue;
                if (r != 0 || g.Cpu.KvmRun->exit_reason != KvmApi.KVM_EXIT_IO)
                {
                    failure = $"run gave {r}, exit {g.Cpu.KvmRun->exit_reason}";
                    return;
                }
                Data(g.Cpu.KvmRun).Fill(0x33);
            }
        });
        vcpu.Start();
        int written = 0, late = 0;
        long end = HostClock.MonotonicNs() + 1_500_000_000;
        for (int i = 1; HostClock.MonotonicNs() < end; i++)
        {
            var old = new Span<byte>((byte*)ram[(i - 1) & 1].Hva, Size);
            long seen = HostClock.MonotonicNs() + 200_000;
            while (HostClock.MonotonicNs() < seen && old[Size - 1] != 0x33)
                Thread.SpinWait(1);
            Put(g, ram[i & 1]);
            written += old.Contains((byte)0x33) ? 1 : 0;
            old.Fill(0xee);
            for (int look = 0; look < 20; look++)
                late += old.Contains((byte)0x33) ? 1 : 0;
        }
        Volatile.Write(ref stop, 1);
        vcpu.Join();
        Assert.Null(failure);
        Assert.True(written > 0, "inconclusive: no input arrived");
        Assert.Equal(0, late);
    }
}
