using System.Diagnostics;
using System.Globalization;
using System.Runtime.Intrinsics.X86;
using Ring3.Arch;

namespace Ring3.Differential;

/// <summary>
/// What this host does otherwise than a bare processor under Linux: a hypervisor, a container or a kernel option can stand between a case and the
/// processor. Found once, by cases of its own, before any comparison.
/// </summary>
/// <remarks>SAFETY: writes inside the oracle's shared mapping, at indices below <see cref="Sandbox.MaxCases"/>.</remarks>
internal sealed unsafe class HostProbes
{
    private static HostProbes? s_current;
    private static readonly Lock s_lock = new();
    private readonly List<(string Name, string Consequence)> _failed = [];
    private readonly NativeOracle _oracle;

    /// <summary>RFLAGS.NT comes back as the case left it.</summary>
    internal bool ReportsNestedTask { get; }
    /// <summary>RFLAGS.NT outlives an interrupt.</summary>
    internal bool KeepsNestedTask { get; }
    /// <summary>A far jump reaches 32-bit code.</summary>
    internal bool RunsCompatibilityMode { get; }
    /// <summary>16-bit segments of an LDT can be made and reached.</summary>
    internal bool RunsWordSegments { get; }
    /// <summary>TF stops behind one instruction.</summary>
    internal bool SingleSteps { get; }
    /// <summary>RFLAGS.AC is enforced in user mode.</summary>
    internal bool ChecksAlignment { get; }
    /// <summary>#PF shows its error code and CR2.</summary>
    internal bool ReportsPageFaults { get; }
    /// <summary>The kernel knows FSGSBASE: bases written by user code survive a switch of threads.</summary>
    internal bool KeepsBases { get; }
    /// <summary>A GS base in the upper half outlives a fault.</summary>
    internal bool KeepsUpperGsBase { get; }
    /// <summary>An interrupt returns to code whose RSP is not canonical.</summary>
    internal bool ReturnsToAnyStack { get; }
    /// <summary>
    /// FIP, FOP and FDP are the processor's, through a fault too, and the manual says how they are updated. AMD's leaves open what XRSTOR makes of the
    /// selectors that they have.
    /// </summary>
    internal bool ReportsX87Pointers { get; }
    /// <summary>Locked accesses across a cache line run at the processor's own speed.</summary>
    internal bool RunsSplitLocks { get; }

    internal static string Vendor => ProcessorModel.Host.VendorId;
    internal static int Family => ProcessorModel.Host.Family;
    internal static int Model => ProcessorModel.Host.ModelNumber;

    /// <summary>The probes' results; the first caller's oracle runs them.</summary>
    internal static HostProbes Of(NativeOracle oracle)
    {
        lock (s_lock)
            return s_current ??= new HostProbes(oracle);
    }

    /// <summary>The same for callers that have no oracle.</summary>
    internal static HostProbes Find()
    {
        lock (s_lock)
        {
            if (s_current is { } known)
                return known;
            using var oracle = new NativeOracle();
            return oracle.Probes;
        }
    }

    private HostProbes(NativeOracle oracle)
    {
        _oracle = oracle;
        if (Outcome([0x0f, 0x0b]) is not { Vector: Vector.UD })
            throw new InvalidOperationException("the native oracle does not see UD2 of its own cases: nothing can be compared on this host");
        ReportsNestedTask = Note("nt", (Outcome([0x90], rflags: Rflags.NT).Rflags & Outcome([0x0f, 0x0b], rflags: Rflags.NT).Rflags & Rflags.NT) != 0,
            "RFLAGS.NT is lost on the way: not compared");
        RunsCompatibilityMode = Note("compatibility-mode", Outcome([0x90], bits: 32).Vector == CaseOutput.NoVector,
            "32-bit code cannot be entered: no cases of 32 bits");
        RunsWordSegments = Note("16-bit-segments", Outcome([0x90], bits: 16).Vector == CaseOutput.NoVector,
            "16-bit code cannot be entered: no cases of 16 bits");
        SingleSteps = Note("single-step", Outcome([0x90, 0x90], rflags: Rflags.TF) is { Vector: Vector.DB, Behind: 1 },
            "TF does not stop behind one instruction: undefined bytes are not run");
        // MOV EAX, [RBX]
        ChecksAlignment = Note("alignment-check", Outcome([0x8b, 0x03], rflags: Rflags.AC, rbx: Sandbox.DataAddress + 1).Vector == Vector.AC,
            "RFLAGS.AC has no effect: cases with it are not run");
        ReportsPageFaults = Note("page-fault", Outcome([0x8b, 0x03], rbx: Sandbox.DataAddress - 8) is { Vector: Vector.PF, ErrorCode: 4,
            Cr2: Sandbox.DataAddress - 8 }
            && Outcome([0x89, 0x03], rbx: Sandbox.DataAddress + Sandbox.DataWritable) is { Vector: Vector.PF, ErrorCode: 7, Cr2: Sandbox.DataAddress
                + Sandbox.DataWritable }, "error code and CR2 of #PF are not the processor's: not compared");
        KeepsBases = Note("fsgsbase", (AuxiliaryVector(26) & 2) != 0,
            "the kernel does not know FSGSBASE, a switch of threads loses the bases: cases that show it run again");
        // WRGSBASE RBX; UD2
        KeepsUpperGsBase = Note("gs-base-upper", Outcome([0xf3, 0x48, 0x0f, 0xae, 0xdb, 0x0f, 0x0b], rbx: ulong.MaxValue << 12).GsBase == ulong.MaxValue << 12,
            "a fault clears a GS base in the upper half: not compared then");
        // JMP to itself, until the timer ends it.
        KeepsNestedTask = Note("nt-interrupt", (Outcome([0xeb, 0xfe], rflags: Rflags.NT).Rflags & Rflags.NT) != 0,
            "an interrupt clears RFLAGS.NT: cases that show it run until two runs agree");
        ReturnsToAnyStack = Note("stack-not-canonical", Outcome([0x90], rflags: Rflags.TF, rsp: 1UL << 48).Vector == Vector.DB,
            "an interrupt with an RSP that is not canonical ends in #GP: cases that show it run until two runs agree");
        ReportsX87Pointers = Note("x87-pointers", HasDefinedPointers() && KeepsPointers(),
            "FIP, FOP and FDP are not those of CPUID's FDP_EXCPTN_ONLY and ZERO_FCS_FDS: zero before a case and not compared behind it");
        RunsSplitLocks = Note("split-lock", !DetectsSplitLocks(), "locked accesses across a cache line are trapped or slowed down: not run");
    }

    /// <summary>What oracle.c has to allow for: QUIRK_ there.</summary>
    internal ulong Quirks => (KeepsBases ? 0UL : 1) | (ReturnsToAnyStack ? 0UL : 2) | (KeepsNestedTask ? 0UL : 4);

    /// <summary>Why the cases of this mode cannot run here, or null.</summary>
    internal string? Missing(int bits) => bits switch
    {
        32 when !RunsCompatibilityMode => "this host cannot run 32-bit code (probe compatibility-mode)",
        16 when !RunsWordSegments => "this host cannot run 16-bit code (probe 16-bit-segments)",
        _ => null,
    };

    /// <summary>One line for each probe that failed, with its consequence.</summary>
    internal IEnumerable<string> Report()
    {
        string known = ProcessorModel.Host.IsKnown ? "" : ", which no model knows: what the manuals leave open is reported, not failed";
        yield return string.Create(CultureInfo.InvariantCulture, $"host: {Vendor} family {Family} model {Model}{known}");
        foreach ((string name, string consequence) in _failed)
            yield return $"host probe {name}: {consequence}";
    }

    private bool Note(string name, bool holds, string consequence)
    {
        if (!holds)
            _failed.Add((name, consequence));
        return holds;
    }

    /// <summary>
    /// FOP and FDP follow unmasked exceptions only, and there are no selectors. SPEC: SDM volume 1, "x87 FPU Instruction and Data (Operand) Pointers".
    /// </summary>
    private static bool HasDefinedPointers() => X86Base.IsSupported && X86Base.CpuId(0, 0).Eax >= 7
        && (X86Base.CpuId(7, 0).Ebx & (1 << 6 | 1 << 13)) == (1 << 6 | 1 << 13);

    /// <summary>FLD1 leaves its address and nothing else; UD2 behind it reports all three.</summary>
    private bool KeepsPointers()
    {
        const ulong data = 0x0123_4567_89ab_cdef;
        Outcome([0xd9, 0xe8, 0x0f, 0x0b], fop: 0x5a5, fdp: data);
        byte* x = _oracle.Output(0)->Xsave;
        return *(ushort*)(x + XsaveArea.Fop) == 0x5a5 && *(ulong*)(x + XsaveArea.Fip) == _oracle.Input(0)->Rip && *(ulong*)(x + XsaveArea.Fdp) == data;
    }

    private readonly record struct Seen(uint Vector, uint ErrorCode, ulong Cr2, ulong Rflags, ulong GsBase, int Behind);

    /// <summary>Runs one case with the given bytes.</summary>
    private Seen Outcome(ReadOnlySpan<byte> bytes, ulong rflags = 0, int bits = 64, ulong rbx = 0, ulong rsp = Sandbox.DataAddress + 0x800, ushort fop = 0,
        ulong fdp = 0)
    {
        CaseInput* s = _oracle.Input(0);
        *s = default;
        new Span<byte>(_oracle.Code, Sandbox.SlotSize).Fill(0xcc);
        s->Bits = (uint)bits;
        s->CodeSelector = bits switch { 64 => 0x33, 32 => 0x23, _ => Sandbox.WordCodeSelector0 };
        s->Rip = (bits == 16 ? 0 : Sandbox.CodeAddress) + 64;
        s->NextRip = s->Rip + (ulong)bytes.Length;
        s->Rflags = Rflags.Fixed1 | Rflags.IF | rflags;
        s->Gpr[3] = rbx;
        s->Gpr[4] = bits == 16 ? 0x4800 : rsp;
        *(ushort*)(s->Xsave + XsaveArea.Fcw) = 0x37f;
        *(ushort*)(s->Xsave + XsaveArea.Fop) = fop;
        *(ulong*)(s->Xsave + XsaveArea.Fdp) = fdp;
        *(uint*)(s->Xsave + XsaveArea.Mxcsr) = 0x1f80;
        *(ulong*)(s->Xsave + XsaveArea.Header) = 7;
        bytes.CopyTo(new Span<byte>(_oracle.Code + 64, Sandbox.SlotSize - 64));
        CaseBatch.EmitExit(_oracle.Code + 64 + bytes.Length, s, _oracle.ExitAddress);
        if (_oracle.Run(1) >= 0)
            return new Seen(CaseOutput.NotEnteredVector, 0, 0, 0, 0, 0);
        CaseOutput* o = _oracle.Output(0);
        return new Seen(o->Vector, o->ErrorCode, o->Cr2, o->Rflags, o->GsBase, (int)(o->Rip - s->Rip));
    }

    /// <summary>
    /// Linux names the feature; under a hypervisor only the time tells. INC across a line takes a microsecond at most, a trap that slows the thread
    /// down sleeps for milliseconds; the fastest of the runs is not the scheduler's doing, and one that is fast enough is enough.
    /// </summary>
    private bool DetectsSplitLocks()
    {
        string flags = File.ReadLines("/proc/cpuinfo").FirstOrDefault(l => l.StartsWith("flags", StringComparison.Ordinal)) ?? "";
        if (flags.Split(' ').Any(f => f is "split_lock_detect" or "bus_lock_detect"))
            return true;
        TimeSpan limit = TimeSpan.FromMilliseconds(5), fastest = TimeSpan.MaxValue;
        for (int n = 0; n < 50 && fastest > limit; n++)
        {
            var clock = Stopwatch.StartNew();
            if (Outcome([0xf0, 0xff, 0x03], rbx: Sandbox.DataAddress + 0x3e).Vector != CaseOutput.NoVector)
                return true;
            fastest = clock.Elapsed < fastest ? clock.Elapsed : fastest;
        }
        return fastest > limit;
    }

    private static ulong AuxiliaryVector(ulong type)
    {
        byte[] bytes = File.ReadAllBytes("/proc/self/auxv");
        for (int at = 0; at + 16 <= bytes.Length; at += 16)
        {
            if (BitConverter.ToUInt64(bytes, at) == type)
                return BitConverter.ToUInt64(bytes, at + 8);
        }
        return 0;
    }
}
