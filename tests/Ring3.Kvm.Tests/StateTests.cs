using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>State that a client reads and writes: what goes in comes out, and what cannot be is refused.</summary>
public sealed unsafe class StateTests
{
    private static byte[] Bytes<T>(T value) where T : unmanaged => new ReadOnlySpan<byte>(&value, sizeof(T)).ToArray();

    [Fact]
    public void EveryMsrOfTheList_CanBeReadAndWrittenBack()
    {
        using TestGuest g = new(irqchip: true);
        foreach (uint msr in KvmSystem.MsrIndexList)
        {
            kvm_msr_entry[] e = [new() { index = msr }];
            Assert.True(g.Cpu.GetMsrs(e) == 1, $"reading 0x{msr:x}");
            Assert.True(g.Cpu.SetMsrs(e) == 1, $"writing 0x{e[0].data:x} to 0x{msr:x}");
        }
        Assert.Equal(0, g.Cpu.GetMsrs([new kvm_msr_entry { index = 0x1234_5678 }]));
    }

    [Fact]
    public void GuestMsrAccess_FaultsWhereHardwareDoes()
    {
        using TestGuest g = new();
        // #GP handler: mov al, 0x0d; out 0xf4
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 0x0d, 0xe6, 0xf4);
        foreach ((uint msr, uint low, uint high, bool faults) in new (uint, uint, uint, bool)[]
        {
            (0x1234567, 0, 0, true), (Msr.PAT, 0x02020202, 0, true), (Msr.PAT, 0x00070406, 0x00070406, false), (Msr.LSTAR, 0, 0x80000000, true),
                (Msr.MTRR_DEF_TYPE, 0xc06, 0, false), (Msr.MTRR_DEF_TYPE, 0xc02, 0, true),
            (Msr.BIOS_SIGN_ID, 0, 0, false), (Msr.MC0_CTL, 0xffffffff, 0xffffffff, false), (Msr.MC0_CTL, 5, 0, true), (Msr.MC0_CTL + 1, 0, 0, false),
                (Msr.MC0_CTL + 1, 1, 0, true), (0x200, 6, 0, false), (0x201, 0x800, 0xffff0000, true),
            (Msr.KVM_STEAL_TIME, 2, 0, true), (Msr.DEBUGCTL, 1, 0, false), (Msr.DEBUGCTL, 0x40, 0, true),
        })
        {
            // wrmsr; mov al, 1; out 0xf4
            g.Load(0x0f, 0x30, 0xb0, 0x01, 0xe6, 0xf4);
            g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2, rcx = msr, rax = low, rdx = high });
            Assert.True((g.RunToEnd() == 0x0d) == faults, $"wrmsr 0x{msr:x} = 0x{high:x}_{low:x}");
        }
    }

    [Fact]
    public void Cpuid_IsWhatTheClientSet_WithDynamicBits()
    {
        using TestGuest g = new();
        // cpuid; hlt
        (uint, uint, uint, uint) cpuid(uint leaf, uint index = 0)
        {
            g.Load(0x0f, 0xa2, 0xf4);
            g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2, rax = leaf, rcx = index });
            Assert.Equal(KVM_EXIT_HLT, g.Run());
            kvm_regs r = g.Regs();
            return ((uint)r.rax, (uint)r.rbx, (uint)r.rcx, (uint)r.rdx);
        }
        var (max, b, c, d) = cpuid(KvmPara.KVM_CPUID_SIGNATURE);
        Assert.Equal("KVMKVMKVM\0\0\0"u8.ToArray(), (byte[])[.. BitConverter.GetBytes(b), .. BitConverter.GetBytes(c), .. BitConverter.GetBytes(d)]);
        Assert.True(max >= KvmPara.KVM_CPUID_FEATURES);
        Assert.Equal(0u, cpuid(1).Item3 & CpuidBits.Leaf1Ecx.OSXSAVE);
        g.Cpu.GetSregs(out kvm_sregs s);
        s.cr4 |= Cr4.OSXSAVE;
        Assert.Equal(0, g.Cpu.SetSregs(s));
        Assert.Equal(CpuidBits.Leaf7Ecx.PKU, cpuid(7).Item3 & (CpuidBits.Leaf7Ecx.PKU | CpuidBits.Leaf7Ecx.OSPKE));
        s.cr4 |= Cr4.PKE;
        Assert.Equal(0, g.Cpu.SetSregs(s));
        Assert.NotEqual(0u, cpuid(7).Item3 & CpuidBits.Leaf7Ecx.OSPKE);
        Assert.NotEqual(0u, cpuid(1).Item3 & CpuidBits.Leaf1Ecx.OSXSAVE);
        Assert.Equal(576u, cpuid(0xd).Item2);
        kvm_xcrs xcrs = new() { nr_xcrs = 1 };
        xcrs.xcrs[0] = new() { value = SupportedCpuid.SupportedXcr0 };
        Assert.Equal(0, g.Cpu.SetXcrs(xcrs));
        Assert.Equal(XsaveArea.SizeFor(SupportedCpuid.SupportedXcr0, Cpu.ProcessorModel.Host), cpuid(0xd).Item2);
        xcrs.xcrs[0] = new() { value = 4 };
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetXcrs(xcrs));
        // Leaf 0xB beyond its levels still names the level and the processor.
        Assert.Equal(9u, cpuid(0xb, 9).Item3);
    }

    [Fact]
    public void SupportedCpuid_HasNoFeatureOfWhatIsNotImplemented()
    {
        kvm_cpuid_entry2 leaf(uint f) => SupportedCpuid.Entries.ToArray().First(e => e.function == f);
        const uint Vmx = 1 << 5, Monitor = 1 << 3, ShadowStacks = 1 << 7, Avx512 = 1 << 16, Rtm = 1 << 11, Mpx = 1 << 14, Svm = 1 << 2;
        Assert.Equal(0u, leaf(1).ecx & (Vmx | Monitor));
        Assert.Equal(0u, leaf(7).ebx & (Avx512 | Rtm | Mpx));
        Assert.Equal(0u, leaf(7).ecx & ShadowStacks);
        Assert.Equal(0u, leaf(0x8000_0001).ecx & Svm);
        Assert.Equal(-Errno.E2BIG, KvmSystem.GetSupportedCpuid(new kvm_cpuid_entry2[3]));
        Assert.True(SupportedCpuid.Entries.Length <= 100, "kvmtool asks for at most 100 entries");
    }

    [Fact]
    public void Sregs_RoundTrip_AndNonsenseIsRefused()
    {
        using TestGuest g = new(irqchip: true);
        g.Cpu.GetSregs(out kvm_sregs a);
        Assert.Equal(0, g.Cpu.SetSregs(a));
        g.Cpu.GetSregs(out kvm_sregs b);
        Assert.Equal(Bytes(a), Bytes(b));
        foreach (Func<kvm_sregs, kvm_sregs> spoil in new Func<kvm_sregs, kvm_sregs>[]
        {
            s => s with { cr0 = 0x8000_0000 }, s => s with { cr4 = 0x620 & ~0x20UL }, s => s with { efer = 0x101 }, s => s with { cr4 = 1UL << 40 }, s =>
                s with { cr0 = a.cr0 | 1UL << 32 },
            s => s with { apic_base = 1 },
        })
            Assert.Equal(-Errno.EINVAL, g.Cpu.SetSregs(spoil(a)));
        g.Cpu.GetSregs2(out kvm_sregs2 c);
        Assert.Equal(0, g.Cpu.SetSregs2(c));
        c.flags = 2;
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetSregs2(c));
    }

    /// <summary>FCS and FDS of the x87 unit exist on AMD's model; the state that a client gives has none.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void SetFpuAndSetXsave_LeaveNoSelectorsOfX87(bool xsave)
    {
        using TestGuest g = new(options: new() { Processor = ProcessorModel.Zen4 });
        // fldenv [0x20000]; out 0x10, al; fnstenv [0x20000]; out 0xf4, al
        g.Load(0xd9, 0x24, 0x25, 0, 0, 2, 0, 0xe6, 0x10, 0xd9, 0x34, 0x25, 0, 0, 2, 0, 0xe6, 0xf4);
        uint[] environment = [0xffff037f, 0xffff0000, 0xffffffff, 0x1234, 0x23, 0x5678, 0xffff002b];
        for (int i = 0; i < environment.Length; i++)
            Assert.True(g.Vm.Memory.TryWrite(0x20000 + 4 * (ulong)i, environment[i]));
        Assert.Equal(KVM_EXIT_IO, g.Run());
        g.Cpu.GetFpu(out kvm_fpu f);
        g.Cpu.GetXsave(out kvm_xsave x);
        Assert.Equal((0x1234UL, 0x5678UL), (f.last_ip, f.last_dp));
        if (xsave)
            Assert.Equal(0, g.Cpu.SetXsave(x));
        else
            g.Cpu.SetFpu(f);
        g.RunToEnd();
        uint read(ulong at) => g.Vm.Memory.TryRead(0x20000 + at, out uint v) ? v : uint.MaxValue;
        Assert.Equal((0x1234u, 0u, 0x5678u, 0xffff0000u), (read(12), read(16) & 0xffff, read(20), read(24)));
    }

    [Fact]
    public void Regs_Fpu_Xsave_DebugRegs_RoundTrip()
    {
        using TestGuest g = new();
        kvm_regs r = default;
        for (int i = 0; i < 17; i++)
            (&r.rax)[i] = 0x0101_0101_0101_0101UL * (uint)(i + 1);
        r.rflags = 0x8d7;
        g.Cpu.SetRegs(r);
        Assert.Equal(r, g.Regs());

        kvm_fpu f = new() { fcw = 0x27f, fsw = 0x3800, ftwx = 0x81, last_opcode = 0x123 };
        for (int i = 0; i < 128; i++)
            f.fpr[i] = (byte)(i % 16 < 10 ? i : 0);
        for (int i = 0; i < 256; i++)
            f.xmm[i] = (byte)(255 - i);
        g.Cpu.SetFpu(f);
        g.Cpu.GetFpu(out kvm_fpu f2);
        Assert.Equal(new ReadOnlySpan<byte>(&f, sizeof(kvm_fpu)).ToArray(), new ReadOnlySpan<byte>(&f2, sizeof(kvm_fpu)).ToArray());

        g.Cpu.GetXsave(out kvm_xsave x);
        byte* p = (byte*)x.region;
        Assert.Equal((0x1f80u, 3UL), (*(uint*)(p + 24), *(ulong*)(p + 512)));
        *(uint*)(p + 24) = 0x1fa0;
        *(ulong*)(p + 512) = 7;
        Assert.Equal((0x27f, 0x81, (byte)255), (*(ushort*)p, p[4], p[160]));
        p[576] = 0x99;
        Assert.Equal(0, g.Cpu.SetXsave(x));
        g.Cpu.GetXsave(out kvm_xsave x2);
        Assert.Equal(new ReadOnlySpan<byte>(&x, 4096).ToArray(), new ReadOnlySpan<byte>(&x2, 4096).ToArray());
        *(ulong*)(p + 512) = 1UL << 10;
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetXsave(x));

        kvm_debugregs d = new() { dr6 = 0xffff0ff1, dr7 = 0x403 };
        d.db[0] = 0x1234;
        Assert.Equal(0, g.Cpu.SetDebugRegs(d));
        g.Cpu.GetDebugRegs(out kvm_debugregs d2);
        Assert.Equal((0x1234UL, 0xffff0ff1UL, 0x403UL), (d2.db[0], d2.dr6, d2.dr7));
        d.dr7 = 1UL << 32;
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetDebugRegs(d));
    }

    [Fact]
    public void VcpuEvents_InjectAnException_AndKeepNmiState()
    {
        using TestGuest g = new();
        // #PF handler: mov rax, cr2; out 0xf4, al
        g.SetVector(14, 0x11000).LoadAt(0x11000, 0x0f, 0x20, 0xd0, 0xe6, 0xf4);
        g.Load(0x90, 0xf4);
        kvm_enable_cap cap = new() { cap = KVM_CAP_EXCEPTION_PAYLOAD };
        cap.args[0] = 1;
        Assert.Equal(0, g.Vm.EnableCap(cap));
        kvm_vcpu_events e = new() { flags = KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_NMI_PENDING };
        e.exception = new() { pending = 1, nr = 14, has_error_code = 1, error_code = 2 };
        (e.exception_has_payload, e.exception_payload, e.nmi.pending) = (1, 0x77, 1);
        Assert.Equal(0, g.Cpu.SetVcpuEvents(e));
        g.Cpu.GetVcpuEvents(out kvm_vcpu_events e2);
        Assert.Equal((1, 14, 2u, 0x77UL, 1), (e2.exception.pending, e2.exception.nr, e2.exception.error_code, e2.exception_payload, e2.nmi.pending));
        e.nmi.pending = 0;
        Assert.Equal(0, g.Cpu.SetVcpuEvents(e));
        Assert.Equal(0x77, g.RunToEnd());
        e.flags = 1u << 31;
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetVcpuEvents(e));
    }

    [Fact]
    public void IrqchipAndPitState_RoundTrip()
    {
        using TestGuest g = new(irqchip: true);
        for (uint chip = 0; chip < KVM_NR_IRQCHIPS; chip++)
        {
            kvm_irqchip a = new() { chip_id = chip };
            Assert.Equal(0, g.Vm.GetIrqchip(ref a));
            Assert.Equal(0, g.Vm.SetIrqchip(a));
            kvm_irqchip b = new() { chip_id = chip };
            Assert.Equal(0, g.Vm.GetIrqchip(ref b));
            Assert.Equal(new ReadOnlySpan<byte>(&a, sizeof(kvm_irqchip)).ToArray(), new ReadOnlySpan<byte>(&b, sizeof(kvm_irqchip)).ToArray());
        }
        kvm_irqchip none = new() { chip_id = 3 };
        Assert.Equal(-Errno.EINVAL, g.Vm.GetIrqchip(ref none));
        Assert.Equal(0, g.Vm.GetPit2(out kvm_pit_state2 pit));
        Assert.Equal(0, g.Vm.SetPit2(pit));
        Assert.Equal(-Errno.EEXIST, g.Vm.CreateIrqchip());
        Assert.Equal(-Errno.EEXIST, g.Vm.CreatePit2());
    }

    [Fact]
    public void VcpuIds_AreUniqueAndBounded()
    {
        using TestGuest g = new();
        Assert.Equal(-Errno.EEXIST, g.Vm.CreateVcpu(0, out _));
        Assert.Equal(-Errno.EINVAL, g.Vm.CreateVcpu(Vm.MaxVcpus, out _));
        Assert.Equal(0, g.Vm.CreateVcpu(Vm.MaxVcpus - 1, out _));
        Assert.Equal(-Errno.EINVAL, g.Vm.CreateIrqchip());
        Assert.Equal(-Errno.EBUSY, g.Vm.SetBootCpuId(1));
    }

    [Fact]
    public void MsrFilter_DeniesAndAllows()
    {
        using TestGuest g = new();
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 0x0d, 0xe6, 0xf4);
        byte* bitmap = stackalloc byte[1] { 0 };
        kvm_msr_filter f = new();
        f.ranges[0] = new() { flags = KVM_MSR_FILTER_READ, @base = Msr.MISC_ENABLE, nmsrs = 1, bitmap = (ulong)bitmap };
        Assert.Equal(0, g.Vm.SetMsrFilter(f));
        // mov ecx, 0x1a0; rdmsr; mov al, 1; out 0xf4
        byte[] code = [0xb9, 0xa0, 0x01, 0, 0, 0x0f, 0x32, 0xb0, 0x01, 0xe6, 0xf4];
        Assert.Equal(0x0d, g.Load(code).RunToEnd());
        Assert.Equal(0, g.Vm.SetMsrFilter(default));
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
        Assert.Equal(1, g.RunToEnd());
        f.flags = 8;
        Assert.Equal(-Errno.EINVAL, g.Vm.SetMsrFilter(f));
    }
}
