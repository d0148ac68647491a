using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using System.Text;

namespace Ring3.Cpu;

/// <summary>Whose processor it is, where vendors differ. Licensees count as the designer: Hygon is AMD.</summary>
public enum ProcessorVendor : byte
{
    /// <summary>Neither, or not said.</summary>
    Other,
    Intel,
    Amd,
}

/// <summary>Which operand of CMPS is read first.</summary>
internal enum CompareOrder : byte
{
    /// <summary>The one at RDI.</summary>
    Second,
    /// <summary>The one at RSI.</summary>
    First,
    /// <summary>The one at RDI, but for REPE CMPSB.</summary>
    SecondButRepeatedBytes,
}

/// <summary>
/// Which processor a machine is: identity, and behaviour that the manuals leave to the implementation. What runs on the host's own units (vector arithmetic,
/// transcendental x87) is the host's whatever the model.
/// </summary>
public sealed record ProcessorModel
{
    /// <summary>AMD Zen 4 (family 0x19).</summary>
    public static ProcessorModel Zen4 { get; } = new()
    {
        Name = "amd",
        Vendor = ProcessorVendor.Amd,
        VendorId = "AuthenticAMD",
        Signature = 0x00a1_0f11,
        Brand = "AMD EPYC Processor (Zen 4)",
        CompareOrder = CompareOrder.SecondButRepeatedBytes,
        ReservesTopGlobal = true,
        LoadsShaAnywhere = true,
        NotesEveryX87 = true,
        HasX87Selectors = true,
        PkruOffset = 2432,
    };

    /// <summary>AMD Zen 5 (family 0x1a).</summary>
    public static ProcessorModel Zen5 { get; } = Zen4 with
    {
        Name = "amd-zen5",
        Signature = 0x00b0_0f21,
        Brand = "AMD EPYC Processor (Zen 5)",
        CompareOrder = CompareOrder.First,
    };

    /// <summary>Intel Sapphire Rapids and Emerald Rapids (family 6, models 143 and 207).</summary>
    public static ProcessorModel EmeraldRapids { get; } = new()
    {
        Name = "intel",
        Vendor = ProcessorVendor.Intel,
        VendorId = "GenuineIntel",
        Signature = 0x000c_06f2,
        Brand = "Intel Xeon Processor (Emerald Rapids)",
        ShiftsFirstOperandIn = true,
        PushesSelectorAsWord = true,
        PushesBeforeTarget = true,
        BoundsInTurn = true,
        CompareOrder = CompareOrder.Second,
        KeepsCompareFlags = true,
        ZeroExtendsRepeat = true,
        SparesVectorAlignment = true,
        MmxStoresClearTop = true,
        ConvertsBeforeStore = true,
        MaskedStoresFromAbove = true,
        GathersNormalizeMask = true,
        SysretChecksTarget = true,
        HasWideSysenter = true,
        MovSsHidesBreakpoint = true,
        PkruOffset = 2688,
    };

    /// <summary>The host's: its identity, with the behaviour of its family, or of the vendor's latest known one when no model describes it.</summary>
    public static ProcessorModel Host { get; } = ReadHost();

    /// <summary>What selects the model: <see cref="TryParse"/>.</summary>
    public required string Name { get; init; }
    public required ProcessorVendor Vendor { get; init; }
    /// <summary>The 12 letters of CPUID leaf 0.</summary>
    public required string VendorId { get; init; }
    /// <summary>EAX of CPUID leaf 1: family, model, stepping.</summary>
    public required uint Signature { get; init; }
    /// <summary>CPUID leaves 0x80000002 to 0x80000004, at most 47 letters.</summary>
    public required string Brand { get; init; }
    /// <summary>The family is one whose behaviour has been compared; otherwise it is a guess.</summary>
    public bool IsKnown { get; init; } = true;

    // Behaviour. Handlers ask for it on their rare paths: faults, undefined results, segment registers.

    /// <summary>SHLD and SHRD of 16 bits by more than 16: behind the second operand the first one follows again. False: the second itself.</summary>
    internal bool ShiftsFirstOperandIn { get; init; }
    /// <summary>PUSH of a segment register with a 32-bit operand writes two bytes. False: four, zero-extended.</summary>
    internal bool PushesSelectorAsWord { get; init; }
    /// <summary>The return address is on the stack when the target of a CALL turns out not to be canonical.</summary>
    internal bool PushesBeforeTarget { get; init; }
    /// <summary>BOUND reads the upper bound only when the lower one holds.</summary>
    internal bool BoundsInTurn { get; init; }
    /// <summary>What CMPS reads first, and so which of its operands faults first.</summary>
    internal CompareOrder CompareOrder { get; init; }
    /// <summary>A repeated CMPS or SCAS that stops before its end has the status flags of before. SPEC: SDM volume 2, "REP/REPE/REPZ/REPNE/REPNZ".</summary>
    internal bool KeepsCompareFlags { get; init; }
    /// <summary>
    /// Repeated string instructions with 32-bit addresses in 64-bit mode zero-extend RCX, and MOVS and STOS their index registers, before the first iteration.
    /// </summary>
    internal bool ZeroExtendsRepeat { get; init; }
    /// <summary>RFLAGS.AC does not apply to vector accesses of 16 bytes and more, nor to those of VCVTPH2PS and VCVTPS2PH.</summary>
    internal bool SparesVectorAlignment { get; init; }
    /// <summary>Memory operands of SHA instructions need no alignment.</summary>
    internal bool LoadsShaAnywhere { get; init; }
    /// <summary>A store from an MMX register clears TOP even if it faults.</summary>
    internal bool MmxStoresClearTop { get; init; }
    /// <summary>
    /// Stores that convert (VCVTPS2PH, x87) raise the exceptions of the conversion before those of the memory; an x87 store that an unmasked exception
    /// suppresses accesses no memory, and one of ten bytes is two.
    /// </summary>
    internal bool ConvertsBeforeStore { get; init; }
    /// <summary>MASKMOVDQU's upper half is checked before its lower one; other masked stores whose second page faults report their last byte.</summary>
    internal bool MaskedStoresFromAbove { get; init; }
    /// <summary>
    /// A gather first makes each mask element all ones or zero, in the whole operand, and clears the destination's upper half with the first element.
    /// </summary>
    internal bool GathersNormalizeMask { get; init; }

    /// <summary>
    /// FOP and FDP follow every x87 instruction but those of control, as FIP does. False: those that raise an unmasked exception (CPUID's FDP_EXCPTN_ONLY).
    /// </summary>
    public bool NotesEveryX87 { get; init; }
    /// <summary>
    /// FCS and FDS exist. False: they are zero (CPUID's ZERO_FCS_FDS), and FIP loaded from memory is made canonical for 57 bits, which FDP is not.
    /// </summary>
    public bool HasX87Selectors { get; init; }

    /// <summary>
    /// SYSRET to a RIP that is not canonical is #GP(0) before anything has changed. False: it retires, and the target's fetch is #GP(0) at CPL 3.
    /// </summary>
    internal bool SysretChecksTarget { get; init; }
    /// <summary>SYSENTER and SYSEXIT exist in long mode, and their MSRs have 64 bits. False: #UD, and 32 bits, unless the guest sees Intel.</summary>
    internal bool HasWideSysenter { get; init; }
    /// <summary>MOV SS and POP SS keep an instruction breakpoint from the instruction behind them.</summary>
    internal bool MovSsHidesBreakpoint { get; init; }

    /// <summary>Bit 8 of the tables' two topmost levels in long mode is reserved. False: ignored.</summary>
    internal bool ReservesTopGlobal { get; init; }

    /// <summary>Where PKRU is in the standard format of XSAVE: behind what a processor may have beside it (EBX of CPUID leaf 0xD, sub-leaf 9).</summary>
    public int PkruOffset { get; init; }

    public bool IsAmd => Vendor == ProcessorVendor.Amd;
    public int Family => FamilyOf(Signature);
    public int ModelNumber => ModelOf(Signature);

    /// <summary>Display family of a signature. SPEC: SDM volume 2, "CPUID", leaf 1.</summary>
    public static int FamilyOf(uint signature) => (int)(signature >> 8 & 15) is var family && family == 15 ? family + (int)(signature >> 20 & 255) : family;

    /// <summary>Display model of a signature.</summary>
    public static int ModelOf(uint signature) => (int)(signature >> 4 & 15 | ((signature >> 8 & 15) is 6 or 15 ? signature >> 12 & 0xf0 : 0));

    public static ProcessorVendor VendorOf(string vendorId) => vendorId switch
    {
        "GenuineIntel" => ProcessorVendor.Intel,
        "AuthenticAMD" or "HygonGenuine" => ProcessorVendor.Amd,
        _ => ProcessorVendor.Other,
    };

    /// <summary>The vendor by CPUID leaf 0's registers.</summary>
    public static ProcessorVendor VendorOf(uint ebx, uint edx, uint ecx) => VendorOf(VendorText(ebx, edx, ecx));

    /// <summary>The model that describes a family, or null when none does.</summary>
    public static ProcessorModel? Find(string vendorId, int family, int model) => (VendorOf(vendorId), family, model) switch
    {
        (ProcessorVendor.Amd, 0x19, _) => Zen4,
        (ProcessorVendor.Amd, 0x1a, _) => Zen5,
        (ProcessorVendor.Intel, 6, 143 or 207) => EmeraldRapids,
        _ => null,
    };

    /// <summary>host, intel or amd.</summary>
    public static bool TryParse(string? text, out ProcessorModel model)
    {
        ProcessorModel? found = text?.ToLowerInvariant() switch { "host" => Host, "intel" => EmeraldRapids, "amd" => Zen4, _ => null };
        model = found ?? Host;
        return found is not null;
    }

    private static ProcessorModel ReadHost()
    {
        if (!X86Base.IsSupported)
            return Zen4 with { Name = "host", IsKnown = false };
        var (_, b, c, d) = X86Base.CpuId(0, 0);
        string vendorId = VendorText((uint)b, (uint)d, (uint)c);
        uint signature = (uint)X86Base.CpuId(1, 0).Eax;
        ProcessorModel? known = Find(vendorId, FamilyOf(signature), ModelOf(signature));
        ProcessorModel kin = known ?? (VendorOf(vendorId) == ProcessorVendor.Amd ? Zen5 : EmeraldRapids);
        return kin with
        {
            Name = "host", Vendor = VendorOf(vendorId), VendorId = vendorId, Signature = signature, Brand = ReadBrand(), IsKnown = known is not null,
            PkruOffset = X86Base.CpuId(0xd, 9).Ebx is > 0 and < 4096 - 8 and var offset ? offset : kin.PkruOffset,
        };
    }

    private static string ReadBrand()
    {
        const int first = unchecked((int)0x8000_0002), last = unchecked((int)0x8000_0004);
        if ((uint)X86Base.CpuId(unchecked((int)0x8000_0000), 0).Eax < unchecked((uint)last))
            return "";
        Span<int> words = stackalloc int[12];
        for (int leaf = first; leaf <= last; leaf++)
            (words[(leaf - first) * 4], words[(leaf - first) * 4 + 1], words[(leaf - first) * 4 + 2], words[(leaf - first) * 4 + 3]) = X86Base.CpuId(leaf, 0);
        return Encoding.Latin1.GetString(MemoryMarshal.AsBytes(words)).TrimEnd('\0');
    }

    private static string VendorText(uint ebx, uint edx, uint ecx)
    {
        ReadOnlySpan<uint> words = [ebx, edx, ecx];
        return Encoding.Latin1.GetString(MemoryMarshal.AsBytes(words));
    }
}
