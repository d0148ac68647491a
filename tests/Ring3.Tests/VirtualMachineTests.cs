using System.Text;
using Ring3.Abi;

namespace Ring3.Tests;

/// <summary>The public library as a program uses it.</summary>
public sealed class VirtualMachineTests
{
    /// <summary>mov si, message; next: lodsb; test al, al; jz done; out 0xe9, al; jmp next; done: hlt; message.</summary>
    private static readonly byte[] s_hello = [0xbe, 0x0d, 0x10, 0xac, 0x84, 0xc0, 0x74, 0x04, 0xe6, 0xe9, 0xeb, 0xf7, 0xf4, .. "hello\0"u8];

    [Fact]
    public void Dispose_EndsARunOfAnotherThread_AndTheMembersSayWhy()
    {
        var vm = VirtualMachine.Create();
        vm.MapMemory(0x1000, 4096);
        // jmp here
        Assert.True(vm.Memory.Write(0x1000, [0xeb, 0xfe]));
        VirtualCpu cpu = vm.CreateCpu();
        cpu.StartInRealMode(0x1000);
        Exception? end = null;
        var thread = new Thread(() => end = Record.Exception(() => { cpu.Run(); }));
        thread.Start();
        SpinWait.SpinUntil(() => cpu.InstructionsRetired != 0, 10_000);
        vm.Dispose();
        Assert.True(thread.Join(60_000));
        Assert.IsType<ObjectDisposedException>(end);
        Assert.Throws<ObjectDisposedException>(() => { cpu.Run(); });
        Assert.Throws<ObjectDisposedException>(() => cpu.Registers);
        Assert.Throws<ObjectDisposedException>(cpu.Stop);
        vm.Dispose();
    }

    [Fact]
    public void RealModeGuest_PrintsAndHalts()
    {
        using var vm = VirtualMachine.Create();
        vm.MapMemory(0x1000, 4096);
        Assert.True(vm.Memory.Write(0x1000, s_hello));
        VirtualCpu cpu = vm.CreateCpu();
        cpu.StartInRealMode(0x1000);
        StringBuilder text = new();
        while (true)
        {
            CpuExit exit = cpu.Run();
            if (exit.Kind == CpuExitKind.Halt)
                break;
            Assert.Equal(CpuExitKind.PortWrite, exit.Kind);
            Assert.Equal((0xe9, 1, 1), (exit.Port, exit.Size, exit.Count));
            text.Append((char)exit.Data[0]);
        }
        Assert.Equal("hello", text.ToString());
        Assert.True(cpu.InstructionsRetired > 20);
    }

    [Fact]
    public void LongModeGuest_ReadsPortsAndDeviceMemory()
    {
        using var vm = VirtualMachine.Create();
        vm.MapMemory(0, 1 << 20);
        // in eax, 0x10; mov ebx, 0xd0000000; add eax, [rbx]; mov [rbx+4], eax; hlt
        vm.Memory.Write(0x1000, [0xe5, 0x10, 0xbb, 0, 0, 0, 0xd0, 0x03, 0x03, 0x89, 0x43, 0x04, 0xf4]);
        VirtualCpu cpu = vm.CreateCpu();
        cpu.StartInLongMode(entry: 0x1000, stack: 0x8000, tables: 0x10000);
        CpuExit exit = cpu.Run();
        Assert.Equal(CpuExitKind.PortRead, exit.Kind);
        BitConverter.TryWriteBytes(exit.Data, 40);
        exit = cpu.Run();
        Assert.Equal((CpuExitKind.MmioRead, 0xd0000000UL, 4), (exit.Kind, exit.Address, exit.Size));
        BitConverter.TryWriteBytes(exit.Data, 2);
        exit = cpu.Run();
        Assert.Equal((CpuExitKind.MmioWrite, 0xd0000004UL), (exit.Kind, exit.Address));
        Assert.Equal(42, BitConverter.ToInt32(exit.Data));
        Assert.Equal(CpuExitKind.Halt, cpu.Run().Kind);
        Assert.Equal(42UL, cpu.Registers.rax);
    }

    [Fact]
    public void Stop_InterruptsARunningGuest_AndRunExecutesOn()
    {
        using var vm = VirtualMachine.Create();
        vm.MapMemory(0, 1 << 20);
        vm.Memory.Write(0x1000, [0xeb, 0xfe]);
        VirtualCpu cpu = vm.CreateCpu();
        cpu.StartInLongMode(0x1000, 0x8000, 0x10000);
        using (new Timer(_ => cpu.Stop(), null, 20, Timeout.Infinite))
            Assert.Equal(CpuExitKind.Interrupted, cpu.Run().Kind);
        vm.Memory.Write(0x1000, [0xf4, 0x90]);
        Assert.Equal(CpuExitKind.Halt, cpu.Run().Kind);
    }

    [Fact]
    public void Garbage_EndsInAnExitAndNotInAnException()
    {
        Random random = new(1);
        for (int i = 0; i < 60; i++)
        {
            using var vm = VirtualMachine.Create();
            vm.MapMemory(0, 1 << 16);
            byte[] code = new byte[64];
            random.NextBytes(code);
            vm.Memory.Write(0x1000, code);
            VirtualCpu cpu = vm.CreateCpu();
            cpu.StartInRealMode(0x1000);
            using Timer t = new(_ => cpu.Stop(), null, 20, Timeout.Infinite);
            for (int exits = 0; exits < 100; exits++)
                if (cpu.Run().Kind is CpuExitKind.Interrupted or CpuExitKind.Shutdown or CpuExitKind.Halt or CpuExitKind.Error)
                    break;
        }
    }

    [Fact]
    public void Mistakes_AreExceptionsWithAnErrno()
    {
        using var vm = VirtualMachine.Create();
        vm.MapMemory(0, 0x2000);
        Assert.Equal(Errno.EEXIST, Assert.Throws<Ring3Exception>(() => vm.MapMemory(0x1000, 0x1000)).Errno);
        Assert.Equal(Errno.EINVAL, Assert.Throws<Ring3Exception>(() => vm.MapMemory(0x5001, 0x1000)).Errno);
        VirtualCpu cpu = vm.CreateCpu();
        kvm_sregs s = cpu.SpecialRegisters;
        s.cr0 = 0x8000_0000;
        Assert.Contains("EINVAL", Assert.Throws<Ring3Exception>(() => cpu.SpecialRegisters = s).Message);
        Assert.Throws<Ring3Exception>(() => cpu.StartInLongMode(0, 0, 0x100000));
        Assert.Throws<ArgumentOutOfRangeException>(() => cpu.StartInRealMode(0x100000));
        // A second interrupt replaces the first, as KVM_INTERRUPT does.
        cpu.Interrupt(1);
        cpu.Interrupt(2);
        Assert.Equal(1UL << 2, InterruptBitmap(cpu));
    }

    private static unsafe ulong InterruptBitmap(VirtualCpu cpu)
    {
        kvm_sregs s = cpu.SpecialRegisters;
        return s.interrupt_bitmap[0];
    }

    [Fact]
    public void InterruptControllers_MakeHaltWait()
    {
        using var vm = VirtualMachine.Create(new VirtualMachineOptions { InterruptControllers = true });
        vm.MapMemory(0, 1 << 20);
        vm.Memory.Write(0x1000, [0xf4]);
        VirtualCpu cpu = vm.CreateCpu();
        cpu.StartInLongMode(0x1000, 0x8000, 0x10000);
        using Timer t = new(_ => cpu.Stop(), null, 50, Timeout.Infinite);
        Assert.Equal(CpuExitKind.Interrupted, cpu.Run().Kind);
        Assert.Throws<Ring3Exception>(() => cpu.Interrupt(3));
    }

    /// <summary>A program that uses 32 MiB in 8 MiB: what was written is there, and the limit holds for memory that is mapped later too.</summary>
    [Fact]
    public void LimitResident_KeepsDataInsideTheLimit()
    {
        const ulong Limit = 8 << 20, Half = 16 << 20;
        using var vm = VirtualMachine.Create();
        vm.MapMemory(0, Half);
        var limit = vm.LimitResident(Limit);
        vm.MapMemory(Half, Half);
        for (ulong at = 0; at < 2 * Half; at += 4096)
        {
            Assert.True(vm.Memory.TryWrite(at + 8, at * 3));
            if (limit.ResidentBytes > Limit - (2 << 20))
                Assert.True(limit.EvictTo(Limit / 2));
        }
        for (ulong at = 0; at < 2 * Half; at += 4096)
        {
            Assert.True(vm.Memory.TryRead(at + 8, out ulong value));
            Assert.Equal(at * 3, value);
        }
        Assert.True(limit.Measure().Evictions > 4096);
    }
}
