using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;

namespace Ring3.Kvm.Tests;

/// <summary>Features of CPUID that no instruction shows: what their MSRs take, and what they promise.</summary>
public sealed unsafe class CpuidFeatureTests
{
    private static readonly ProcessorModel s_intel = Model("intel"), s_amd = Model("amd");

    private static ProcessorModel Model(string name) => ProcessorModel.TryParse(name, out ProcessorModel model) ? model : throw new ArgumentException(name);

    private static kvm_cpuid_entry2[] Cpuid(ProcessorModel model, uint function, Func<kvm_cpuid_entry2, kvm_cpuid_entry2> change) =>
        Array.ConvertAll(SupportedCpuid.Of(model).ToArray(), e => e.function == function ? change(e) : e);

    private static TestGuest Guest(ProcessorModel model, bool irqchip = false)
    {
        TestGuest g = new(irqchip, options: new VmOptions { Processor = model });
        return g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4);
    }

    /// <summary>1, or 13 where the guest's WRMSR is #GP.</summary>
    private static int GuestWrites(TestGuest g, uint msr, ulong value)
    {
        g.Load([0xb9, .. BitConverter.GetBytes(msr), 0xb8, .. BitConverter.GetBytes((uint)value), 0xba, .. BitConverter.GetBytes((uint)(value >> 32)), 0x0f,
            0x30, 0xb0, 1, 0xe6, 0xf4]);
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
        return g.RunToEnd();
    }

    private static ulong? Get(TestGuest g, uint msr)
    {
        kvm_msr_entry[] e = [new() { index = msr }];
        return g.Cpu.GetMsrs(e) == 1 ? e[0].data : null;
    }

    [Fact]
    public void Pat_TakesWhatItsTypesAllow()
    {
        using TestGuest g = Guest(ProcessorModel.Host);
        Assert.Equal(1, GuestWrites(g, Msr.PAT, 0x0007_0406_0105_0406));
        Assert.Equal(0x0007_0406_0105_0406UL, Get(g, Msr.PAT));
        foreach (ulong bad in (ulong[])[2, 3, 8])
            Assert.Equal(13, GuestWrites(g, Msr.PAT, bad << 16));
        Assert.Equal(0x0007_0406_0105_0406UL, Get(g, Msr.PAT));
    }

    /// <summary>
    /// IBRS, STIBP and SSBD have nothing to hold back; the register keeps them, by whichever vendor's bit the guest knows it, and is not there without
    /// any.
    /// </summary>
    [Theory]
    [InlineData(26, 0)]
    [InlineData(0, 14)]
    [InlineData(0, 15)]
    [InlineData(0, 24)]
    [InlineData(0, 0)]
    public void SpeculationControls_KeepWhatIsWritten(int intelBit, int amdBit)
    {
        using TestGuest g = new(cpuid: false, options: new VmOptions { Processor = s_amd });
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4);
        const uint All7 = 1u << 26 | 1u << 27 | 1u << 31, All8 = 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24;
        kvm_cpuid_entry2[] entries = Cpuid(s_amd, 7, e => e with { edx = e.edx & ~All7 | (intelBit != 0 ? 1u << intelBit : 0) });
        entries = Array.ConvertAll(entries, e => e.function == 0x8000_0008 ? e with { ebx = e.ebx & ~All8 | (amdBit != 0 ? 1u << amdBit : 0) } : e);
        Assert.Equal(0, g.Cpu.SetCpuid2(entries));
        bool there = intelBit != 0 || amdBit != 0;
        for (ulong value = 1; value < 8; value++)
        {
            Assert.Equal(there ? 1 : 13, GuestWrites(g, Msr.SPEC_CTRL, value));
            Assert.Equal(there ? value : 0, Get(g, Msr.SPEC_CTRL) ?? 0);
        }
        Assert.Equal(13, GuestWrites(g, Msr.SPEC_CTRL, 8));
        Assert.Contains(Msr.SPEC_CTRL, KvmSystem.MsrIndexListOf(s_amd).ToArray());
    }

    [Fact]
    public void BranchHistory_IsControlledOnIntel()
    {
        foreach (bool amd in (bool[])[false, true])
        {
            using TestGuest g = new(cpuid: false, options: new VmOptions { Processor = amd ? s_amd : s_intel });
            g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4);
            kvm_cpuid_entry2[] entries = Cpuid(amd ? s_amd : s_intel, 7, e => e);
            Assert.Equal(0, g.Cpu.SetCpuid2(entries));
            Assert.Equal(!amd, Array.Exists(entries, e => e is { function: 7, index: 2 } && (e.edx & 1 << 4) != 0));
            Assert.Equal(amd ? 13 : 1, GuestWrites(g, Msr.SPEC_CTRL, 1 << 10 | 1));
            Assert.Equal(amd ? 0UL : 1 << 10 | 1, Get(g, Msr.SPEC_CTRL));
            Assert.Equal(13, GuestWrites(g, Msr.SPEC_CTRL, 1 << 11));
        }
    }

    [Fact]
    public void Frequencies_AreTheTscs()
    {
        using TestGuest g = Guest(s_intel);
        var (denominator, numerator, crystal, _) = g.Cpu.Cpuid(0x15, 0);
        Assert.Equal(g.Cpu.TscKhz, (uint)((ulong)crystal * numerator / denominator / 1000));
        Assert.Equal(g.Cpu.TscKhz / 1000, g.Cpu.Cpuid(0x16, 0).Eax);
    }

    /// <summary>KVM_FEATURE_ASYNC_PF without its interrupt: the register is there, its page must be, and delivery by interrupt is not offered.</summary>
    [Fact]
    public void AsynchronousFaults_AreEnabledByInterruptOnly_AndNeverComeWithout()
    {
        using TestGuest g = Guest(ProcessorModel.Host, irqchip: true);
        Assert.Equal(1 << KvmPara.KVM_FEATURE_ASYNC_PF, (int)g.Cpu.Cpuid(KvmPara.KVM_CPUID_FEATURES, 0).Eax & (1 << KvmPara.KVM_FEATURE_ASYNC_PF
            | 1 << KvmPara.KVM_FEATURE_ASYNC_PF_INT));
        foreach (ulong value in (ulong[])[0x30001, 0x30003, 0x30007, 0])
        {
            Assert.Equal(1, GuestWrites(g, Msr.KVM_ASYNC_PF_EN, value));
            Assert.Equal(value, Get(g, Msr.KVM_ASYNC_PF_EN));
        }
        foreach (ulong value in (ulong[])[0x30009, 0x30011, 0x30021, 0x7000_0001])
            Assert.Equal(13, GuestWrites(g, Msr.KVM_ASYNC_PF_EN, value));
        Assert.Equal(13, GuestWrites(g, Msr.KVM_ASYNC_PF_INT, 0xf2));
        Assert.Equal(0UL, Get(g, Msr.KVM_ASYNC_PF_EN));
        Assert.True(g.Vm.Memory.TryRead(0x30000, out ulong first) && first == 0);
        using TestGuest without = Guest(ProcessorModel.Host);
        Assert.Equal(1, GuestWrites(without, Msr.KVM_ASYNC_PF_EN, 0));
        Assert.Equal(13, GuestWrites(without, Msr.KVM_ASYNC_PF_EN, 0x30001));
    }

    [Fact]
    public void Osvw_SaysThatNoErratumIsThere()
    {
        using TestGuest g = Guest(s_amd);
        Assert.Equal((4UL, 0UL), (Get(g, PlatformMsrs.OSVW_ID_LENGTH), Get(g, PlatformMsrs.OSVW_STATUS)));
        Assert.Equal(1, g.Cpu.SetMsrs([new() { index = PlatformMsrs.OSVW_STATUS, data = 2 }]));
        Assert.Equal(2UL, Get(g, PlatformMsrs.OSVW_STATUS));
        using TestGuest other = Guest(s_intel);
        Assert.Null(Get(other, PlatformMsrs.OSVW_ID_LENGTH));
        Assert.Equal(13, GuestWrites(other, PlatformMsrs.OSVW_STATUS, 0));
    }

    /// <summary>CR4.DE: breakpoints on ports trap behind IN, OUT and each iteration of INS, and DR4 and DR5 are undefined.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void DebuggingExtensions_TrapPorts_AndTakeDr4Away(bool enabled)
    {
        using TestGuest g = Guest(ProcessorModel.Host);
        g.Cpu.GetSregs(out kvm_sregs s);
        s.cr4 |= enabled ? Cr4.DE : 0;
        Assert.Equal(0, g.Cpu.SetSregs(s));
        // #DB: inc ebx; mov rsi, dr6; iretq. #UD: mov al, 6; out 0xf4, al
        g.SetVector(1, 0x12000).LoadAt(0x12000, 0xff, 0xc3, 0x0f, 0x21, 0xf6, 0x48, 0xcf);
        g.SetVector(6, 0x13000).LoadAt(0x13000, 0xb0, 6, 0xe6, 0xf4);
        // DR0: four ports from 0x1f0; DR1: one port, 0x60. mov eax, 0x1f2; mov dr0, rax; mov eax, 0x60; mov dr1, rax; mov eax, DR7; mov dr7, rax
        const uint Dr7 = 0xf | 2u << 16 | 3u << 18 | 2u << 20;
        g.Load([
            0xb8, 0xf2, 1, 0, 0, 0x0f, 0x23, 0xc0, 0xb8, 0x60, 0, 0, 0, 0x0f, 0x23, 0xc8, 0xb8, .. BitConverter.GetBytes(Dr7), 0x0f, 0x23, 0xf8,
            0x31, 0xdb, // xor ebx, ebx
            0xe4, 0x60, 0xe6, 0x61, 0xe7, 0x5e, // in al, 0x60; out 0x61, al; out 0x5e, eax
            0x66, 0xba, 0xef, 1, 0x66, 0xed, 0x66, 0xba, 0xf4, 1, 0xee, // mov dx, 0x1ef; in ax, dx; mov dx, 0x1f4; out dx, al
            0x66, 0xba, 0xf3, 1, 0xbf, 0, 0, 2, 0, 0xb9, 3, 0, 0, 0, 0xf3, 0x6c, // mov dx, 0x1f3; mov edi, 0x20000; mov ecx, 3; rep insb
            0x0f, 0x21, 0xe0, 0xb0, 1, 0xe6, 0xf4]); // mov rax, dr4; mov al, 1; out 0xf4, al
        Assert.Equal(enabled ? 6 : 1, RunToEnd(g));
        // IN from 0x60, OUT to 0x5e-0x61, IN from 0x1ef-0x1f0, three iterations of INS.
        Assert.Equal(enabled ? 6UL : 0, g.Regs().rbx);
        if (enabled)
            Assert.Equal(1UL, g.Regs().rsi & 0xf);
    }

    private static int RunToEnd(TestGuest g)
    {
        for (; ; )
        {
            Assert.Equal(KvmApi.KVM_EXIT_IO, g.Run());
            if (g.Cpu.KvmRun->io is { port: 0xf4, direction: (byte)KvmApi.KVM_EXIT_IO_OUT })
                return *((byte*)g.Cpu.KvmRun + g.Cpu.KvmRun->io.data_offset);
        }
    }

    /// <summary>NULL_SEL_CLR_BASE: a program that loads a null selector loses the hidden base.</summary>
    [Fact]
    public void NullSelector_ClearsTheBase()
    {
        using TestGuest g = Guest(s_amd);
        g.Cpu.GetSregs(out kvm_sregs s);
        s.fs.@base = 0x1234_5000;
        Assert.Equal(0, g.Cpu.SetSregs(s));
        // xor eax, eax; mov fs, eax; mov al, 1; out 0xf4, al
        g.Load(0x31, 0xc0, 0x8e, 0xe0, 0xb0, 1, 0xe6, 0xf4);
        Assert.Equal(1, g.RunToEnd());
        g.Cpu.GetSregs(out s);
        Assert.Equal(0UL, s.fs.@base);
    }
}
