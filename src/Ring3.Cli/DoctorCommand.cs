using System.CommandLine;
using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using Ring3.Host;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary><c>ring3 doctor</c>: what this machine offers, and whether Ring3's /dev/kvm works on it.</summary>
internal static class DoctorCommand
{
    private enum Verdict
    {
        Good,
        /// <summary>Not there, and not needed.</summary>
        Fine,
        Bad,
    }

    private readonly record struct Finding(string What, Verdict Verdict, string Text);

    public static Command Build()
    {
        var command = new Command("doctor", "Say what this machine offers and test Ring3's /dev/kvm for a second.");
        command.SetAction(_ => Run());
        return command;
    }

    private static int Run()
    {
        Finding[] findings = [RealKvm(), Processor(), CpuidFaulting(), Memory(), CodeMemory(), Confinement(), CommandLine(), Library(NativeFiles.Interposer),
            Library(NativeFiles.Core), Launcher(), .. (Finding[])(NativeFiles.Installed ? [] : [Compiler()]), Preload(), WarmStarts(), SelfTest()];
        int width = findings.Max(f => f.What.Length);
        foreach (Finding f in findings)
        {
            string mark = f.Verdict switch { Verdict.Good => "ok", Verdict.Fine => "-", _ => "no" };
            Console.Out.WriteLine($"{f.What.PadRight(width)}  {mark,-2}  {f.Text}");
        }
        return findings.Any(f => f.Verdict == Verdict.Bad) ? ExitStatus.Internal : 0;
    }

    private static Finding RealKvm()
    {
        const string name = "real /dev/kvm", path = "/dev/kvm", notNeeded = "; Ring3 does not need it";
        if (!File.Exists(path))
            return new(name, Verdict.Fine, "not there" + notNeeded);
        string mode = Convert.ToString((int)File.GetUnixFileMode(path), 8);
        try
        {
            using FileStream open = new(path, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, 0);
            return new(name, Verdict.Good, $"can be opened (mode {mode}){notNeeded}");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return new(name, Verdict.Fine, $"cannot be opened by this user (mode {mode}){notNeeded}");
        }
    }

    private static Finding Processor()
    {
        string model = Field("/proc/cpuinfo", "model name") ?? "unknown";
        (string Name, bool Has)[] features =
        [
            ("SSE4.2", Sse42.IsSupported), ("POPCNT", Popcnt.IsSupported), ("AES", Aes.IsSupported), ("PCLMULQDQ", Pclmulqdq.IsSupported),
            ("AVX", Avx.IsSupported), ("AVX2", Avx2.IsSupported),
            ("FMA", Fma.IsSupported), ("BMI1", Bmi1.IsSupported), ("BMI2", Bmi2.IsSupported), ("LZCNT", Lzcnt.IsSupported),
        ];
        string has = string.Join(' ', features.Where(f => f.Has).Select(f => f.Name)),
            lacks = string.Join(' ', features.Where(f => !f.Has).Select(f => f.Name));
        string text = $"{model}, {Environment.ProcessorCount} available; used: {has}" + (lacks.Length == 0 ? "" : $"; not there: {lacks}");
        // The guests' vector instructions run on these units, and the native files are compiled for them.
        return new("processor", lacks.Length == 0 ? Verdict.Good : Verdict.Bad, text);
    }

    private static Finding CpuidFaulting()
    {
        const string name = "CPUID faulting";
        string? flags = Field("/proc/cpuinfo", "flags");
        return flags is not null && flags.Split(' ').Contains("cpuid_fault")
            ? new(name, Verdict.Good, "ring3 exec --cpuid can show clients a processor with virtualisation")
            : new(name, Verdict.Fine, "not there: ring3 exec --cpuid, for clients that look for vmx or svm, does not work");
    }

    private static Finding Memory()
    {
        string? available = Field("/proc/meminfo", "MemAvailable");
        if (available is null || !ulong.TryParse(available.Split(' ')[0], out ulong kib))
            return new("memory", Verdict.Fine, "unknown");
        string limited = "";
        if (MemoryLimit.Bytes is { } limit && limit / 1024 < kib)
            (kib, limited) = (limit / 1024, ": the limit of this container");
        // What the guest of ring3 boot has in all, or as much as a limit leaves: a small one starts in it.
        return new("memory", kib >= (limited.Length == 0 ? 512UL : 256UL) * 1024 ? Verdict.Good : Verdict.Bad, $"{kib / 1024} MiB available{limited}");
    }

    private static Finding CodeMemory() => ExecutableMemory.Refusal() is string refusal
        ? new("memory for code", Verdict.Bad, $"{refusal}: seccomp, SELinux or another policy may refuse it")
        : new("memory for code", Verdict.Good, "can be mapped");

    /// <summary>What confines ring3 boot and ring3 run.</summary>
    private static Finding Confinement() => Sandbox.HasLandlock
        ? new("sandbox", Verdict.Good, "system calls (seccomp) and files (Landlock)")
        : new("sandbox", Verdict.Fine, "system calls (seccomp) alone: this kernel has no Landlock, or it is switched off");

    /// <summary>Whether this program is compiled ahead of time; if not, what src/Ring3.Cli/build.sh left as the reason.</summary>
    private static Finding CommandLine()
    {
        const string name = "command line";
        if (!RuntimeFeature.IsDynamicCodeSupported)
            return new(name, Verdict.Good, "compiled ahead of time");
        string? reason = NativeFiles.Find(NativeFiles.Unavailable);
        return new(name, Verdict.Fine, "needs the .NET runtime" + (reason is null ? "" : $"; not compiled ahead of time: {File.ReadAllText(reason).Trim()}"));
    }

    private static Finding Library(string name) => NativeFiles.Find(name) is string path
        ? new(name, Verdict.Good, path)
        : new(name, Verdict.Bad, NativeFiles.Missing(name));

    /// <summary>The launcher and this program are of one build: a mixture is of two installations.</summary>
    private static Finding Launcher()
    {
        const string name = NativeFiles.Launcher;
        if (NativeFiles.Find(name) is not string path)
            return new(name, Verdict.Bad, NativeFiles.Missing(name));
        string? line = FirstLine(path, ["--version"], 5000, out _);
        string expected = $"{name} {ManualCommand.Version}";
        return line == expected ? new(name, Verdict.Good, $"version {ManualCommand.Version}")
            : new(name, Verdict.Bad, $"{path} says '{line}', not '{expected}': install both from one package");
    }

    /// <summary>The system drops LD_PRELOAD, which puts libring3.so in front, where a program has more rights than its caller.</summary>
    private static Finding Preload() =>
        new("sudo", Verdict.Fine, "drops LD_PRELOAD, as every set-uid program does: run 'sudo ring3 exec PROGRAM', not 'ring3 exec sudo PROGRAM'");

    /// <summary>What ring3 boot --exec and ring3 run keep.</summary>
    private static Finding WarmStarts()
    {
        string directory = WarmStart.DirectoryOf(new GuestCache(_ => { }));
        (int count, long bytes) = WarmStart.Kept(directory);
        const string name = "warm start";
        string bounds = $"at most {WarmStart.MaxSnapshots} and {WarmStart.MaxBytes >> 20} MiB";
        return count == 0 ? new(name, Verdict.Fine, $"no snapshots in {directory} ({bounds}); ring3 boot --exec and ring3 run keep one for the next time")
            : new(name, Verdict.Good, $"{count} snapshots, {bytes >> 20} MiB, in {directory} ({bounds})");
    }

    private static Finding Compiler()
    {
        string? line = FirstLine("gcc", ["--version"], 5000, out _);
        return line is not null ? new("C compiler", Verdict.Good, line) : new("C compiler", Verdict.Fine, "no gcc; needed only to build libring3.so");
    }

    private static Finding SelfTest()
    {
        const string name = "self-test";
        if (NativeFiles.Find(NativeFiles.Launcher) is not string launcher || NativeFiles.Find(NativeFiles.SelfTest) is not string test)
            return new(name, Verdict.Bad, NativeFiles.Missing(NativeFiles.SelfTest));
        string? line = FirstLine(launcher, ["--", test], 20000, out int status, ownErrors: true);
        return new(name, status == 0 ? Verdict.Good : Verdict.Bad, line ?? $"no answer (status {status})");
    }

    private static string? Field(string file, string name)
    {
        if (!File.Exists(file))
            return null;
        string? line = File.ReadLines(file).FirstOrDefault(l => l.StartsWith(name, StringComparison.Ordinal));
        return line?[(line.IndexOf(':') + 1)..].Trim();
    }

    /// <summary>First line of a program's output. Null: it does not start, does not end in time, or says nothing.</summary>
    /// <param name="ownErrors">What libring3.so says on standard error goes before that.</param>
    private static string? FirstLine(string program, string[] arguments, int limitMs, out int status, bool ownErrors = false)
    {
        const string own = "ring3: ";
        string? error = null;
        status = -1;
        try
        {
            using var process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
            process.ErrorDataReceived += (_, e) => error ??= e.Data?.StartsWith(own, StringComparison.Ordinal) == true ? e.Data[own.Length..] : null;
            process.BeginErrorReadLine();
            Task<string> output = process.StandardOutput.ReadToEndAsync();
            if (!process.WaitForExit(limitMs))
            {
                process.Kill(entireProcessTree: true);
                return null;
            }
            process.WaitForExit(); // for the rest of its errors
            status = process.ExitCode;
            if (ownErrors && error is not null)
                return error;
            string[] lines = output.Result.Split('\n', StringSplitOptions.RemoveEmptyEntries);
            return lines.Length == 0 ? null : lines[0];
        }
        catch (System.ComponentModel.Win32Exception)
        {
            return null;
        }
    }
}
