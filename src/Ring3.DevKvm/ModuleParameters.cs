using Ring3.Cpu;
using Ring3.Kvm;
using Ring3.Memory;

namespace Ring3.DevKvm;

/// <summary>
/// What kvm.ko takes as module parameters, from the environment: RING3_PARAMETERS="nx_huge_pages=1,nx_huge_pages_recovery_ratio=1". Names are those of
/// /sys/module/kvm/parameters (and pml of kvm_intel); the interposer shows the same values there (native/sysfs.c). Two are Ring3's own: cpu, which kvm.ko takes
/// from the host, and engine. Unknown names and values that cannot be understood are ignored, as the files' defaults are then in force.
/// </summary>
internal static class ModuleParameters
{
    private static readonly Dictionary<string, string> s_given = Parse(Environment.GetEnvironmentVariable("RING3_PARAMETERS"));

    /// <summary>The processor of this process's VMs, and of what /dev/kvm itself reports: cpu=host, intel or amd.</summary>
    internal static ProcessorModel Processor { get; } = Model(s_given);

    internal static Dictionary<string, string> Parse(string? text)
    {
        var given = new Dictionary<string, string>();
        foreach (string item in (text ?? "").Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries))
        {
            int at = item.IndexOf('=');
            if (at > 0)
                given[item[..at].Trim()] = item[(at + 1)..].Trim();
        }
        return given;
    }

    /// <summary>Options of a new VM.</summary>
    internal static VmOptions Apply(VmOptions options) => Apply(options, s_given);

    internal static VmOptions Apply(VmOptions options, Dictionary<string, string> given) => options with
    {
        Processor = Model(given),
        TranslationThreshold = Engine.TryParse(given.GetValueOrDefault("engine"), out int threshold) ? threshold : options.TranslationThreshold,
        EagerPageSplit = Flag(given, "eager_page_split", options.EagerPageSplit),
        NxHugePages = Flag(given, "nx_huge_pages", options.NxHugePages),
        NxHugePagesRecoveryRatio = Number(given, "nx_huge_pages_recovery_ratio", options.NxHugePagesRecoveryRatio),
        NxHugePagesRecoveryPeriodMs = Number(given, "nx_huge_pages_recovery_period_ms", options.NxHugePagesRecoveryPeriodMs),
        DirtyTracking = Flag(given, "pml", true) ? options.DirtyTracking : DirtyTracking.WriteProtect,
    };

    /// <summary>A boolean as the kernel reads it; nx_huge_pages also takes force, auto and never. Here no processor has the defect, so auto is off.</summary>
    private static bool Flag(Dictionary<string, string> given, string name, bool otherwise) => given.GetValueOrDefault(name)?.ToLowerInvariant() switch
    {
        "1" or "y" or "yes" or "on" or "t" or "true" or "force" => true,
        "0" or "n" or "no" or "off" or "f" or "false" or "never" or "auto" => false,
        _ => otherwise,
    };

    private static ProcessorModel Model(Dictionary<string, string> given) =>
        ProcessorModel.TryParse(given.GetValueOrDefault("cpu"), out ProcessorModel model) ? model : ProcessorModel.Host;

    private static uint Number(Dictionary<string, string> given, string name, uint otherwise) =>
        uint.TryParse(given.GetValueOrDefault(name), out uint n) ? n : otherwise;
}
