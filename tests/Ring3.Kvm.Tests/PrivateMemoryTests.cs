using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>guest_memfd, memory attributes, memory-fault exits and pre-faulting.</summary>
public sealed unsafe class PrivateMemoryTests : IDisposable
{
    private const ulong Gpa = 0x4000_0000, Bytes = 4 << 20;

    private readonly TestGuest _g = new(options: new VmOptions { Type = KVM_X86_SW_PROTECTED_VM });
    private readonly GuestRam _shared = new(Bytes);
    private readonly GuestMemfd _private;

    public PrivateMemoryTests()
    {
        Assert.Equal(0, _g.Vm.CreateGuestMemfd(new kvm_create_guest_memfd { size = Bytes }, out GuestMemfd? memory));
        _private = memory!;
        Assert.Equal(0, _g.Vm.SetUserMemoryRegion(Region(Bytes), _private));
        // mov ebx, Gpa; again: mov eax, [rbx]; inc dword [rbx]; out 0xf4, al; jmp again
        _g.Load(0xbb, 0, 0, 0, 0x40, 0x8b, 0x03, 0xff, 0x03, 0xe6, 0xf4, 0xeb, 0xf8);
    }

    private kvm_userspace_memory_region2 Region(ulong bytes) => new() { slot = 1, flags = KVM_MEM_GUEST_MEMFD, guest_phys_addr = Gpa, memory_size = bytes,
        userspace_addr = _shared.Hva };

    public void Dispose()
    {
        _g.Dispose();
        Host.MemFd.Close(_private.Fd);
        _shared.Dispose();
    }

    private void Convert(ulong gpa, ulong size, bool isPrivate)
        => Assert.Equal(0, _g.Vm.SetMemoryAttributes(new kvm_memory_attributes { address = gpa, size = size, attributes = isPrivate
            ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0 }));

    private void ExpectFault(ulong gpa)
    {
        Assert.Equal(-Errno.EFAULT, _g.Cpu.Run());
        kvm_run* run = _g.Cpu.KvmRun;
        Assert.Equal(KVM_EXIT_MEMORY_FAULT, run->exit_reason);
        Assert.Equal((KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa, 4096UL), (run->memory_fault.flags, run->memory_fault.gpa, run->memory_fault.size));
    }

    [Fact]
    public void Attributes_ChooseBetweenTwoMemories()
    {
        Assert.Equal(0, _g.RunToEnd());
        Assert.Equal(1, _g.RunToEnd());
        Convert(Gpa, 4096, true);
        Assert.Equal(0, _g.RunToEnd());
        Assert.Equal(2, *(int*)_shared.Hva);
        Assert.Equal(1, *(int*)_private.Hva);
        Convert(Gpa, 4096, false);
        Assert.Equal(2, _g.RunToEnd());
        Convert(Gpa, Bytes, true);
        Assert.Equal(1, _g.RunToEnd());
        Assert.Equal(0, _private.Allocate(_private.Fd, 3, 0, 4096));
        Assert.Equal(0, _g.RunToEnd());
    }

    [Fact]
    public void PrivateFramesWithoutMemory_AreForTheClient()
    {
        Convert(Gpa, 4096, true);
        Assert.Equal(0, _g.RunToEnd());
        Assert.Equal(0, _g.Vm.SetUserMemoryRegion(Region(0), null));
        ExpectFault(Gpa);
        Assert.Equal(0, _g.Vm.SetUserMemoryRegion(1, 0, Gpa, Bytes, _shared.Hva));
        ExpectFault(Gpa);
        Convert(Gpa, 4096, false);
        Assert.Equal(0, _g.RunToEnd());
    }

    [Fact]
    public void ClosedGuestMemfd_IsReachedByNobody()
    {
        Convert(Gpa, 4096, true);
        Assert.Equal(0, _g.RunToEnd());
        _private.Release();
        ExpectFault(Gpa);
        Assert.Equal(0, *(int*)_private.Hva);
    }

    [Fact]
    public void HugeMappings_DoNotReachOverAttributes()
    {
        Convert(Gpa + 0x5000, 0x1000, true);
        Assert.Equal(0, _g.RunToEnd());
        Assert.Equal(0, _g.Vm.Stats.pages_2m - HugeOfRam());
        Convert(Gpa + 0x5000, 0x1000, false);
        Convert(Gpa, 4096, true);
        Convert(Gpa, 4096, false);
        Convert(Gpa + 0x20_0000, 0x20_0000, true);
        Assert.Equal(1, _g.RunToEnd());
        _private.Release();
    }

    /// <summary>Large mappings of slot 0, which the guest's code and tables use.</summary>
    private long HugeOfRam()
    {
        using TestGuest g = new();
        g.Load(0xe6, 0xf4);
        g.RunToEnd();
        return g.Vm.Stats.pages_2m;
    }

    [Theory]
    [InlineData(0UL, 0x40_0000UL, 0UL, 0)]
    [InlineData(0x3f_f000UL, 0x3000UL, 0x2000UL, 0)]
    [InlineData(0x40_0000UL, 0x1000UL, 0x1000UL, -Errno.ENOENT)]
    [InlineData(0x800UL, 0x1000UL, 0x1000UL, -Errno.EINVAL)]
    [InlineData(0UL, 0UL, 0UL, -Errno.EINVAL)]
    public void PreFault_ReportsWhatIsLeft(ulong offset, ulong size, ulong left, int expected)
    {
        var range = new kvm_pre_fault_memory { gpa = Gpa + offset, size = size };
        Assert.Equal(expected, _g.Cpu.PreFaultMemory(ref range));
        Assert.Equal(left, range.size);
        range = new kvm_pre_fault_memory { gpa = Gpa, size = size, flags = 1 };
        Assert.Equal(-Errno.EINVAL, _g.Cpu.PreFaultMemory(ref range));
    }

    [Fact]
    public void PreFaultedPages_NeedNoFault()
    {
        Convert(Gpa, Bytes, true);
        var range = new kvm_pre_fault_memory { gpa = Gpa, size = Bytes };
        Assert.Equal(0, _g.Cpu.PreFaultMemory(ref range));
        _g.RunToEnd();
        ulong before = _g.Cpu.MmuStats.PfTaken;
        _g.RunToEnd();
        Assert.Equal(before, _g.Cpu.MmuStats.PfTaken);
    }

    [Fact]
    public void Capabilities_DependOnTheTypeOfTheVm()
    {
        using Vm plain = Vm.Create();
        Assert.Equal(0, plain.CheckExtension(KVM_CAP_MEMORY_ATTRIBUTES));
        Assert.Equal(0, plain.CheckExtension(KVM_CAP_GUEST_MEMFD));
        Assert.Equal(8, _g.Vm.CheckExtension(KVM_CAP_MEMORY_ATTRIBUTES));
        Assert.Equal(1, _g.Vm.CheckExtension(KVM_CAP_GUEST_MEMFD));
        Assert.Equal(8, KvmSystem.CheckExtension(KVM_CAP_MEMORY_ATTRIBUTES));
        Assert.Equal(3, KvmSystem.CheckExtension(KVM_CAP_VM_TYPES));
    }
}
