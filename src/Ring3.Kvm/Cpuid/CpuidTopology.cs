using System.Numerics;
using Ring3.Abi;
using Ring3.Cpu;

namespace Ring3.Kvm;

/// <summary>Fills the leaves that say which processor this is and how many there are.</summary>
public static class CpuidTopology
{
    /// <summary>Describes one package of <paramref name="cpus"/> single-threaded cores, as seen from the processor with <paramref name="apicId"/>.
    /// The vendor is the entries' own.</summary>
    public static void Apply(Span<kvm_cpuid_entry2> entries, uint apicId, uint cpus)
    {
        int coreBits = BitOperations.Log2(BitOperations.RoundUpToPowerOf2(Math.Max(cpus, 1)));
        uint logical = Math.Min(cpus, 255);
        bool isAmd = IsAmd(entries);
        foreach (ref var e in entries)
        {
            switch (e.function)
            {
                case 1:
                    e.ebx = e.ebx & 0xff00 | logical << 16 | apicId << 24;
                    e.edx = cpus > 1 ? e.edx | CpuidBits.Leaf1Edx.HT : e.edx & ~CpuidBits.Leaf1Edx.HT;
                    break;
                case 4 when (e.eax & 0x1f) != 0:
                    bool shared = (e.eax >> 5 & 7) == 3;
                    e.eax = e.eax & 0x3fff | ((1u << coreBits) - 1) << 26 | (shared ? ((1u << coreBits) - 1) << 14 : 0);
                    break;
                case 0xb or 0x1f:
                    e.edx = apicId;
                    (e.eax, e.ebx) = e.index switch { 0 => (0u, 1u), 1 => ((uint)coreBits, cpus), _ => (0u, 0u) };
                    break;
                case 0x8000_0008:
                    if (isAmd)
                        e.ecx = (uint)coreBits << 12 | Math.Min(cpus - 1, 0xff);
                    break;
                case 0x8000_001d when (e.eax & 0x1f) != 0:
                    e.eax = e.eax & 0x3fff | ((e.eax >> 5 & 7) == 3 ? Math.Min(cpus - 1, 0xfff) << 14 : 0);
                    break;
                case 0x8000_001e:
                    (e.eax, e.ebx, e.ecx) = (apicId, apicId & 0xff, 0);
                    break;
                case 0x8000_0001 when isAmd:
                    e.ecx = cpus > 1 ? e.ecx | CpuidBits.Ext1Ecx.CMP_LEGACY : e.ecx & ~CpuidBits.Ext1Ecx.CMP_LEGACY;
                    break;
            }
        }
    }

    private static bool IsAmd(ReadOnlySpan<kvm_cpuid_entry2> entries)
    {
        foreach (ref readonly var e in entries)
            if (e.function == 0)
                return ProcessorModel.VendorOf(e.ebx, e.edx, e.ecx) == ProcessorVendor.Amd;
        return false;
    }
}
