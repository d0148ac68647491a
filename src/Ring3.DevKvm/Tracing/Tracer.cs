using System.Text;
using Ring3.Host;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

// SAFETY: kvm_run is read through the address that its vCPU gives, inside a call on that vCPU's object.
namespace Ring3.DevKvm;

/// <summary>
/// What the environment asks to see: RING3_TRACE=ioctl[:FILE] prints each KVM call decoded, one line each, like strace; RING3_STATS=1 prints the counters of
/// each VM when it is freed, and of the rest at the end.
/// Without a FILE both go to standard error.
/// </summary>
internal static class Tracer
{
    private const uint DirectionRead = 2, DirectionWrite = 1;
    private static readonly LogFile? s_trace = OpenTrace(Environment.GetEnvironmentVariable("RING3_TRACE"));
    private static readonly LogFile? s_stats = Environment.GetEnvironmentVariable("RING3_STATS") is null or "" or "0" ? null
        : s_trace ?? LogFile.StandardError();

    /// <summary>Whether calls are traced.</summary>
    public static readonly bool IsOn = s_trace is not null;

    private static LogFile? OpenTrace(string? setting)
    {
        if (setting == "ioctl")
            return LogFile.StandardError();
        return setting is not null && setting.StartsWith("ioctl:", StringComparison.Ordinal) ? LogFile.Open(setting[6..]) : null;
    }

    public static void Open(long result, in NewFd fd) =>
        s_trace!.Write($"{Prefix()} open(\"/dev/kvm\") = {(result < 0 ? KvmNames.Result(result) : $"{fd.Fd}")}\n");

    public static void Close(KvmObject o) => s_trace!.Write($"{Prefix()} release({o.Name})\n");

    private static string Prefix() => $"[{LogFile.ThreadId}]";

    /// <summary>Makes a call and prints it.</summary>
    public static long Ioctl(KvmObject o, uint command, ulong argument, out NewFd fd)
    {
        var text = new StringBuilder(256);
        text.Append($"{Prefix()} ioctl({o.Name}, {KvmNames.Ioctl(command)}");
        string? schema = Schemas.Ioctls.GetValueOrDefault(command);
        uint direction = command >> 30;
        if (schema is null)
            Plain(text, command, argument);
        else
        {
            text.Append(", ");
            if ((direction & DirectionWrite) != 0 || direction == 0 || command is KVM_SET_IRQCHIP or KVM_SET_PIT)
                Decoder.Append(text, schema, argument);
            else
                text.Append($"0x{argument:x}");
        }
        long start = HostClock.MonotonicNs();
        long result = KvmDevice.Call(o, command, argument, out fd);
        long ns = HostClock.MonotonicNs() - start;
        if (schema is not null && result >= 0 && (direction & DirectionRead) != 0)
        {
            text.Append(" => ");
            Decoder.Append(text, schema, argument);
        }
        text.Append(fd.Handle != 0 ? $") = {fd.Fd}" : $") = {KvmNames.Result(result)}");
        if (command == KVM_RUN && o is VcpuObject v)
            Exit(text, v.Vcpu);
        text.Append($" <{ns / 1_000_000_000}.{ns % 1_000_000_000 / 1000:d6}>\n");
        s_trace!.Write(text.ToString());
        return result;
    }

    private static void Plain(StringBuilder text, uint command, ulong argument)
    {
        if (command == KVM_CHECK_EXTENSION)
            text.Append($", {KvmNames.Capability(argument)}");
        else if (argument != 0)
            text.Append(argument < 4096 ? $", {argument}" : $", 0x{argument:x}");
    }

    private static unsafe void Exit(StringBuilder text, Vcpu vcpu)
    {
        uint reason = vcpu.KvmRun->exit_reason;
        text.Append($" {KvmNames.Exit(reason)}");
        if (!Schemas.Exits.TryGetValue(reason, out string? schema))
            return;
        text.Append(' ');
        Decoder.Append(text, schema, (ulong)&vcpu.KvmRun->hw);
    }

    /// <summary>A VM is about to be freed.</summary>
    public static void VmFreed(VmObject vm)
    {
        if (s_stats is not null)
            s_stats.Write(Statistics(vm));
    }

    /// <summary>The process ends: the counters of the VMs that it leaves behind.</summary>
    public static void ProcessEnds()
    {
        if (s_stats is null)
            return;
        foreach (VmObject vm in ClientMemory.Vms)
            s_stats.Write(Statistics(vm));
    }

    private static string Statistics(VmObject o)
    {
        var text = new StringBuilder();
        _ = o.Vm.Stats;
        foreach (StatDescriptor<Vm> d in VmStats.All)
            Line(text, o.Name, d.Name, d.Read(o.Vm, 0));
        foreach (Vcpu v in o.Vm.Vcpus)
            foreach ((string name, ulong value) in VcpuStats.All(v))
                Line(text, $"{o.Name}.cpu{v.Id}", name, value);
        return text.ToString();
    }

    private static void Line(StringBuilder text, string o, string name, ulong value)
    {
        if (value != 0)
            text.Append($"ring3-stats: {o,-12} {name,-32} {value}\n");
    }
}
