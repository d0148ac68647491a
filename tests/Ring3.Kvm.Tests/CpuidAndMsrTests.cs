using Ring3.Abi;
using Ring3.Arch;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>KVM_SET_CPUID2, KVM_GET_MSRS and KVM_SET_MSRS, MSR filters, restriction of paravirtual features, TSC synchronisation.</summary>
public sealed unsafe class CpuidAndMsrTests
{
    private static int Set(Vcpu v, uint msr, ulong value) => v.SetMsrs([new kvm_msr_entry { index = msr, data = value }]);

    private static ulong Get(Vcpu v, uint msr)
    {
        kvm_msr_entry[] e = [new() { index = msr }];
        Assert.Equal(1, v.GetMsrs(e));
        return e[0].data;
    }

    [Theory]
    [InlineData(false, false)]
    [InlineData(true, false)]
    [InlineData(true, true)]
    public void EveryListedMsr_IsReadable_AndTakesBackWhatWasRead(bool irqchip, bool enforce)
    {
        using TestGuest g = new(irqchip);
        if (enforce)
        {
            kvm_cpuid_entry2[] entries = SupportedCpuid.Entries.ToArray();
            Assert.Equal(0, g.Cpu.SetCpuid2(Array.FindAll(entries, e => e.function != KvmPara.KVM_CPUID_FEATURES)));
            kvm_enable_cap cap = new() { cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID };
            cap.args[0] = 1;
            Assert.Equal(0, g.Cpu.EnableCap(cap));
        }
        foreach (uint msr in KvmSystem.MsrIndexList)
        {
            ulong value = Get(g.Cpu, msr);
            Assert.True(Set(g.Cpu, msr, value) == 1, $"MSR {msr:x} refuses {value:x}");
        }
        Assert.Equal(KvmSystem.MsrIndexList.ToArray().Distinct().Count(), KvmSystem.MsrIndexList.Length);
    }

    /// <summary>QEMU writes every listed register of a new vCPU, whatever CPUID it has given it.</summary>
    [Theory]
    [InlineData("intel")]
    [InlineData("amd")]
    public void EveryListedMsr_IsTheClients_WhateverTheGuestSees(string name)
    {
        Assert.True(Cpu.ProcessorModel.TryParse(name, out Cpu.ProcessorModel model));
        foreach (bool empty in (bool[])[false, true])
        {
            using TestGuest g = new(irqchip: true, options: new VmOptions { Processor = model }, cpuid: false);
            if (!empty)
                Assert.Equal(0, g.Cpu.SetCpuid2(Array.ConvertAll(SupportedCpuid.Of(model).ToArray(), e => e.function is 0 or 0x8000_0000 ? e
                    : new() { function = e.function, index = e.index, flags = e.flags })));
            foreach (uint msr in KvmSystem.MsrIndexListOf(model))
            {
                ulong value = Get(g.Cpu, msr);
                Assert.True(Set(g.Cpu, msr, value) == 1, $"MSR {msr:x} refuses {value:x}");
                Assert.True(Set(g.Cpu, msr, 0) == 1 || value != 0, $"MSR {msr:x} refuses 0");
            }
        }
    }

    [Fact]
    public void MsrLists_StopAtTheFirstUnknown()
    {
        using TestGuest g = new();
        kvm_msr_entry[] entries = [new() { index = Msr.STAR, data = 7 }, new() { index = 0xdead_0000 }, new() { index = Msr.STAR }];
        Assert.Equal(1, g.Cpu.SetMsrs(entries));
        Assert.Equal(1, g.Cpu.GetMsrs(entries));
        Assert.Equal(7UL, entries[0].data);
        Assert.Equal(0, Set(g.Cpu, Msr.XSS, 1));
    }

    [Fact]
    public void Cpuid_IsFixedAfterTheFirstEntry()
    {
        using TestGuest g = new();
        kvm_cpuid_entry2[] entries = SupportedCpuid.Entries.ToArray();
        ref kvm_cpuid_entry2 sizes = ref entries[Array.FindIndex(entries, e => e.function == 0x8000_0008)];
        sizes.eax = sizes.eax & ~0xff00u | 50 << 8;
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetCpuid2(entries));
        sizes.eax = sizes.eax & ~0xff00u | 48 << 8;
        Assert.Equal(0, g.Cpu.SetCpuid2(entries));
        g.Load(0xf4);
        g.Run();
        Assert.Equal(0, g.Cpu.SetCpuid2(entries));
        // What follows the state of the processor does not count, neither the older nor the newer value.
        entries[Array.FindIndex(entries, e => e.function == 1)].ecx ^= 1 << 27;
        Assert.Equal(0, g.Cpu.SetCpuid2(entries));
        entries[Array.FindIndex(entries, e => e.function == 7)].ebx--;
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetCpuid2(entries));
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetCpuid2(entries.AsSpan(1)));
    }

    [Fact]
    public void Cpuid_OffersOnlyTheDocumentedHypervisorLeaves_UntilTheClientAddsTiming()
    {
        kvm_cpuid_entry2[] entries = SupportedCpuid.Entries.ToArray(), timed = SupportedCpuid.WithTiming(1234, true);
        Assert.Equal(0x4000_0001u, Array.Find(entries, e => e.function == 0x4000_0000).eax);
        Assert.DoesNotContain(entries, e => e.function == 0x4000_0010);
        Assert.Equal(0x4000_0010u, Array.Find(timed, e => e.function == 0x4000_0000).eax);
        Assert.Equal(0u, Array.Find(entries, e => e.function == 1).ecx & 1 << 24);
        Assert.Equal(1u << 24, Array.Find(timed, e => e.function == 1).ecx & 1 << 24);
        Assert.Equal(1234u, Array.Find(timed, e => e.function == 0x4000_0010).eax);
    }

    [Fact]
    public void DisabledHltExits_TakePvUnhaltAway_WhereKvmsSignatureIs()
    {
        using TestGuest g = new();
        kvm_enable_cap cap = new() { cap = KVM_CAP_X86_DISABLE_EXITS };
        cap.args[0] = 1 << 4;
        Assert.Equal(-Errno.EINVAL, g.Vm.EnableCap(cap));
        Assert.True(HasUnhalt(g.Cpu));
        cap.args[0] = KVM_X86_DISABLE_EXITS_HLT;
        Assert.Equal(0, g.Vm.EnableCap(cap));
        Assert.False(HasUnhalt(g.Cpu));
        kvm_cpuid_entry2[] entries = SupportedCpuid.Entries.ToArray();
        entries[Array.FindIndex(entries, e => e.function == KvmPara.KVM_CPUID_SIGNATURE)].ebx = 0xdeadbeef;
        Assert.Equal(0, g.Cpu.SetCpuid2(entries));
        Assert.True(HasUnhalt(g.Cpu));
    }

    private static bool HasUnhalt(Vcpu v) => (v.Cpuid(KvmPara.KVM_CPUID_FEATURES, 0).Eax >> KvmPara.KVM_FEATURE_PV_UNHALT & 1) != 0;

    [Fact]
    public void EnforcedPvFeatures_FaultInTheGuest_AndTakeOnlyZeroFromTheClient()
    {
        using TestGuest g = new();
        Assert.Equal(0, g.Cpu.SetCpuid2(Array.FindAll(SupportedCpuid.Entries.ToArray(), e => e.function != KvmPara.KVM_CPUID_FEATURES)));
        kvm_enable_cap cap = new() { cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID };
        cap.args[0] = 1;
        Assert.Equal(0, g.Cpu.EnableCap(cap));
        Assert.Equal(0, Set(g.Cpu, Msr.KVM_STEAL_TIME, 0x30001));
        // #GP: mov al, 13; out 0xf4. Code: mov ecx, MSR; rdmsr; mov al, 0; out 0xf4
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4);
        g.Load(0xb9, 0x03, 0x4d, 0x56, 0x4b, 0x0f, 0x32, 0xb0, 0, 0xe6, 0xf4);
        Assert.Equal(13, g.RunToEnd());
    }

    [Fact]
    public void MsrFilter_SeesTheProcessorsOwnMsrs_AndTheClientAnswers()
    {
        using TestGuest g = new();
        kvm_enable_cap cap = new() { cap = KVM_CAP_X86_USER_SPACE_MSR };
        cap.args[0] = KVM_MSR_EXIT_REASON_FILTER;
        Assert.Equal(0, g.Vm.EnableCap(cap));
        ulong deny = 0;
        kvm_msr_filter filter = default;
        filter.ranges[0] = new() { flags = KVM_MSR_FILTER_READ, @base = Msr.FS_BASE, nmsrs = 1, bitmap = (ulong)&deny };
        Assert.Equal(0, g.Vm.SetMsrFilter(filter));
        // mov ecx, FS_BASE; rdmsr; mov ecx, GS_BASE; mov ebx, eax; rdmsr; mov al, bl; out 0xf4
        g.Load(0xb9, 0x00, 0x01, 0x00, 0xc0, 0x0f, 0x32, 0xb9, 0x01, 0x01, 0x00, 0xc0, 0x89, 0xc3, 0x0f, 0x32, 0x88, 0xd8, 0xe6, 0xf4);
        Assert.Equal(KVM_EXIT_X86_RDMSR, g.Run());
        Assert.Equal((Msr.FS_BASE, KVM_MSR_EXIT_REASON_FILTER), (g.Cpu.KvmRun->msr.index, g.Cpu.KvmRun->msr.reason));
        g.Cpu.KvmRun->msr.data = 0x5a;
        Assert.Equal(0x5a, g.RunToEnd());
        filter.ranges[0].bitmap = 8;
        Assert.Equal(-Errno.EFAULT, g.Vm.SetMsrFilter(filter));
        filter.ranges[0].nmsrs = 0;
        Assert.Equal(0, g.Vm.SetMsrFilter(filter));
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
        Assert.Equal(0, g.RunToEnd());
    }

    [Fact]
    public void UnknownAndInvalidAccesses_LeaveWithTheirReason_OnlyWhenAskedFor()
    {
        using TestGuest g = new();
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4);
        kvm_enable_cap cap = new() { cap = KVM_CAP_X86_USER_SPACE_MSR };
        cap.args[0] = KVM_MSR_EXIT_REASON_UNKNOWN;
        Assert.Equal(0, g.Vm.EnableCap(cap));
        // mov ecx, 0xdeadbeef; wrmsr; mov ecx, XSS; mov eax, 1; xor edx, edx; wrmsr
        g.Load(0xb9, 0xef, 0xbe, 0xad, 0xde, 0x0f, 0x30, 0xb9, 0xa0, 0x0d, 0x00, 0x00, 0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0xf4);
        Assert.Equal(KVM_EXIT_X86_WRMSR, g.Run());
        Assert.Equal(KVM_MSR_EXIT_REASON_UNKNOWN, g.Cpu.KvmRun->msr.reason);
        Assert.Equal(13, g.RunToEnd());
        cap.args[0] = KVM_MSR_EXIT_REASON_INVAL;
        Assert.Equal(0, g.Vm.EnableCap(cap));
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code + 7, rsp = TestGuest.Stack, rflags = 2 });
        Assert.Equal(KVM_EXIT_X86_WRMSR, g.Run());
        Assert.Equal((Msr.XSS, KVM_MSR_EXIT_REASON_INVAL), (g.Cpu.KvmRun->msr.index, g.Cpu.KvmRun->msr.reason));
    }

    [Fact]
    public void Tsc_VcpusStartTogether_AndTheClientsFirstValueIsExact()
    {
        using TestGuest g = new(cpus: 2);
        Vcpu a = g.Vm.Vcpus[0], b = g.Vm.Vcpus[1];
        Assert.Equal(a.TscOffset, b.TscOffset);
        Assert.InRange(a.GuestTsc(), 0UL, a.TscKhz * 60_000UL);
        // Near what the vCPUs have counted up to, and yet not taken for it.
        ulong value = a.GuestTsc() + a.TscKhz * 100UL, before = a.TscOffset;
        Assert.Equal(1, Set(a, Msr.TSC, value));
        Assert.NotEqual(before, a.TscOffset);
        Assert.Equal(1, Set(b, Msr.TSC, value));
        Assert.Equal(a.TscOffset, b.TscOffset);
        Vcpu c = g.Vm.CreateVcpu(2);
        Assert.Equal(a.TscOffset, c.TscOffset);
        // An offset given by the client is what the next one joins.
        a.TscOffset = 12345;
        Assert.Equal(1, Set(b, Msr.TSC, 0));
        Assert.Equal(12345UL, b.TscOffset);
        Assert.Equal(0, a.SetTscKhz(1_000_000));
        Assert.Equal(0, b.SetTscKhz(1_000_000));
        Assert.Equal(a.TscOffset, b.TscOffset);
    }
}
