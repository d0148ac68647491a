using System.Diagnostics;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;
using Ring3.Abi;

namespace Ring3.Kvm.Tests;

/// <summary>Compares every structure and constant of Ring3.Abi with the kernel's headers, by a C program generated from them.</summary>
public class AbiProbeTests(ITestOutputHelper output)
{
    /// <summary>Named differently on both sides, or younger than the oldest headers this builds against; each is covered by size.</summary>
    private static readonly Dictionary<string, string> s_fieldNames = new()
    {
        ["kvm_run.debug"] = "debug", ["kvm_run.s"] = "s.regs", ["kvm_irqchip.pic"] = "chip.pic", ["kvm_irqchip.ioapic"] = "chip.ioapic",
            ["kvm_irqchip.pad"] = "pad",
        ["kvm_irq_routing_entry.irqchip"] = "u.irqchip", ["kvm_irq_routing_entry.msi"] = "u.msi", ["kvm_irq_routing_entry.hv_sint"] = "u.hv_sint",
            ["kvm_irq_routing_entry.xen_evtchn"] = "u.xen_evtchn",
        ["kvm_pit_config.pad"] = "pad",
        ["kvm_xen_hvm_attr.long_mode"] = "u.long_mode", ["kvm_xen_hvm_attr.vector"] = "u.vector", ["kvm_xen_hvm_attr.runstate_update_flag"] =
            "u.runstate_update_flag", ["kvm_xen_hvm_attr.gfn"] = "u.shared_info.gfn",
        ["kvm_xen_hvm_attr.hva"] = "u.shared_info.hva", ["kvm_xen_hvm_attr.evtchn"] = "u.evtchn", ["kvm_xen_hvm_attr.xen_version"] = "u.xen_version",
            ["kvm_xen_hvm_attr.fifo"] = "",
        ["kvm_xen_vcpu_attr.gpa"] = "u.gpa", ["kvm_xen_vcpu_attr.hva"] = "u.hva", ["kvm_xen_vcpu_attr.runstate"] = "u.runstate",
            ["kvm_xen_vcpu_attr.vcpu_id"] = "u.vcpu_id",
        ["kvm_xen_vcpu_attr.timer"] = "u.timer", ["kvm_xen_vcpu_attr.vector"] = "u.vector",
        // Ring3's own attributes, which no header has.
        ["kvm_xen_hvm_attr.pirq"] = "", ["kvm_xen_vcpu_attr.fifo_tails"] = "",
    };

    /// <summary>What came after Linux 6.1, and a macro that came with it: headers without it cannot be asked.</summary>
    private static readonly Dictionary<string, string> s_since = new()
    {
        ["kvm_userspace_memory_region2"] = "KVM_SET_USER_MEMORY_REGION2", ["kvm_create_guest_memfd"] = "KVM_CREATE_GUEST_MEMFD",
            ["kvm_memory_attributes"] = "KVM_SET_MEMORY_ATTRIBUTES",
        ["kvm_pre_fault_memory"] = "KVM_PRE_FAULT_MEMORY", ["kvm_run.memory_fault"] = "KVM_CAP_MEMORY_FAULT_INFO",
        ["kvm_xen_hvm_attr.runstate_update_flag"] = "KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG", ["kvm_xen_hvm_attr.hva"] = "KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA",
        ["kvm_xen_vcpu_attr.hva"] = "KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA",
    };

    /// <summary>
    /// Directory of exported kernel headers to use instead of the system's: RING3_KERNEL_HEADERS, or those that the selftests were built with.
    /// </summary>
    private static string? NewerHeaders()
    {
        if (Environment.GetEnvironmentVariable("RING3_KERNEL_HEADERS") is { Length: > 0 } given)
            return given;
        string cache = Environment.GetEnvironmentVariable("XDG_CACHE_HOME") ?? Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile),
            ".cache");
        string built = Path.Combine(cache, "ring3", "selftests");
        return Directory.Exists(built) ? Directory.GetDirectories(built).Select(d => Path.Combine(d, "include")).Where(d =>
            File.Exists(Path.Combine(d, "linux", "kvm.h"))).Order().LastOrDefault() : null;
    }

    [Fact]
    public void EveryStructureAndConstant_MatchesTheHeaders()
    {
        Assert.SkipUnless(File.Exists("/usr/include/linux/kvm.h") && HasCompiler(),
            "no gcc, or no headers of the kernel (Debian packages gcc and linux-libc-dev)");
        StringBuilder c = new();
        c.AppendLine("#include <linux/kvm.h>\n#include <linux/kvm_para.h>\n#include <asm/kvm_para.h>\n"
            + "#include <errno.h>\n#include <stddef.h>\n#include <stdio.h>");
        c.AppendLine("int main(void) {");
        Dictionary<string, long> expected = [];
        foreach (Type type in typeof(kvm_run).Assembly.GetTypes().Where(t => t.IsValueType && t.Name.StartsWith("kvm_", StringComparison.Ordinal)
            && !t.IsNested))
            AddStruct(c, expected, type);
        foreach (Type type in new[] { typeof(KvmApi), typeof(KvmPara) })
            foreach (FieldInfo f in type.GetFields(BindingFlags.Public | BindingFlags.Static).Where(f => f.IsLiteral))
                AddConstant(c, expected, f);
        c.AppendLine("return 0; }");
        Dictionary<string, long> actual = Run(c.ToString());
        string[] skipped = [.. expected.Keys.Except(actual.Keys)];
        output.WriteLine($"{NewerHeaders() ?? "/usr/include"}: {actual.Count} facts compared, "
            + $"{skipped.Length} unknown to these headers: {string.Join(", ", skipped)}");
        string[] wrong = [.. actual.Where(a => expected[a.Key] != a.Value).Select(a => $"{a.Key}: {expected[a.Key]} here, {a.Value} in the headers")];
        Assert.Empty(wrong);
        Assert.True(actual.Count > 500, $"only {actual.Count} of {expected.Count} facts could be compared");
    }

    private static void AddStruct(StringBuilder c, Dictionary<string, long> expected, Type type)
    {
        if (s_since.TryGetValue(type.Name, out string? since))
            c.AppendLine($"#ifdef {since}");
        Fact(c, expected, $"sizeof {type.Name}", SizeOf(type), $"(long long)sizeof(struct {type.Name})");
        foreach (FieldInfo f in type.GetFields(BindingFlags.Public | BindingFlags.Instance))
        {
            string name = s_fieldNames.GetValueOrDefault($"{type.Name}.{f.Name}", f.Name);
            if (name.Length == 0)
                continue;
            bool young = s_since.TryGetValue($"{type.Name}.{f.Name}", out string? macro);
            if (young)
                c.AppendLine($"#ifdef {macro}");
            Fact(c, expected, $"{type.Name}.{f.Name}", Marshal.OffsetOf(type, f.Name), $"(long long)offsetof(struct {type.Name}, {name})");
            if (f.FieldType is { IsNested: true, IsValueType: true } nested && nested.Name.EndsWith("_t", StringComparison.Ordinal))
                AddNested(c, expected, type, f, name);
            if (young)
                c.AppendLine("#endif");
        }
        if (since is not null)
            c.AppendLine("#endif");
    }

    private static void AddNested(StringBuilder c, Dictionary<string, long> expected, Type type, FieldInfo outer, string outerName)
    {
        foreach (FieldInfo f in outer.FieldType.GetFields(BindingFlags.Public | BindingFlags.Instance))
        {
            string inner = (type.Name, outer.Name) switch
            {
                ("kvm_run", "debug") => "arch." + f.Name,
                ("kvm_xen_hvm_attr", "evtchn") when f.Name is "port" or "vcpu" or "priority" => "deliver.port." + f.Name,
                ("kvm_run", "xen") => f.Name is "type" or "pad" ? "" : f.Name == "pad" ? "" : "u.hcall." + f.Name,
                ("kvm_run", "hypercall") when f.Name is "longmode" or "pad" => "",
                _ => f.Name,
            };
            if (inner.Length == 0)
                continue;
            long offset = Marshal.OffsetOf(type, outer.Name).ToInt64() + Marshal.OffsetOf(outer.FieldType, f.Name).ToInt64();
            Fact(c, expected, $"{type.Name}.{outer.Name}.{f.Name}", offset, $"(long long)offsetof(struct {type.Name}, {outerName}.{inner})");
        }
    }

    private static void AddConstant(StringBuilder c, Dictionary<string, long> expected, FieldInfo f)
    {
        object value = f.GetRawConstantValue()!;
        long number = value is ulong u ? unchecked((long)u) : Convert.ToInt64(value);
        string expression = f.FieldType == typeof(uint) ? $"(long long)(unsigned)({f.Name})" : f.FieldType == typeof(byte)
            ? $"(long long)(unsigned char)({f.Name})" : $"(long long)({f.Name})";
        c.AppendLine($"#ifdef {f.Name}");
        Fact(c, expected, f.Name, number, expression);
        c.AppendLine("#endif");
    }

    private static void Fact(StringBuilder c, Dictionary<string, long> expected, string name, long value, string expression)
    {
        expected[name] = value;
        c.AppendLine($"printf(\"%s\\t%lld\\n\", \"{name}\", {expression});");
    }

    private static long SizeOf(Type type) => (long)(int)typeof(System.Runtime.CompilerServices.Unsafe).GetMethod("SizeOf")!.MakeGenericMethod(type).Invoke(null,
        null)!;

    private static bool HasCompiler() => Directory.Exists("/usr/lib/gcc") && File.Exists("/usr/bin/gcc");

    private static Dictionary<string, long> Run(string source)
    {
        string dir = Directory.CreateTempSubdirectory("ring3-abi").FullName;
        try
        {
            File.WriteAllText($"{dir}/probe.c", source);
            Start("gcc", $"-w {(NewerHeaders() is { } headers ? $"-I{headers}" : "")} -o {dir}/probe {dir}/probe.c");
            return Start($"{dir}/probe", "").Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(l => l.Split('\t')).ToDictionary(p => p[0], p =>
                long.Parse(p[1]));
        }
        finally { Directory.Delete(dir, true); }
    }

    private static string Start(string program, string arguments)
    {
        using Process p = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
        string output = p.StandardOutput.ReadToEnd(), errors = p.StandardError.ReadToEnd();
        p.WaitForExit();
        Assert.True(p.ExitCode == 0, $"{program} failed:\n{errors}");
        return output;
    }
}
