using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>CPUID faulting: MSR_PLATFORM_INFO bit 31 offers it, MSR_MISC_FEATURES_ENABLES bit 0 makes CPUID above CPL 0 a #GP(0).</summary>
public sealed unsafe class CpuidFaultingTests
{
    private const uint PlatformInfo = 0xce, MiscFeatures = 0x140;

    private static int Set(Vcpu v, uint msr, ulong value) => v.SetMsrs([new kvm_msr_entry { index = msr, data = value }]);

    /// <summary>mov al, 0; cpuid; mov al, 1; out 0xf4, al; the handler of #GP writes 13.</summary>
    private static TestGuest Guest() =>
        new TestGuest().SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4).Load(0x31, 0xc0, 0x0f, 0xa2, 0xb0, 1, 0xe6, 0xf4);

    [Fact]
    public void AboveCpl0_IsAFaultAtTheInstruction_OnlyWhileEnabled()
    {
        using TestGuest g = Guest();
        Assert.Equal(1, g.StartUser().RunToEnd());
        Assert.Equal(1, Set(g.Cpu, MiscFeatures, 1));
        Assert.Equal(13, g.StartUser().RunToEnd());
        // Error code 0, and RIP of the CPUID.
        Assert.True(g.Vm.Memory.TryRead(g.Regs().rsp, out ulong code));
        Assert.True(g.Vm.Memory.TryRead(g.Regs().rsp + 8, out ulong rip));
        Assert.Equal((0UL, TestGuest.Code + 2), (code, rip));
        Assert.Equal(0UL, g.Regs().rbx);
        TestGuest.StartLong(g.Cpu, TestGuest.Code, TestGuest.Stack);
        Assert.Equal(1, g.RunToEnd());
        Assert.Equal(1, Set(g.Cpu, MiscFeatures, 0));
        Assert.Equal(1, g.StartUser().RunToEnd());
    }

    [Fact]
    public void InSystemManagementMode_NothingFaults()
    {
        using TestGuest g = Guest();
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1 << 16, 0, 0, TestGuest.RamBytes, g.Ram.Hva));
        Assert.Equal(1, Set(g.Cpu, MiscFeatures, 1));
        g.StartUser();
        g.Cpu.GetVcpuEvents(out kvm_vcpu_events e);
        e.flags = KVM_VCPUEVENT_VALID_SMM;
        e.smi.smm = 1;
        Assert.Equal(0, g.Cpu.SetVcpuEvents(e));
        Assert.Equal(1, g.RunToEnd());
    }

    [Fact]
    public void TheGuest_SwitchesItOn_WhereThePlatformOffersIt()
    {
        using TestGuest g = Guest();
        // mov ecx, 0x140; mov eax, [value]; xor edx, edx; wrmsr; mov al, 2; out 0xf4, al
        byte[] code = [0xb9, 0x40, 1, 0, 0, 0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0xb0, 2, 0xe6, 0xf4];
        g.LoadAt(0x12000, code);
        TestGuest.StartLong(g.Cpu, 0x12000, TestGuest.Stack);
        Assert.Equal(2, g.RunToEnd());
        Assert.Equal(13, g.StartUser().RunToEnd());
        // A reserved bit is refused, and the refused value is not kept.
        g.LoadAt(0x12006, 2);
        TestGuest.StartLong(g.Cpu, 0x12000, TestGuest.Stack);
        Assert.Equal(13, g.RunToEnd());
        Assert.Equal(0, Set(g.Cpu, MiscFeatures, 2));
        kvm_msr_entry[] read = [new() { index = MiscFeatures }];
        Assert.Equal(1, g.Cpu.GetMsrs(read));
        Assert.Equal(1UL, read[0].data);
        Assert.Equal(1, Set(g.Cpu, MiscFeatures, 0));
        Assert.Equal(1, Set(g.Cpu, PlatformInfo, 0));
        Assert.Equal(0, Set(g.Cpu, MiscFeatures, 1));
        g.LoadAt(0x12006, 1);
        TestGuest.StartLong(g.Cpu, 0x12000, TestGuest.Stack);
        Assert.Equal(13, g.RunToEnd());
    }
}
