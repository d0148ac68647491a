using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>Writes to read-only slots are the client's, whatever was mapped before.</summary>
public sealed unsafe class ReadOnlyTests
{
    [Theory]
    [InlineData(1UL)]
    [InlineData(0x20UL)]
    public void Write_WithoutAnEarlierRead_LeavesAsMmio(ulong pages)
    {
        using TestGuest g = new();
        using GuestRam rom = new(pages << 12);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, KVM_MEM_READONLY, 0x200_0000, pages << 12, rom.Hva));
        // mov ebx, 0x2000000; mov [rbx], eax; mov [rbx + 4], edx; mov eax, [rbx]; mov al, 7; out 0xf4, al
        g.Load(0xbb, 0, 0, 0, 2, 0x89, 0x03, 0x89, 0x53, 0x04, 0x8b, 0x03, 0xb0, 0x07, 0xe6, 0xf4);
        foreach (ulong at in (ulong[])[0x200_0000, 0x200_0004])
        {
            Assert.Equal(KVM_EXIT_MMIO, g.Run());
            Assert.Equal((at, 1), (g.Cpu.KvmRun->mmio.phys_addr, g.Cpu.KvmRun->mmio.is_write));
        }
        Assert.Equal(7, g.RunToEnd());
    }

    [Fact]
    public void ReadModifyWrite_ReadsTheMemory_AndLeavesWithTheWrite()
    {
        using TestGuest g = new();
        using GuestRam rom = new(0x1000);
        *(uint*)rom.Hva = 0x41;
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, KVM_MEM_READONLY, 0x200_0000, 0x1000, rom.Hva));
        // inc dword [0x2000000]; mov al, 7; out 0xf4, al
        g.Load(0xff, 0x04, 0x25, 0, 0, 0, 2, 0xb0, 0x07, 0xe6, 0xf4);
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Assert.Equal((0x200_0000UL, 1, 0x42), (g.Cpu.KvmRun->mmio.phys_addr, g.Cpu.KvmRun->mmio.is_write, g.Cpu.KvmRun->mmio.data[0]));
        Assert.Equal(7, g.RunToEnd());
    }
}
