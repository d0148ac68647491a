using Ring3.Kvm;

namespace Ring3.Vmm;

// --stats.
public sealed partial class Machine
{
    /// <summary>Prints KVM's counters, summed over the processors (zeros left out), and the speed.</summary>
    public void WriteStats(TextWriter output)
    {
        var sums = new Dictionary<string, ulong>();
        foreach (Vcpu v in _vcpus)
        {
            foreach ((string name, ulong value) in VcpuStats.All(v))
                sums[name] = sums.GetValueOrDefault(name) + value;
        }
        foreach ((string name, ulong value) in sums)
        {
            if (value != 0)
                output.WriteLine($"stat {name,-32} {value}");
        }
        foreach (System.Reflection.FieldInfo f in typeof(VmStats).GetFields())
        {
            if (!sums.ContainsKey(f.Name) && f.GetValue(_vm.Stats) is long value and not 0)
                output.WriteLine($"stat {f.Name,-32} {value}");
        }
        foreach (StatDescriptor<Vm> d in _resident is null ? [] : WorkingSetStats.Descriptors)
        {
            if (d.Read(_vm, 0) is ulong value and not 0)
                output.WriteLine($"stat {d.Name,-32} {value}");
        }
        output.WriteLine($"stat {"zap_policy",-32} {_vm.Options.ZapPolicy.ToString().ToLowerInvariant()}");
        ulong instructions = 0;
        foreach (Vcpu v in _vcpus)
            instructions += v.InstructionsRetired;
        double seconds = (_stopNs - _startNs) / 1e9;
        output.WriteLine($"stat {"instructions",-32} {instructions}");
        WriteTranslation(output, instructions);
        output.WriteLine($"stat {"start_ms",-32} {_startMs}");
        output.WriteLine($"stat {"seconds",-32} {seconds:F3}");
        output.WriteLine($"stat {"mips",-32} {instructions / Math.Max(seconds, 1e-9) / 1e6:F1}");
    }

    private void WriteTranslation(TextWriter output, ulong instructions)
    {
        const int hottest = 10;
        Cpu.TranslationSummary t = _vm.SummarizeTranslation(hottest);
        if (t.Regions == 0)
            return;
        output.WriteLine($"stat {"translated_percent",-32} {100.0 * t.Instructions / Math.Max(instructions, 1):F1}");
        output.WriteLine($"stat {"translated_regions",-32} {t.Regions}");
        output.WriteLine($"stat {"translated_regions_dropped",-32} {t.Dropped}");
        output.WriteLine($"stat {"translated_bytes",-32} {t.Bytes}");
        foreach (Cpu.HotRegion r in t.Hottest)
            output.WriteLine($"stat {$"region_{r.Address:x}",-32} {r.Samples} samples, {r.Instructions} instructions, {r.Bytes} bytes");
    }
}
