using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

// --stats.
public sealed partial class Machine
{
    /// <summary>Prints KVM's counters, summed over the processors (zeros left out), and the speed.</summary>
    public void WriteStats(TextWriter output)
    {
        foreach ((string name, string value) in Stats())
            output.WriteLine($"stat {name,-32} {value}");
    }

    /// <summary>The counters as they are now.</summary>
    private List<(string Name, string Value)> Stats()
    {
        var all = new List<(string, string)>();
        var sums = new Dictionary<string, ulong>();
        foreach (Vcpu v in _vcpus)
        {
            foreach ((string name, ulong value) in VcpuStats.All(v))
                sums[name] = sums.GetValueOrDefault(name) + value;
        }
        foreach ((string name, ulong value) in sums)
        {
            if (value != 0)
                all.Add((name, $"{value}"));
        }
        foreach (System.Reflection.FieldInfo f in typeof(VmStats).GetFields())
        {
            if (!sums.ContainsKey(f.Name) && f.GetValue(_vm.Stats) is long value and not 0)
                all.Add((f.Name, $"{value}"));
        }
        foreach (StatDescriptor<Vm> d in _resident is null ? [] : WorkingSetStats.Descriptors)
        {
            if (d.Read(_vm, 0) is ulong value and not 0)
                all.Add((d.Name, $"{value}"));
        }
        all.Add(("zap_policy", _vm.Options.ZapPolicy.ToString().ToLowerInvariant()));
        ulong instructions = 0;
        foreach (Vcpu v in _vcpus)
            instructions += v.InstructionsRetired;
        double seconds = ((_stopNs == 0 ? HostClock.MonotonicNs() : _stopNs) - _startNs) / 1e9;
        all.Add(("instructions", $"{instructions}"));
        AddTranslation(all, instructions);
        all.Add(("start_ms", $"{_startMs}"));
        all.Add(("seconds", $"{seconds:F3}"));
        all.Add(("mips", $"{instructions / Math.Max(seconds, 1e-9) / 1e6:F1}"));
        return all;
    }

    private void AddTranslation(List<(string, string)> all, ulong instructions)
    {
        const int hottest = 10;
        Cpu.TranslationSummary t = _vm.SummarizeTranslation(hottest);
        if (t.Regions == 0)
            return;
        all.Add(("translated_percent", $"{100.0 * t.Instructions / Math.Max(instructions, 1):F1}"));
        all.Add(("translated_regions", $"{t.Regions}"));
        all.Add(("translated_regions_dropped", $"{t.Dropped}"));
        all.Add(("translated_bytes", $"{t.Bytes}"));
        foreach (Cpu.HotRegion r in t.Hottest)
            all.Add(($"region_{r.Address:x}", $"{r.Samples} samples, {r.Instructions} instructions, {r.Bytes} bytes"));
    }
}
