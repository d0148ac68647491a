using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;

namespace Ring3.Kvm.Tests;

/// <summary>PKRU in KVM's ABI.</summary>
public sealed unsafe class ProtectionKeyStateTests
{
    [Theory]
    [InlineData("intel", 2688)]
    [InlineData("amd", 2432)]
    public void Xsave_HasPkru_InTheModelsPlace(string vendor, int offset)
    {
        ProcessorModel.TryParse(vendor, out ProcessorModel model);
        using TestGuest g = new(options: new VmOptions { Processor = model });
        g.Cpu.GetXsave(out kvm_xsave xsave);
        byte* p = (byte*)xsave.region;
        Assert.Equal((0UL, 0u), (*(ulong*)(p + 512) & Xcr0.Pkru, *(uint*)(p + offset)));
        *(ulong*)(p + 512) |= Xcr0.Pkru;
        *(uint*)(p + offset) = 0x5555_5554;
        Assert.Equal(0, g.Cpu.SetXsave(xsave));
        g.Cpu.GetXsave(out kvm_xsave again);
        Assert.Equal(0x5555_5554u, *(uint*)((byte*)again.region + offset));
        // KVM: an image without the component leaves it alone.
        *(ulong*)(p + 512) &= ~Xcr0.Pkru;
        *(uint*)(p + offset) = 0;
        Assert.Equal(0, g.Cpu.SetXsave(xsave));
        g.Cpu.GetXsave(out again);
        Assert.Equal(0x5555_5554u, *(uint*)((byte*)again.region + offset));
        *(ulong*)(p + 512) |= Xcr0.Pkru;
        Assert.Equal(0, g.Cpu.SetXsave(xsave));
        g.Cpu.GetXsave(out again);
        Assert.Equal((Xcr0.Pkru, 0u), (*(ulong*)((byte*)again.region + 512) & Xcr0.Pkru, *(uint*)((byte*)again.region + offset)));
        // A guest that has run has it, or a SET could not bring its initial value back.
        *(ulong*)(p + 512) &= ~Xcr0.Pkru;
        Assert.Equal(0, g.Cpu.SetXsave(xsave));
        g.Cpu.GetXsave(out again);
        Assert.Equal(0UL, *(ulong*)((byte*)again.region + 512) & Xcr0.Pkru);
        g.Load(0xb0, 1, 0xe6, 0xf4);
        Assert.Equal(1, g.RunToEnd());
        g.Cpu.GetXsave(out again);
        Assert.Equal(Xcr0.Pkru, *(ulong*)((byte*)again.region + 512) & Xcr0.Pkru);
    }

    [Fact]
    public void Cpuid_DescribesTheComponent()
    {
        foreach (ProcessorModel model in (ProcessorModel[])[ProcessorModel.EmeraldRapids, ProcessorModel.Zen4])
        {
            kvm_cpuid_entry2 leaf(uint index) => SupportedCpuid.Of(model).ToArray().Single(e => e.function == 0xd && e.index == index);
            Assert.Equal((8u, (uint)model.PkruOffset, 0u, 0u), (leaf(9).eax, leaf(9).ebx, leaf(9).ecx, leaf(9).edx));
            Assert.Equal((uint)SupportedCpuid.SupportedXcr0, leaf(0).eax);
            Assert.Equal((uint)model.PkruOffset + 8, leaf(0).ecx);
            Assert.Equal(840u, leaf(1).ebx);
        }
    }

    /// <summary>XCR0 and CR4 take the bits of a guest that has the feature, and of no other.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Controls_FollowCpuid(bool has)
    {
        using TestGuest g = new(cpuid: false);
        kvm_cpuid_entry2[] entries = SupportedCpuid.Entries.ToArray();
        foreach (ref kvm_cpuid_entry2 e in entries.AsSpan())
        {
            if (!has && e is { function: 7, index: 0 })
                e.ecx &= ~CpuidBits.Leaf7Ecx.PKU;
            if (!has && e is { function: 0xd, index: 0 })
                e.eax &= ~(uint)Xcr0.Pkru;
        }
        Assert.Equal(0, g.Cpu.SetCpuid2(entries));
        g.Cpu.GetSregs(out kvm_sregs s);
        s.cr4 |= Cr4.PKE;
        Assert.Equal(has ? 0 : -Errno.EINVAL, g.Cpu.SetSregs(s));
        kvm_xcrs xcrs = new() { nr_xcrs = 1 };
        xcrs.xcrs[0] = new() { value = Xcr0.X87 | Xcr0.Pkru };
        Assert.Equal(has ? 0 : -Errno.EINVAL, g.Cpu.SetXcrs(xcrs));
        g.Load(0xb0, 1, 0xe6, 0xf4);
        Assert.Equal(1, g.RunToEnd());
        g.Cpu.GetXsave(out kvm_xsave xsave);
        Assert.Equal(has ? Xcr0.Pkru : 0, *(ulong*)((byte*)xsave.region + 512) & Xcr0.Pkru);
    }

    /// <summary>A client that has taken the offset from a host without protection keys gives none: the guest sees where PKRU is.</summary>
    [Fact]
    public void OffsetThatTheClientDoesNotKnow_IsTheModels()
    {
        using TestGuest g = new(cpuid: false);
        kvm_cpuid_entry2[] entries = SupportedCpuid.Entries.ToArray();
        foreach (ref kvm_cpuid_entry2 e in entries.AsSpan())
            if (e is { function: 0xd, index: 9 })
                e.ebx = 0;
        Assert.Equal(0, g.Cpu.SetCpuid2(entries));
        kvm_cpuid_entry2[] seen = new kvm_cpuid_entry2[entries.Length];
        Assert.Equal(entries.Length, g.Cpu.GetCpuid2(seen));
        Assert.Equal((8u, (uint)ProcessorModel.Host.PkruOffset), seen.Where(e => e is { function: 0xd, index: 9 }).Select(e => (e.eax, e.ebx)).Single());
    }
}
