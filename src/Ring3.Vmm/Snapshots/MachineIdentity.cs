using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>Whose state a snapshot has: this build of ring3 on a processor with these features, and no other, understands it.</summary>
/// <param name="Version">Of ring3.</param>
/// <param name="Build">The program's file, or its assemblies': size and time.</param>
/// <param name="Processor">Its name.</param>
/// <param name="Features">Everything that a guest can see of it.</param>
internal sealed record MachineIdentity(string Version, string Build, string Processor, uint Features)
{
    private static string? s_build;

    public static void Prepare() => s_build ??= OwnBuild();

    public static MachineIdentity Of(ProcessorModel model)
    {
        var entries = new kvm_cpuid_entry2[Vcpu.MaxCpuidEntries];
        int count = KvmSystem.GetSupportedCpuid(entries, model);
        Span<kvm_cpuid_entry2> leaves = entries.AsSpan(0, count);
        return new MachineIdentity(OwnVersion(), s_build ??= OwnBuild(), $"{model.Name}: {model.Brand}", FeaturesOf(leaves));
    }

    public static MachineIdentity Transfer(StateTransfer state, MachineIdentity? own) =>
        new(state.Text(own?.Version ?? ""), state.Text(own?.Build ?? ""), state.Text(own?.Processor ?? ""), state.Keep(own?.Features ?? 0));

    /// <summary>Why a snapshot of <paramref name="made"/> cannot be restored here, or null.</summary>
    public string? Refuse(MachineIdentity made) =>
        made.Version != Version ? $"it was made by ring3 {made.Version}, and this is {Version}"
        : made.Build != Build ? $"it was made by another build of ring3 {Version}"
        : made.Processor != Processor ? $"it was made on another processor ({made.Processor}, and this is {Processor})"
        : made.Features != Features ? $"it was made on a processor with other features ({Processor})"
        : null;

    private static string OwnVersion() =>
        typeof(MachineIdentity).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+')[0] ?? "unknown";

    private static string OwnBuild()
    {
        string[] files = RuntimeFeature.IsDynamicCodeSupported
            ? [.. Directory.GetFiles(AppContext.BaseDirectory, "Ring3*.dll").Order(StringComparer.Ordinal)]
            : Environment.ProcessPath is { } program ? [program] : [];
        return string.Join(' ', files.Select(FileMark));
    }

    /// <summary>Another one for each content that a file has had.</summary>
    public static string FileMark(string path)
    {
        var file = new FileInfo(path);
        return file.Exists ? $"{path}:{file.Length}:{file.LastWriteTimeUtc.Ticks}" : $"{path}:-";
    }

    /// <summary>Without what is not the processor's, but the one's on which this thread happens to run.</summary>
    private static uint FeaturesOf(ReadOnlySpan<kvm_cpuid_entry2> leaves)
    {
        uint sum = 0;
        foreach (kvm_cpuid_entry2 e in leaves)
        {
            if (e.function is TopologyLeaf or NewTopologyLeaf or AmdTopologyLeaf or TscLeaf or FrequencyLeaf)
                continue;
            uint ebx = e.function == 1 ? e.ebx & 0xff_ffff : e.ebx;
            sum = Crc32C.Of(MemoryMarshal.AsBytes<uint>([e.function, e.index, e.flags, e.eax, ebx, e.ecx, e.edx]), sum);
        }
        return sum;
    }

    // Where the host's frequency is measured, it is a little different each time.
    private const uint TscLeaf = 0x15, FrequencyLeaf = 0x16, TopologyLeaf = 0xb, NewTopologyLeaf = 0x1f, AmdTopologyLeaf = 0x8000_001e;
}
