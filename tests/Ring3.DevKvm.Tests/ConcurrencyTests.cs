using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

namespace Ring3.DevKvm.Tests;

/// <summary>Calls from several threads at once: who waits for whom, who wins, and that nothing is used after it is gone.</summary>
[Collection("devkvm")]
public unsafe class ConcurrencyTests
{
    /// <summary>inc word [0x2000]; jmp.</summary>
    private static readonly byte[] s_loop = [0xff, 0x06, 0x00, 0x20, 0xeb, 0xfa];

    private static void Signal(Descriptor vcpu)
    {
        var s = (VcpuSignal*)KvmDevice.VcpuSignalAddress(vcpu.Handle);
        Volatile.Write(ref s->Signalled, 1);
        Volatile.Write(ref *s->ExitRequest, 1);
        Interlocked.Increment(ref *s->WakeWord);
        Futex.Wake((int*)s->WakeWord);
    }

    private static Thread RunOn(Descriptor vcpu, Action<long> ended)
    {
        var t = new Thread(() => ended(vcpu.Ioctl(KVM_RUN)));
        t.Start();
        return t;
    }

    private static void WaitUntilRunning(Client c)
    {
        while (Volatile.Read(ref *(ushort*)(c.Memory + 0x2000)) == 0)
            Thread.Yield();
    }

    [Fact]
    public void CallsOnARunningVcpu_WaitForItsReturn()
    {
        using Client c = new(s_loop);
        long run = 0, get = 1;
        Thread runner = RunOn(c.Vcpu, r => run = r);
        WaitUntilRunning(c);
        var getter = new Thread(() =>
        {
            kvm_regs regs = default;
            Volatile.Write(ref get, c.Vcpu.Ioctl(KVM_GET_REGS, ref regs));
        });
        getter.Start();
        Assert.False(getter.Join(50));
        // The VM's calls do not wait.
        Assert.Equal(1, c.Vm.Ioctl(KVM_CHECK_EXTENSION, KVM_CAP_IRQFD));
        Signal(c.Vcpu);
        Assert.True(runner.Join(10_000) && getter.Join(10_000));
        Assert.Equal(-Errno.EINTR, run);
        Assert.Equal(0, get);
    }

    [Fact]
    public void CloseOfEverything_DuringRun_LetsRunEnd()
    {
        int before = KvmDevice.OpenObjects;
        Client c = new(s_loop);
        long run = 0;
        Thread runner = RunOn(c.Vcpu, r => run = r);
        WaitUntilRunning(c);
        var signal = (VcpuSignal*)KvmDevice.VcpuSignalAddress(c.Vcpu.Handle);
        c.Vcpu.Dispose();
        c.Vm.Dispose();
        Assert.Equal(-Errno.EBADF, c.Vcpu.Ioctl(KVM_GET_API_VERSION));
        Assert.False(runner.Join(50));
        Volatile.Write(ref signal->Signalled, 1);
        Volatile.Write(ref *signal->ExitRequest, 1);
        Assert.True(runner.Join(10_000));
        Assert.Equal(-Errno.EINTR, run);
        c.Dispose();
        Assert.Equal(before, KvmDevice.OpenObjects);
    }

    [Fact]
    public void SignalBeforeRun_IsNotLost_AndWakesASleeper()
    {
        // hlt with an in-kernel irqchip sleeps in KVM_RUN.
        using Client c = new([0xf4], irqchip: true);
        Signal(c.Vcpu);
        Assert.Equal(-Errno.EINTR, c.Vcpu.Ioctl(KVM_RUN));
        ((VcpuSignal*)KvmDevice.VcpuSignalAddress(c.Vcpu.Handle))->Signalled = 0;
        long run = 0;
        Thread runner = RunOn(c.Vcpu, r => run = r);
        Assert.False(runner.Join(50));
        Signal(c.Vcpu);
        Assert.True(runner.Join(10_000));
        Assert.Equal(-Errno.EINTR, run);
        Assert.Equal(KVM_EXIT_INTR, c.Run->exit_reason);
    }

    [Fact]
    public void OneOfManyCreatorsOfAVcpu_Wins()
    {
        using Client c = new();
        for (uint id = 1; id < 20; id++)
        {
            int won = 0, exists = 0;
            Descriptor? made = null;
            Parallel.For(0, 4, _ =>
            {
                long r = KvmDevice.Ioctl(c.Vm.Handle, KVM_CREATE_VCPU, id, out NewFd fd);
                if (r == 0 && fd.Handle != 0)
                {
                    Interlocked.Increment(ref won);
                    made = new Descriptor(fd);
                }
                else if (r == -Errno.EEXIST)
                    Interlocked.Increment(ref exists);
            });
            Assert.Equal((1, 3), (won, exists));
            made!.Dispose();
        }
    }

    [Fact]
    public void HandlesThatAreReleased_FindNothing_WhileOthersAreMade()
    {
        using Descriptor kvm = Client.Open();
        Parallel.For(0, 4, _ =>
        {
            for (int i = 0; i < 200; i++)
            {
                Descriptor vm = kvm.Make(KVM_CREATE_VM);
                Assert.Equal(1, vm.Ioctl(KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY));
                vm.Dispose();
                Assert.Equal(-Errno.EBADF, vm.Ioctl(KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY));
            }
        });
        Assert.Equal(-Errno.EBADF, KvmDevice.Ioctl(0, KVM_GET_API_VERSION, 0, out _));
        Assert.Equal(-Errno.EBADF, KvmDevice.Ioctl(ulong.MaxValue, KVM_GET_API_VERSION, 0, out _));
    }

    [Fact]
    public void Notifier_KnowsTheMemoryOfSlots()
    {
        using Client c = new(s_loop);
        byte* extra = HostMemory.Map(4096 * 2);
        Assert.Equal(0, c.Vm.Set(KVM_SET_USER_MEMORY_REGION, new kvm_userspace_memory_region { slot = 1, guest_phys_addr = 0x200000, memory_size = 8192,
            userspace_addr = (ulong)extra }));
        ulong lo = (ulong)extra, hi = lo + 8192;
        Assert.True(KvmDevice.IsClientMemory(lo + 4096, hi));
        Assert.True(KvmDevice.ClientMemoryBounds[0] <= lo && KvmDevice.ClientMemoryBounds[1] >= hi);
        Assert.True(KvmDevice.InvalidateStart(lo, hi));
        KvmDevice.InvalidateEnd(lo, hi);
        Assert.False(KvmDevice.InvalidateStart(0x1000, 0x2000));
        Assert.Equal(0, c.Vm.Set(KVM_SET_USER_MEMORY_REGION, new kvm_userspace_memory_region { slot = 1 }));
        Assert.False(KvmDevice.IsClientMemory(lo, hi));
        HostMemory.Unmap(extra, 8192);
    }
}
