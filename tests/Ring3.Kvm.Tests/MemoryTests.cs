using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>Slots that change under running vCPUs, dirty logging, and host memory that goes away.</summary>
public sealed unsafe class MemoryTests
{
    private const ulong Extra = 0x4000_0000;

    /// <summary>mov ebx, Extra; again: inc dword [rbx]; jmp again.</summary>
    private static readonly byte[] s_writer = [0xbb, 0x00, 0x00, 0x00, 0x40, 0xff, 0x03, 0xeb, 0xfc];

    [Fact]
    public void DeletedSlot_IsReachedByNobodyAfterwards()
    {
        using TestGuest g = new(cpus: 2);
        g.Load(s_writer);
        for (int round = 0; round < 20; round++)
        {
            using GuestRam ram = new(0x1000);
            Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, 0, Extra, 0x1000, ram.Hva));
            Thread[] threads = new Thread[2];
            for (int i = 0; i < 2; i++)
            {
                Vcpu v = g.Vm.Vcpus[i];
                TestGuest.StartLong(v, TestGuest.Code, TestGuest.Stack);
                threads[i] = new Thread(() => v.Run());
                threads[i].Start();
            }
            Assert.True(SpinWait.SpinUntil(() => Volatile.Read(ref *(int*)ram.Hva) > 1000, 20_000), "the guest does not write");
            Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, 0, Extra, 0, 0));
            int frozen = *(int*)ram.Hva;
            for (int i = 0; i < 2; i++)
            {
                Assert.True(threads[i].Join(20_000), "a vCPU did not notice");
                Assert.Equal(KVM_EXIT_MMIO, g.Vm.Vcpus[i].KvmRun->exit_reason);
                Assert.Equal(Extra, g.Vm.Vcpus[i].KvmRun->mmio.phys_addr);
            }
            Assert.Equal(frozen, *(int*)ram.Hva);
            // Finish the read so that the next round starts afresh.
            for (int i = 0; i < 2; i++)
            {
                g.Vm.Vcpus[i].KvmRun->immediate_exit = 1;
                g.Vm.Vcpus[i].Run();
                g.Vm.Vcpus[i].KvmRun->immediate_exit = 0;
            }
        }
        Assert.True(g.Vm.Stats.requests > 0);
    }

    [Theory]
    [InlineData(DirtyTracking.DirtyLog)]
    [InlineData(DirtyTracking.DirtyScan)]
    [InlineData(DirtyTracking.WriteProtect)]
    public void DirtyLog_HasEveryPageWrittenSinceTheLastCall(DirtyTracking tracking)
    {
        using TestGuest g = new(options: new VmOptions { DirtyTracking = tracking });
        using GuestRam ram = new(0x10000);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, KVM_MEM_LOG_DIRTY_PAGES, Extra, 0x10000, ram.Hva));
        // mov ebx, Extra; out 0x80, al; inc [rbx]; inc [rbx+0x3000]; out 0x80, al; inc [rbx+0x5000]; out 0xf4
        g.Load(0xbb, 0x00, 0x00, 0x00, 0x40, 0xe6, 0x80, 0xff, 0x03, 0xff, 0x83, 0x00, 0x30, 0, 0, 0xe6, 0x80, 0xff, 0x83, 0x00, 0x50, 0, 0, 0xe6, 0xf4);
        ulong bits = 0;
        g.Run();
        Assert.Equal(0, g.Vm.Mmu.GetDirtyLog(1, (ulong)&bits));
        g.Run();
        Assert.Equal(0, g.Vm.Mmu.GetDirtyLog(1, (ulong)&bits));
        Assert.Equal(0b1001UL, bits);
        g.RunToEnd();
        Assert.Equal(0, g.Vm.Mmu.GetDirtyLog(1, (ulong)&bits));
        Assert.Equal(0b100000UL, bits);
    }

    /// <summary>
    /// The processor's log holds 512 pages: the guest goes on where it stopped when it was full, and only write protection faults for pages that are
    /// mapped.
    /// </summary>
    [Theory]
    [InlineData(DirtyTracking.DirtyLog, 0, 3)]
    [InlineData(DirtyTracking.DirtyScan, 0, 0)]
    [InlineData(DirtyTracking.WriteProtect, 1600, 1600)]
    public void WritesToMappedPages_AreLogged_AtTheCostOfTheTracking(DirtyTracking tracking, int leastExits, int mostExits)
    {
        const int pages = 1600;
        using TestGuest g = new(options: new VmOptions { DirtyTracking = tracking });
        using GuestRam ram = new(pages * 4096);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, KVM_MEM_LOG_DIRTY_PAGES, Extra, pages * 4096, ram.Hva));
        // start: mov ebx, Extra; mov ecx, pages; again: inc dword [rbx]; add rbx, 4096; loop again; out 0xf4, al; jmp start
        g.Load(0xbb, 0, 0, 0, 0x40, 0xb9, 0x40, 0x06, 0, 0, 0xff, 0x03, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0xe2, 0xf5, 0xe6, 0xf4, 0xeb, 0xe7);
        ulong[] bitmap = new ulong[pages / 64];
        for (int round = 1; round <= 3; round++)
        {
            ulong exits = g.Cpu.Stats.exits;
            g.RunToEnd();
            exits = g.Cpu.Stats.exits - exits;
            if (round > 1)
                Assert.InRange((int)exits - 1, leastExits, mostExits + 1);
            fixed (ulong* b = bitmap)
                Assert.Equal(0, g.Vm.Mmu.GetDirtyLog(1, (ulong)b));
            Assert.All(bitmap, static word => Assert.Equal(ulong.MaxValue, word));
            Assert.Equal(round, *(int*)(ram.Hva + (pages - 1) * 4096));
        }
    }

    [Fact]
    public void HostMemoryGivenBack_IsFaultedInAgainAsZeros()
    {
        using TestGuest g = new();
        using GuestRam ram = new(0x4000);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, 0, Extra, 0x4000, ram.Hva));
        // mov ebx, Extra; mov dword [rbx], 7; out 0x80; mov eax, [rbx]; out 0xf4, al
        g.Load(0xbb, 0x00, 0x00, 0x00, 0x40, 0xc7, 0x03, 0x07, 0, 0, 0, 0xe6, 0x80, 0x8b, 0x03, 0xe6, 0xf4);
        g.Run();
        Assert.Equal(7, *(int*)ram.Hva);
        ram.Discard(0, 0x4000, g.Vm.Slots.Notifier);
        Assert.Equal(0, g.RunToEnd());
    }

    [Fact]
    public void CodeWrittenByTheHost_IsExecuted()
    {
        using TestGuest g = new();
        // again: mov al, 1; out 0xf4, al; jmp again
        g.Load(0xb0, 0x01, 0xe6, 0xf4, 0xeb, 0xfa);
        Assert.Equal(1, g.RunToEnd());
        Assert.Equal(1, g.RunToEnd());
        g.LoadAt(TestGuest.Code + 1, 0x02);
        Assert.Equal(2, g.RunToEnd());
    }
}
