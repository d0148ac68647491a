using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>What the guest's CPUID says bounds the values of MSRs and control registers; refused writes leave nothing behind; values at reset.</summary>
public sealed unsafe class MsrRuleTests
{
    private static int Set(Vcpu v, uint msr, ulong value) => v.SetMsrs([new kvm_msr_entry { index = msr, data = value }]);

    private static ulong Get(Vcpu v, uint msr)
    {
        kvm_msr_entry[] e = [new() { index = msr }];
        Assert.Equal(1, v.GetMsrs(e));
        return e[0].data;
    }

    /// <summary>WRMSR of ECX with EDX:EAX, then 1 on port 0xf4; #GP gives 13.</summary>
    private static int GuestWrites(TestGuest g, uint msr, ulong value)
    {
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4).Load([0xb9, .. BitConverter.GetBytes(msr), 0xb8, .. BitConverter.GetBytes((uint)value),
            0xba, .. BitConverter.GetBytes((uint)(value >> 32)), 0x0f, 0x30, 0xb0, 1, 0xe6, 0xf4]);
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
        return g.RunToEnd();
    }

    /// <summary>RDMSR of ECX, then the low byte on port 0xf4; #GP gives 0x113.</summary>
    private static int GuestReads(TestGuest g, uint msr)
    {
        List<byte> fault = [];
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xe6, 0xf5, 0xb0, 13, 0xe6, 0xf4).Load([0xb9, .. BitConverter.GetBytes(msr), 0x0f, 0x32, 0xe6, 0xf4]);
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
        int value = g.RunToEnd(output: fault);
        return fault.Count != 0 ? 0x113 : value;
    }

    private static kvm_cpuid_entry2[] Cpuid(Func<kvm_cpuid_entry2, kvm_cpuid_entry2> change) => [.. SupportedCpuid.Entries.ToArray().Select(change)];

    private static TestGuest WithPhysicalBits(uint bits, bool irqchip)
    {
        TestGuest g = new(irqchip, cpuid: false);
        Assert.Equal(0, g.Cpu.SetCpuid2(Cpuid(e => e with { eax = e.function == 0x8000_0008 ? e.eax & ~0xffu | bits : e.eax })));
        return g;
    }

    [Theory]
    [InlineData(40, true), InlineData(40, false), InlineData(52, true), InlineData(52, false)]
    public void PhysicalAddressWidth_BoundsApicBaseMtrrsAndCr3(int bits, bool irqchip)
    {
        using TestGuest g = WithPhysicalBits((uint)bits, irqchip);
        ulong top = 1UL << (bits - 1), beyond = 1UL << bits;
        foreach (ulong bit in (ulong[])[top, beyond])
        {
            bool ok = bit == top;
            Assert.Equal(ok ? 1 : 0, Set(g.Cpu, Msr.APIC_BASE, 0xfee0_0900 | bit));
            Assert.Equal(ok ? 1 : 0, Set(g.Cpu, 0x200, 6 | bit));
            Assert.Equal(ok ? 1 : 0, Set(g.Cpu, 0x201, 0x800 | bit));
            Assert.Equal(ok ? 1 : 13, GuestWrites(g, 0x202, 6 | bit));
            g.Cpu.GetSregs(out kvm_sregs s);
            s.apic_base = 0xfee0_0900;
            s.cr3 = TestGuest.Tables | bit;
            Assert.Equal(ok ? 0 : -Errno.EINVAL, g.Cpu.SetSregs(s));
            (s.cr3, s.apic_base) = (TestGuest.Tables, 0xfee0_0900 | bit);
            Assert.Equal(ok ? 0 : -Errno.EINVAL, g.Cpu.SetSregs(s));
            s.apic_base = 0xfee0_0900;
            Assert.Equal(0, g.Cpu.SetSregs(s));
        }
        // Bit 10 alone is no mode, with and without an interrupt controller.
        Assert.Equal(0, Set(g.Cpu, Msr.APIC_BASE, 0xfee0_0400));
    }

    [Fact]
    public void SpeculationMsrs_ExistWithTheirFeatureOnly()
    {
        const uint SpecCtrl = 1u << 26, FlushL1d = 1u << 28, ArchCapabilities = 1u << 29;
        foreach (bool present in (bool[])[true, false])
        {
            using TestGuest g = new(cpuid: false);
            // AMD's own bits for the same registers are in EBX of leaf 0x80000008.
            Assert.Equal(0, g.Cpu.SetCpuid2(Cpuid(e => e with { ebx = e.function == 0x8000_0008 ? 0 : e.ebx, edx = e.function != 7 ? e.edx : present ? e.edx
                | SpecCtrl | FlushL1d | ArchCapabilities : e.edx & ~(SpecCtrl | FlushL1d | ArchCapabilities) })));
            Assert.Equal(present ? 1 : 13, GuestWrites(g, Msr.SPEC_CTRL, 1));
            Assert.Equal(present ? 1 : 0x113, GuestReads(g, Msr.SPEC_CTRL));
            Assert.Equal(present ? 1 : 13, GuestWrites(g, Msr.PRED_CMD, 1));
            Assert.Equal(13, GuestWrites(g, Msr.PRED_CMD, 2));
            Assert.Equal(present ? 1 : 13, GuestWrites(g, Msr.FLUSH_CMD, 1));
            Assert.Equal(13, GuestWrites(g, Msr.ARCH_CAPABILITIES, 0));
            Assert.Equal(!present, GuestReads(g, Msr.ARCH_CAPABILITIES) == 0x113);
            if (!present)
                continue;
            Assert.Equal(1, Set(g.Cpu, Msr.ARCH_CAPABILITIES, 5));
            Assert.Equal(5, GuestReads(g, Msr.ARCH_CAPABILITIES));
            Assert.Equal(5UL, Get(g.Cpu, Msr.ARCH_CAPABILITIES));
        }
    }

    [Fact]
    public void OldMachineCheckAndPerformanceControl_ReadAsZero()
    {
        using TestGuest g = new();
        foreach (uint msr in (uint[])[0, 1, 0x199, 0xc001_1023])
        {
            Assert.Equal(0, GuestReads(g, msr));
            Assert.Equal(0UL, Get(g.Cpu, msr));
            Assert.Equal(msr == 0xc001_1023 ? 1 : 13, GuestWrites(g, msr, 1));
        }
    }

    [Fact]
    public void RefusedAccess_OfTheProcessorsOwnMsr_LeavesWithInval()
    {
        using TestGuest g = new();
        kvm_enable_cap cap = new() { cap = KVM_CAP_X86_USER_SPACE_MSR };
        cap.args[0] = KVM_MSR_EXIT_REASON_INVAL;
        Assert.Equal(0, g.Vm.EnableCap(cap));
        for (int i = 0; i < 10_000; i++)
        {
            // mov ecx, EFER; mov eax, -1; mov edx, eax; wrmsr; mov al, 1; out 0xf4
            g.Load(0xb9, 0x80, 0x00, 0x00, 0xc0, 0xb8, 0xff, 0xff, 0xff, 0xff, 0x89, 0xc2, 0x0f, 0x30, 0xb0, 1, 0xe6, 0xf4);
            g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
            Assert.Equal(KVM_EXIT_X86_WRMSR, g.Run());
            kvm_run* run = g.Cpu.KvmRun;
            Assert.Equal((Msr.EFER, KVM_MSR_EXIT_REASON_INVAL, ulong.MaxValue), (run->msr.index, run->msr.reason, run->msr.data));
            Assert.Equal(0x500UL, Get(g.Cpu, Msr.EFER) & 0x500);
            Assert.Equal(1, g.RunToEnd());
        }
        // Accepted ones do not leave.
        Assert.Equal(1, GuestWrites(g, Msr.LSTAR, 0x1234));
        Assert.Equal(0x1234UL, Get(g.Cpu, Msr.LSTAR));
    }

    [Fact]
    public void RefusedWrite_LeavesNothingBehind()
    {
        using TestGuest g = new();
        foreach (uint msr in KvmSystem.MsrIndexList.ToArray().Append(Msr.EFER).Append(Msr.FS_BASE))
        {
            ulong before = Get(g.Cpu, msr);
            for (int bit = 0; bit < 64; bit++)
            {
                if (msr is Msr.TSC or Msr.TSC_ADJUST or Msr.KVM_SYSTEM_TIME or Msr.KVM_SYSTEM_TIME_NEW or Msr.KVM_WALL_CLOCK or Msr.KVM_WALL_CLOCK_NEW
                    or Msr.KVM_STEAL_TIME)
                    continue;
                if (Set(g.Cpu, msr, before ^ 1UL << bit) == 0)
                    Assert.True(Get(g.Cpu, msr) == before, $"MSR {msr:x} has changed by a refused write of bit {bit}");
                else
                    Assert.Equal(1, Set(g.Cpu, msr, before));
            }
        }
    }

    [Fact]
    public void ClientsEfer_KeepsLma()
    {
        using TestGuest g = new();
        Assert.Equal(1, Set(g.Cpu, Msr.EFER, 0x901));
        Assert.Equal(0xd01UL, Get(g.Cpu, Msr.EFER));
        g.Load(0x48, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0, 0xe6, 0xf4); // mov rax, 1 (64-bit immediate); out 0xf4, al
        Assert.Equal(1, g.RunToEnd());
    }

    [Fact]
    public void MiscEnable_ResetValueAndReadOnlyBits()
    {
        using TestGuest g = new();
        Assert.Equal(0x1800UL, Get(g.Cpu, Msr.MISC_ENABLE));
        Assert.Equal(13, GuestWrites(g, Msr.MISC_ENABLE, 0x1000));
        Assert.Equal(13, GuestWrites(g, Msr.MISC_ENABLE, 0));
        Assert.Equal(1, GuestWrites(g, Msr.MISC_ENABLE, 0x1881));
        Assert.Equal(0x1801UL, Get(g.Cpu, Msr.MISC_ENABLE));
        Assert.Equal(1, Set(g.Cpu, Msr.MISC_ENABLE, 0));
        Assert.Equal(0UL, Get(g.Cpu, Msr.MISC_ENABLE));
    }

    [Fact]
    public void FeatureMsrs_HaveWhatKvmLists()
    {
        uint[] features = KvmSystem.MsrFeatureIndexList.ToArray();
        Assert.Contains(0x345u, features);
        Assert.Contains(0xceu, features);
        Assert.True(KvmSystem.TryGetFeatureMsr(0xce, out ulong platform));
        Assert.Equal(1UL << 31, platform);
    }

    [Fact]
    public void ResetState_IsKvms()
    {
        using TestGuest g = new(irqchip: true, cpuid: false);
        Vcpu fresh = g.Vm.CreateVcpu(1);
        fresh.GetRegs(out kvm_regs regs);
        Assert.Equal(0x600UL, regs.rdx);
        kvm_translation t = new() { linear_address = ulong.MaxValue };
        fresh.Translate(ref t);
        Assert.Equal(0, t.valid);
    }

    /// <summary>LA57 in CPUID, four levels of paging: bases with bits 47 to 56 are accepted, where CPUID has no LA57 they are not.</summary>
    [Theory, InlineData(true), InlineData(false)]
    public void Bases_AreCanonicalForTheSupportedWidth(bool la57)
    {
        const ulong Wide = 0x0080_0000_0000_0000, TooWide = 0x0100_0000_0000_0000;
        // On AMD's processors the MSRs of SYSENTER have 32 bits and take anything.
        using TestGuest g = new(cpuid: false, options: new VmOptions { Processor = ProcessorModel.EmeraldRapids });
        Assert.Equal(0, g.Cpu.SetCpuid2(Cpuid(e => e.function != 7 ? e : e with { ecx = la57 ? e.ecx | 1 << 16 : e.ecx & ~(1u << 16) })));
        foreach (uint msr in (uint[])[Msr.LSTAR, Msr.CSTAR, Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE, Msr.SYSENTER_EIP, Msr.SYSENTER_ESP])
        {
            Assert.Equal(la57 ? 1 : 13, GuestWrites(g, msr, Wide));
            Assert.Equal(13, GuestWrites(g, msr, TooWide));
        }
        foreach ((byte[] code, bool table) in (ValueTuple<byte[], bool>[])[([0x0f, 0x01, 0x10], true) /* lgdt [rax] */,
            ([0x0f, 0x01, 0x18], true) /* lidt [rax] */, ([0x66, 0x0f, 0x38, 0x82, 0x18], false) /* invpcid rbx, [rax] */])
        {
            foreach (ulong address in (ulong[])[Wide, TooWide])
            {
                // A table register's limit stands before its base; INVPCID's PCID is 8 bytes.
                g.Vm.Memory.TryWrite(0x12000, 0x17UL);
                Assert.True(g.Vm.Memory.Write(0x12000ul, [.. table ? BitConverter.GetBytes((ushort)0x17) : BitConverter.GetBytes(0UL),
                    .. BitConverter.GetBytes(address)]));
                g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4).Load([0x31, 0xdb, 0xb8, 0x00, 0x20, 0x01, 0x00, .. code, 0xb0, 1, 0xe6, 0xf4]);
                TestGuest.StartLong(g.Cpu, TestGuest.Code, TestGuest.Stack);
                Assert.Equal(la57 && address == Wide ? 1 : 13, g.RunToEnd());
            }
        }
    }
}
