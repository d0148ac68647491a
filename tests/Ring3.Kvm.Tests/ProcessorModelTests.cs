using System.Runtime.InteropServices;
using System.Text;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;

namespace Ring3.Kvm.Tests;

/// <summary>A VM's processor is a model, whatever the host's vendor: CPUID leaves, MSRs and the hypercall instruction are of one vendor.</summary>
public sealed class ProcessorModelTests
{
    public static TheoryData<string> Models => ["host", "intel", "amd"];

    private static ProcessorModel Model(string name) => ProcessorModel.TryParse(name, out ProcessorModel model) ? model : throw new ArgumentException(name);

    private static kvm_cpuid_entry2 Leaf(ProcessorModel model, uint function, uint index = 0) => SupportedCpuid.Of(model).ToArray().FirstOrDefault(e =>
        e.function == function && e.index == index);

    private static bool Has(ProcessorModel model, uint function) => SupportedCpuid.Of(model).ToArray().Any(e => e.function == function);

    private static string Text(params ReadOnlySpan<uint> words) => Encoding.Latin1.GetString(MemoryMarshal.AsBytes(words)).TrimEnd('\0');

    [Theory]
    [MemberData(nameof(Models))]
    public void Leaves_AreOfOneVendor(string name)
    {
        ProcessorModel model = Model(name);
        kvm_cpuid_entry2 first = Leaf(model, 0), extended = Leaf(model, 0x8000_0000);
        Assert.Equal(model.VendorId, Text(first.ebx, first.edx, first.ecx));
        Assert.Equal((model.Family, model.ModelNumber), (ProcessorModel.FamilyOf(Leaf(model, 1).eax), ProcessorModel.ModelOf(Leaf(model, 1).eax)));
        string brand = string.Concat(new uint[] { 0x8000_0002, 0x8000_0003, 0x8000_0004 }.Select(f => Leaf(model, f)).Select(e =>
            Encoding.Latin1.GetString(MemoryMarshal.AsBytes((ReadOnlySpan<uint>)[e.eax, e.ebx, e.ecx, e.edx]))));
        Assert.Equal(model.Brand, brand.TrimEnd('\0'));
        uint[] intel = [4, 0x15, 0x16, 0x1f], amd = [0x8000_0005, 0x8000_001a, 0x8000_001d, 0x8000_001e, 0x8000_0021];
        Assert.All(intel, f => Assert.NotEqual(model.IsAmd, Has(model, f)));
        Assert.All(amd, f => Assert.Equal(model.IsAmd, Has(model, f)));
        Assert.All(SupportedCpuid.Of(model).ToArray(), e => Assert.True(e.function <= (e.function < 0x4000_0000 ? first.eax : e.function < 0x8000_0000
            ? 0x4000_ffff : extended.eax), $"leaf {e.function:x} is beyond the last"));
        // LAHF, LZCNT and PREFETCHW are everybody's; SYSCALL, NX, 1-GiB pages, RDTSCP and LM too.
        const uint SharedEcx = 1 | 1 << 5 | 1 << 8, SharedEdx = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29, Wbnoinvd = 1 << 9;
        if (!model.IsAmd)
            Assert.Equal((0u, 0u, 0u), (Leaf(model, 0x8000_0001).ecx & ~SharedEcx, Leaf(model, 0x8000_0001).edx & ~SharedEdx,
                Leaf(model, 0x8000_0008).ebx & ~Wbnoinvd));
        Assert.Equal(!model.IsAmd, (Leaf(model, 7).edx & 1 << 29) != 0);
    }

    [Theory]
    [MemberData(nameof(Models))]
    public unsafe void Guest_SeesTheModel(string name)
    {
        ProcessorModel model = Model(name);
        using TestGuest g = new(options: new VmOptions { Processor = model });
        // xor eax, eax; cpuid; out 0xf4, eax
        g.Load(0x31, 0xc0, 0x0f, 0xa2, 0x89, 0xd8, 0xe7, 0xf4);
        Assert.Equal(0, g.Cpu.Run());
        g.Cpu.GetRegs(out kvm_regs r);
        Assert.Equal(model.VendorId, Text((uint)r.rbx, (uint)r.rdx, (uint)r.rcx));
        // Beyond the last basic leaf Intel repeats it.
        Assert.Equal(model.IsAmd ? default : g.Cpu.Cpuid(0x1f, 0), g.Cpu.Cpuid(0x3fff_ffff, 0));
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void Msrs_AreTheVendors(string name)
    {
        ProcessorModel model = Model(name);
        using TestGuest g = new(options: new VmOptions { Processor = model });
        uint[] list = KvmSystem.MsrIndexListOf(model).ToArray();
        Assert.Equal(model.IsAmd, list.Contains(Msr.HWCR));
        Assert.Equal(!model.IsAmd, list.Contains(Msr.FEATURE_CONTROL));
        foreach (uint msr in list)
        {
            kvm_msr_entry[] entry = [new() { index = msr }];
            Assert.True(g.Cpu.GetMsrs(entry) == 1 && g.Cpu.SetMsrs(entry) == 1, $"MSR {msr:x}");
        }
        Assert.Equal(!model.IsAmd, g.Cpu.GetMsrs([new() { index = Msr.FEATURE_CONTROL }]) == 1);
        Assert.Equal(model.IsAmd, KvmSystem.MsrFeatureIndexListOf(model).Contains(0xc001_1029));
        Assert.Equal(model.IsAmd, g.Cpu.SetMsrs([new() { index = Msr.EFER, data = 0xd01 | Efer.AUTOIBRS }]) == 1);
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void Topology_IsInTheVendorsLeaves(string name)
    {
        ProcessorModel model = Model(name);
        kvm_cpuid_entry2[] entries = SupportedCpuid.Of(model).ToArray();
        CpuidTopology.Apply(entries, 3, 8);
        uint cores = entries.First(e => e.function == 0x8000_0008).ecx;
        Assert.Equal(model.IsAmd ? 3u << 12 | 7 : 0, cores);
        Assert.Equal(model.IsAmd ? 2u : 0, entries.First(e => e.function == 0x8000_0001).ecx & 2);
        Assert.Equal(3u, entries.First(e => e.function == 0xb).edx);
    }

    [Fact]
    public void Families_HaveModels()
    {
        Assert.Same(ProcessorModel.EmeraldRapids, ProcessorModel.Find("GenuineIntel", 6, 143));
        Assert.Same(ProcessorModel.EmeraldRapids, ProcessorModel.Find("GenuineIntel", 6, 207));
        Assert.Same(ProcessorModel.Zen4, ProcessorModel.Find("AuthenticAMD", 25, 17));
        Assert.Same(ProcessorModel.Zen5, ProcessorModel.Find("AuthenticAMD", 26, 2));
        Assert.Null(ProcessorModel.Find("GenuineIntel", 6, 85));
        Assert.Null(ProcessorModel.Find("AuthenticAMD", 23, 49));
        Assert.Equal((6, 207), (ProcessorModel.EmeraldRapids.Family, ProcessorModel.EmeraldRapids.ModelNumber));
        Assert.Equal((25, 17, 26, 2), (ProcessorModel.Zen4.Family, ProcessorModel.Zen4.ModelNumber, ProcessorModel.Zen5.Family,
            ProcessorModel.Zen5.ModelNumber));
        Assert.False(ProcessorModel.TryParse("cyrix", out ProcessorModel fallback));
        Assert.Same(ProcessorModel.Host, fallback);
    }
}
