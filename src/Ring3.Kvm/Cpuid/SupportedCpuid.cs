using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using System.Text;
using Ring3.Abi;
using Ring3.Cpu;
using static Ring3.Abi.KvmPara;
using static Ring3.Kvm.CpuidBits;

namespace Ring3.Kvm;

/// <summary>
/// What KVM_GET_SUPPORTED_CPUID reports: the model's identity and leaves, and the features that the software machine implements and, where it executes an
/// instruction on the host's own units, that the host has.
/// Features that the machine does not implement (CET, AVX-512, MPX, TSX, MONITOR, VMX, SVM, PMU) are never reported.
/// </summary>
public static class SupportedCpuid
{
    private static readonly ConcurrentDictionary<ProcessorModel, kvm_cpuid_entry2[]> s_entries = new();
    private static readonly bool s_avx = (Host(1).Ecx & (Leaf1Ecx.AVX | Leaf1Ecx.OSXSAVE)) == (Leaf1Ecx.AVX | Leaf1Ecx.OSXSAVE);

    /// <summary>State components of XCR0 that a guest can enable.</summary>
    public static ulong SupportedXcr0 { get; } = Arch.Xcr0.X87 | Arch.Xcr0.Sse | (s_avx ? Arch.Xcr0.Avx : 0) | Arch.Xcr0.Pkru;

    /// <summary>The host's model.</summary>
    internal static ReadOnlySpan<kvm_cpuid_entry2> Entries => Of(ProcessorModel.Host);

    internal static ReadOnlySpan<kvm_cpuid_entry2> Of(ProcessorModel model) => s_entries.GetOrAdd(model, Build);

    /// <summary>KVM_GET_SUPPORTED_CPUID: the number of entries stored, or -E2BIG when <paramref name="entries"/> is too short.</summary>
    internal static int Get(Span<kvm_cpuid_entry2> entries, ProcessorModel? model = null)
    {
        ReadOnlySpan<kvm_cpuid_entry2> all = Of(model ?? ProcessorModel.Host);
        if (entries.Length < all.Length)
            return -Errno.E2BIG;
        all.CopyTo(entries);
        return all.Length;
    }

    /// <summary>
    /// <see cref="Of"/> with the hypervisor's timing leaf 0x40000010 (TSC and APIC bus, in kHz), so that guests need not calibrate, a client's own addition as
    /// QEMU's vmware-cpuid-freq; and with the TSC-deadline timer, which KVM_CAP_TSC_DEADLINE_TIMER reports instead of the list
    /// because it needs the in-kernel local APIC.
    /// </summary>
    public static kvm_cpuid_entry2[] WithTiming(uint tscKhz, bool localApic, ProcessorModel? model = null)
    {
        kvm_cpuid_entry2[] entries = [.. Of(model ?? ProcessorModel.Host), new() { function = TimingLeaf, eax = tscKhz, ebx = 1_000_000 }];
        foreach (ref var e in entries.AsSpan())
        {
            if (e.function == KVM_CPUID_SIGNATURE)
                e.eax = TimingLeaf;
            else if (e.function == 1 && localApic)
                e.ecx |= Leaf1Ecx.TSC_DEADLINE;
        }
        return entries;
    }

    private const uint TimingLeaf = 0x4000_0010;

    private static (uint Eax, uint Ebx, uint Ecx, uint Edx) Host(uint leaf, uint subleaf = 0)
    {
        var (a, b, c, d) = X86Base.CpuId((int)leaf, (int)subleaf);
        return ((uint)a, (uint)b, (uint)c, (uint)d);
    }

    private static kvm_cpuid_entry2[] Build(ProcessorModel model)
    {
        var list = new List<kvm_cpuid_entry2>();
        ReadOnlySpan<uint> vendor = MemoryMarshal.Cast<byte, uint>(Encoding.Latin1.GetBytes(model.VendorId));
        BasicLeaves(list, model, vendor);
        KvmLeaves(list);
        ExtendedLeaves(list, model, vendor);
        return [.. list];
    }

    private static void Add(List<kvm_cpuid_entry2> list, uint leaf, uint eax, uint ebx, uint ecx, uint edx) =>
        list.Add(new() { function = leaf, eax = eax, ebx = ebx, ecx = ecx, edx = edx });

    private static void AddIndexed(List<kvm_cpuid_entry2> list, uint leaf, uint index, uint eax, uint ebx, uint ecx, uint edx) =>
        list.Add(new() { function = leaf, index = index, flags = KvmApi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax = eax, ebx = ebx, ecx = ecx, edx = edx });

    private static void BasicLeaves(List<kvm_cpuid_entry2> list, ProcessorModel model, ReadOnlySpan<uint> vendor)
    {
        bool isAmd = model.IsAmd, avx = s_avx;
        var h1 = Host(1);
        var h7 = Host(0).Eax >= 7 ? Host(7) : default;

        Add(list, 0, isAmd ? 0xdu : 0x1f, vendor[0], vendor[2], vendor[1]);

        // Executed on the host's units, or as fast paths that need them.
        const uint HostEcx = Leaf1Ecx.SSE3 | Leaf1Ecx.PCLMUL | Leaf1Ecx.SSSE3 | Leaf1Ecx.SSE41 | Leaf1Ecx.SSE42 | Leaf1Ecx.AES | Leaf1Ecx.RDRAND;
        const uint HostAvxEcx = Leaf1Ecx.FMA | Leaf1Ecx.AVX | Leaf1Ecx.F16C;
        const uint OwnEcx = Leaf1Ecx.CX16 | Leaf1Ecx.PCID | Leaf1Ecx.X2APIC | Leaf1Ecx.MOVBE | Leaf1Ecx.POPCNT | Leaf1Ecx.XSAVE | Leaf1Ecx.HYPERVISOR;
        const uint OwnEdx = Leaf1Edx.FPU | Leaf1Edx.VME | Leaf1Edx.DE | Leaf1Edx.PSE | Leaf1Edx.PSE36 | Leaf1Edx.TSC | Leaf1Edx.MSR | Leaf1Edx.PAE
            | Leaf1Edx.MCE | Leaf1Edx.CX8 | Leaf1Edx.APIC | Leaf1Edx.SEP | Leaf1Edx.MTRR | Leaf1Edx.PGE | Leaf1Edx.MCA
            | Leaf1Edx.CMOV | Leaf1Edx.PAT | Leaf1Edx.CLFLUSH | Leaf1Edx.MMX | Leaf1Edx.FXSR | Leaf1Edx.SSE | Leaf1Edx.SSE2 | Leaf1Edx.SS | Leaf1Edx.HT;
        uint ecx1 = (h1.Ecx & HostEcx) | (avx ? h1.Ecx & HostAvxEcx : 0) | OwnEcx;
        Add(list, 1, model.Signature, 8 << 8 | 1 << 16, ecx1, OwnEdx);
        Add(list, 2, 1, 0, 0, 0);
        if (!isAmd)
            CacheLeaves(list, 4);
        Add(list, 5, 0, 0, 0, 0);
        Add(list, 6, 1 << 2 /* ARAT: the APIC timer runs in every C state */, 0, 0, 0);

        const uint OwnEbx7 = Leaf7Ebx.FSGSBASE | Leaf7Ebx.TSC_ADJUST | Leaf7Ebx.BMI1 | Leaf7Ebx.SMEP | Leaf7Ebx.BMI2 | Leaf7Ebx.ERMS | Leaf7Ebx.INVPCID
            | Leaf7Ebx.ADX | Leaf7Ebx.SMAP | Leaf7Ebx.CLFLUSHOPT | Leaf7Ebx.CLWB;
        const uint HostEbx7 = Leaf7Ebx.RDSEED | Leaf7Ebx.SHA;
        uint ebx7 = OwnEbx7 | (h7.Ebx & HostEbx7) | (avx ? h7.Ebx & Leaf7Ebx.AVX2 : 0)
            | (model.NotesEveryX87 ? 0 : Leaf7Ebx.FDP_EXCPTN_ONLY) | (model.HasX87Selectors ? 0 : Leaf7Ebx.FCS_FDS);
        // KVM: on AMD too, the speculation controls are shown in Intel's bits as well as in AMD's own.
        uint edx7 = Leaf7Edx.FSRM | Leaf7Edx.SPEC_CTRL | Leaf7Edx.STIBP | Leaf7Edx.SSBD | (isAmd ? 0 : Leaf7Edx.ARCH_CAPABILITIES);
        uint ecx7 = Leaf7Ecx.UMIP | Leaf7Ecx.PKU | Leaf7Ecx.LA57 | Leaf7Ecx.RDPID | (h7.Ecx & Leaf7Ecx.GFNI)
            | (avx ? h7.Ecx & (Leaf7Ecx.VAES | Leaf7Ecx.VPCLMULQDQ) : 0);
        AddIndexed(list, 7, 0, isAmd ? 0u : 2u, ebx7, ecx7, edx7);
        if (!isAmd)
        {
            AddIndexed(list, 7, 1, 0, 0, 0, 0);
            // Linux clears its branch history in a loop at every system call unless SPEC_CTRL can do it, whatever ARCH_CAPABILITIES says.
            AddIndexed(list, 7, 2, 0, 0, 0, Leaf7Index2Edx.BHI_CTRL | Leaf7Index2Edx.MCDT_NO);
        }

        TopologyLeaf(list, 0xb);
        uint area = XsaveArea.SizeFor(SupportedXcr0, model);
        AddIndexed(list, 0xd, 0, (uint)SupportedXcr0, area, area, 0);
        AddIndexed(list, 0xd, 1, LeafDEax.XSAVEOPT | LeafDEax.XSAVEC | LeafDEax.XGETBV1 | LeafDEax.XSAVES, XsaveArea.CompactedSizeFor(SupportedXcr0), 0, 0);
        if (avx)
            AddIndexed(list, 0xd, 2, XsaveArea.AvxSize, XsaveArea.AvxOffset, 0, 0);
        AddIndexed(list, 0xd, 9, XsaveArea.PkruSize, (uint)model.PkruOffset, 0, 0);
        if (isAmd)
            return;
        uint khz = HostTsc.Khz;
        Add(list, 0x15, 1, 1, khz * 1000u, 0);
        Add(list, 0x16, khz / 1000, khz / 1000, 100, 0);
        TopologyLeaf(list, 0x1f);
    }

    /// <summary>One thread, one core: the client describes its own topology with <see cref="CpuidTopology"/>.</summary>
    private static void TopologyLeaf(List<kvm_cpuid_entry2> list, uint leaf)
    {
        AddIndexed(list, leaf, 0, 0, 1, 1 << 8, 0);
        AddIndexed(list, leaf, 1, 0, 1, 2 << 8 | 1, 0);
        AddIndexed(list, leaf, 2, 0, 0, 2, 0);
    }

    /// <summary>32 KiB L1 instruction and data, 1 MiB L2, 16 MiB L3, in the format that leaves 4 and 0x8000001D share.</summary>
    private static void CacheLeaves(List<kvm_cpuid_entry2> list, uint leaf)
    {
        const uint Line64Ways8 = 7u << 22 | 63;
        AddIndexed(list, leaf, 0, 1 | 1 << 5 | 1 << 8, Line64Ways8, 63, 0);
        AddIndexed(list, leaf, 1, 2 | 1 << 5 | 1 << 8, Line64Ways8, 63, 0);
        AddIndexed(list, leaf, 2, 3 | 2 << 5 | 1 << 8, Line64Ways8, 2047, 0);
        AddIndexed(list, leaf, 3, 3 | 3 << 5 | 1 << 8, 15u << 22 | 63, 16383, 0);
        AddIndexed(list, leaf, 4, 0, 0, 0, 0);
    }

    private static void KvmLeaves(List<kvm_cpuid_entry2> list)
    {
        ReadOnlySpan<uint> signature = MemoryMarshal.Cast<byte, uint>("KVMKVMKVM\0\0\0"u8);
        Add(list, KVM_CPUID_SIGNATURE, KVM_CPUID_FEATURES, signature[0], signature[1], signature[2]);
        const uint Features = 1 << KVM_FEATURE_CLOCKSOURCE | 1 << KVM_FEATURE_NOP_IO_DELAY | 1 << KVM_FEATURE_CLOCKSOURCE2 | 1 << KVM_FEATURE_ASYNC_PF
            | 1 << KVM_FEATURE_STEAL_TIME | 1 << KVM_FEATURE_PV_EOI | 1 << KVM_FEATURE_PV_UNHALT
            | 1 << KVM_FEATURE_PV_TLB_FLUSH | 1 << KVM_FEATURE_PV_SEND_IPI | 1 << KVM_FEATURE_POLL_CONTROL | 1 << KVM_FEATURE_PV_SCHED_YIELD
            | 1 << KVM_FEATURE_CLOCKSOURCE_STABLE_BIT;
        Add(list, KVM_CPUID_FEATURES, Features, 0, 0, 0);
    }

    private static void ExtendedLeaves(List<kvm_cpuid_entry2> list, ProcessorModel model, ReadOnlySpan<uint> vendor)
    {
        bool isAmd = model.IsAmd;
        if (isAmd)
            Add(list, 0x8000_0000, 0x8000_0021, vendor[0], vendor[2], vendor[1]);
        else
            Add(list, 0x8000_0000, 0x8000_0008, 0, 0, 0);
        const uint SharedEdx = Leaf1Edx.FPU | Leaf1Edx.VME | Leaf1Edx.DE | Leaf1Edx.PSE | Leaf1Edx.PSE36 | Leaf1Edx.TSC | Leaf1Edx.MSR | Leaf1Edx.PAE
            | Leaf1Edx.MCE | Leaf1Edx.CX8 | Leaf1Edx.APIC | Leaf1Edx.MTRR | Leaf1Edx.PGE | Leaf1Edx.MCA | Leaf1Edx.CMOV | Leaf1Edx.PAT | Leaf1Edx.MMX
            | Leaf1Edx.FXSR;
        uint edx1 = Ext1Edx.SYSCALL | Ext1Edx.NX | Ext1Edx.GBPAGES | Ext1Edx.RDTSCP | Ext1Edx.LM | (isAmd ? SharedEdx | Ext1Edx.MMXEXT | Ext1Edx.FXSR_OPT : 0);
        uint ecx1 = Ext1Ecx.LAHF | Ext1Ecx.LZCNT | Ext1Ecx.PREFETCHW
            | (isAmd ? Ext1Ecx.CR8_LEGACY | Ext1Ecx.SSE4A | Ext1Ecx.MISALIGNSSE | Ext1Ecx.OSVW | Ext1Ecx.TOPOEXT : 0);
        Add(list, 0x8000_0001, isAmd ? model.Signature : 0, 0, ecx1, edx1);
        ReadOnlySpan<uint> brand = MemoryMarshal.Cast<byte, uint>(Encoding.Latin1.GetBytes(model.Brand.PadRight(48, '\0')));
        for (int n = 0; n < 3; n++)
            Add(list, 0x8000_0002 + (uint)n, brand[4 * n], brand[4 * n + 1], brand[4 * n + 2], brand[4 * n + 3]);
        if (isAmd)
            Add(list, 0x8000_0005, 0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140);
        Add(list, 0x8000_0006, 0, 0, 0x0400_6040 | (isAmd ? 0 : 0x2000u), isAmd ? 0x0080_9040u : 0);
        Add(list, 0x8000_0007, 0, 0, 0, Ext7Edx.INVARIANT_TSC);
        uint ebx8 = Ext8Ebx.WBNOINVD;
        if (isAmd)
            ebx8 |= Ext8Ebx.CLZERO | Ext8Ebx.IBPB | Ext8Ebx.IBRS | Ext8Ebx.STIBP | Ext8Ebx.SSBD | Ext8Ebx.XSAVEERPTR | Ext8Ebx.SSB_NO | Ext8Ebx.BTC_NO;
        Add(list, 0x8000_0008, 57 << 8 | 48, ebx8, 0, 0);
        if (!isAmd)
            return;
        Add(list, 0x8000_001a, 4 /* 256-bit data paths */, 0, 0, 0);
        CacheLeaves(list, 0x8000_001d);
        Add(list, 0x8000_001e, 0, 0, 0, 0);
        const uint Eax21 = Ext21Eax.NO_NESTED_DATA_BP | Ext21Eax.LFENCE_RDTSC | Ext21Eax.NULL_SEL_CLR_BASE | Ext21Eax.AUTOIBRS | Ext21Eax.NO_SMM_CTL_MSR
            | Ext21Eax.SRSO_NO;
        Add(list, 0x8000_0021, Eax21, 0, Ext21Ecx.TSA_SQ_NO | Ext21Ecx.TSA_L1_NO, 0);
    }
}

/// <summary>Geometry of the XSAVE area for the supported components.</summary>
internal static class XsaveArea
{
    public const uint LegacySize = 512, HeaderSize = 64, AvxOffset = LegacySize + HeaderSize, AvxSize = 256, PkruSize = 8;

    /// <summary>Bytes of the standard format when <paramref name="xcr0"/> is enabled.</summary>
    public static uint SizeFor(ulong xcr0, ProcessorModel model) => (xcr0 & Arch.Xcr0.Pkru) != 0 ? (uint)model.PkruOffset + PkruSize : CompactedSizeFor(xcr0);

    /// <summary>Bytes of the compacted format with these components.</summary>
    public static uint CompactedSizeFor(ulong components) =>
        LegacySize + HeaderSize + ((components & Arch.Xcr0.Avx) != 0 ? AvxSize : 0) + ((components & Arch.Xcr0.Pkru) != 0 ? PkruSize : 0);
}
