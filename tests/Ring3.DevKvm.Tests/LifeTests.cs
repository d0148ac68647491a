using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.DevKvm.Tests;

/// <summary>What exists when: descriptors, references, and running a guest through them.</summary>
[Collection("devkvm")]
public unsafe class LifeTests
{
    /// <summary>mov al, 'R'; out 0xe9, al; hlt.</summary>
    private static readonly byte[] s_hello = [0xb0, (byte)'R', 0xe6, 0xe9, 0xf4];

    [Fact]
    public void Guest_RunsThroughIoctls()
    {
        using Client c = new(s_hello);
        Assert.Equal(0, c.Vcpu.Ioctl(KVM_RUN));
        Assert.Equal(KVM_EXIT_IO, c.Run->exit_reason);
        Assert.Equal((ushort)0xe9, c.Run->io.port);
        Assert.Equal((byte)'R', *((byte*)c.Run + c.Run->io.data_offset));
        Assert.Equal(0, c.Vcpu.Ioctl(KVM_RUN));
        Assert.Equal(KVM_EXIT_HLT, c.Run->exit_reason);
    }

    [Fact]
    public void Vm_LivesUntilItsLastDescriptorIsClosed()
    {
        int before = KvmDevice.OpenObjects;
        Client c = new(s_hello);
        c.Vm.Dispose();
        Assert.Equal(0, c.Vcpu.Ioctl(KVM_RUN));
        Assert.Equal(KVM_EXIT_IO, c.Run->exit_reason);
        c.Dispose();
        Assert.Equal(before, KvmDevice.OpenObjects);
        Assert.Equal(-Errno.EBADF, c.Vcpu.Ioctl(KVM_RUN));
    }

    [Fact]
    public void Rounds_LeaveNothingBehind()
    {
        int before = KvmDevice.OpenObjects, fds = 0;
        for (int i = 0; i < 300; i++)
        {
            using (Client c = new(s_hello, irqchip: true))
                Assert.Equal(0, c.Vcpu.Ioctl(KVM_RUN));
            // The first round opens what the process keeps: the runtime's files of the assemblies, the poller, emitted code.
            if (i != 0)
                continue;
            // What earlier tests have left to finalizers is none of these rounds'.
            GC.Collect();
            GC.WaitForPendingFinalizers();
            fds = Directory.GetFiles("/proc/self/fd").Length;
        }
        Assert.Equal(before, KvmDevice.OpenObjects);
        Assert.InRange(Directory.GetFiles("/proc/self/fd").Length, fds - 2, fds + 2);
    }
}
