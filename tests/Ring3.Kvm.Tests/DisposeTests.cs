using Ring3.Abi;

namespace Ring3.Kvm.Tests;

/// <summary>A VM that is disposed of while its vCPUs run: they return -EIO, and nothing is freed under them.</summary>
public sealed unsafe class DisposeTests
{
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Dispose_WaitsForRunningVcpus(bool halted)
    {
        for (int round = 0; round < 20; round++)
        {
            TestGuest g = new(irqchip: true, cpus: 2);
            // inc dword [0x20000]; jmp back; or cli; hlt.
            if (halted)
                g.Load(0xfa, 0xf4);
            else
                g.Load(0xff, 0x04, 0x25, 0x00, 0x00, 0x02, 0x00, 0xeb, 0xf7);
            int[] results = [1, 1];
            Thread[] threads = [new(() => results[0] = g.Vm.Vcpus[0].Run()), new(() => results[1] = g.Vm.Vcpus[1].Run())];
            Vcpu first = g.Cpu;
            foreach (Thread t in threads)
                t.Start();
            // Some rounds reach the guest, some meet the start of Run.
            SpinWait.SpinUntil(() => first.MmuStats.PfTaken != 0, round);
            g.Dispose();
            foreach (Thread t in threads)
                Assert.True(t.Join(60_000));
            Assert.Equal([-Errno.EIO, -Errno.EIO], results);
            Assert.Equal(-Errno.EIO, first.Run());
        }
    }

    [Fact]
    public void Dispose_ByTheThreadThatRunsTheVcpu_IsRefused()
    {
        using TestGuest g = new();
        Exception? refused = null;
        g.Cpu.EventObserver = _ => refused ??= Record.Exception(g.Vm.Dispose);
        g.SetVector(3, 0x12000).LoadAt(0x12000, 0xe6, 0xf4);
        // int3
        g.Load(0xcc);
        g.RunToEnd();
        Assert.IsType<InvalidOperationException>(refused);
    }

    /// <summary>A part that fails keeps no other part from being released.</summary>
    [Fact]
    public void Release_GoesOnAfterAFailure()
    {
        List<int> done = [];
        InvalidOperationException failure = new();
        Assert.Same(failure, Vm.RunAll([() => done.Add(1), () => throw failure, () => done.Add(2), () => throw new IOException(), () => done.Add(3)]));
        Assert.Equal([1, 2, 3], done);
        Assert.Null(Vm.RunAll([]));
    }
}
