using Ring3;

namespace BootSectorTest;

/// <summary>A unit test of a boot sector: it runs on a processor of the test's own, which sees every byte that leaves.</summary>
public class BootSectorTests
{
    private const ulong LoadAddress = 0x7c00;

    // xor ax, ax; mov ds, ax; mov cx, 10; next: add ax, cx; loop next; mov [0x500], ax; out 0xe9, al; hlt
    private static readonly byte[] s_code = [0x31, 0xc0, 0x8e, 0xd8, 0xb9, 0x0a, 0x00, 0x01, 0xc8, 0xe2, 0xfc, 0xa3, 0x00, 0x05, 0xe6, 0xe9, 0xf4];

    private static byte[] Sector()
    {
        byte[] sector = new byte[512];
        s_code.CopyTo(sector, 0);
        (sector[510], sector[511]) = (0x55, 0xaa);
        return sector;
    }

    [Fact]
    public void Sum_GoesToThePortAndToMemory()
    {
        using var vm = VirtualMachine.Create();
        vm.MapMemory(0, 1 << 20);
        vm.Memory.Write(LoadAddress, Sector());
        VirtualCpu cpu = vm.CreateCpu();
        cpu.StartInRealMode((uint)LoadAddress);

        CpuExit exit = cpu.Run();
        Assert.Equal((CpuExitKind.PortWrite, 0xe9, 55), (exit.Kind, exit.Port, exit.Data[0]));
        Assert.Equal(CpuExitKind.Halt, cpu.Run().Kind);

        byte[] stored = new byte[2];
        vm.Memory.Read(0x500, stored);
        Assert.Equal([55, 0], stored);
    }

    [Fact]
    public void Registers_AreWhatTheLoopLeaves()
    {
        using var vm = VirtualMachine.Create();
        vm.MapMemory(0, 1 << 20);
        vm.Memory.Write(LoadAddress, Sector());
        VirtualCpu cpu = vm.CreateCpu();
        cpu.StartInRealMode((uint)LoadAddress);
        while (cpu.Run().Kind != CpuExitKind.Halt)
        {
        }
        Assert.Equal((55UL, 0UL), (cpu.Registers.rax, cpu.Registers.rcx));
    }
}
