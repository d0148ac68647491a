using System.Diagnostics;
using System.Globalization;

namespace Ring3.Bench;

/// <summary>The self-written benchmark kernels (benchmarks/guests): builds them, and runs them as a process and under QEMU TCG.</summary>
internal static class Guests
{
    internal static readonly string[] Names = ["int", "branch", "chase", "string", "fp", "sys"];

    /// <summary>Root of the repository: the folder with Ring3.slnx above the program.</summary>
    internal static string Root { get; } = FindRoot();
    private static string Folder => Path.Combine(Root, "artifacts", "bench-guests");

    internal static string Image(string name) => Path.Combine(Folder, name + ".img");

    /// <summary>Builds images and processes with gcc and ld.</summary>
    internal static void Build(string[] names) => Shell(Path.Combine(Root, "benchmarks", "guests", "build.sh"), [Folder, .. names], 0);

    /// <summary>Processor seconds that the kernel takes as a process.</summary>
    internal static double Native(string name, long iterations) =>
        long.Parse(Shell(Path.Combine(Folder, name + ".native"), [iterations.ToString(CultureInfo.InvariantCulture)], 0).Output,
            CultureInfo.InvariantCulture) / 1e9;

    internal static bool HasQemu { get; } = (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Any(p =>
        File.Exists(Path.Combine(p, "qemu-system-x86_64")));

    /// <summary>Processor seconds (user and system, all threads) of one QEMU TCG run, start-up included.</summary>
    internal static double Tcg(string name, long iterations)
    {
        // The shell measures the finished child; 33 is debug-exit's status for "done".
        const string script = "TIMEFORMAT='%3U %3S'; time \"$@\" </dev/null >/dev/null";
        string[] command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel",
            Image(name), "-append", iterations.ToString(CultureInfo.InvariantCulture)];
        string[] times = Shell("bash", ["-c", script, "bash", .. command], 33).Errors.Trim().Split('\n')[^1].Split(' ');
        return times.Sum(t => double.Parse(t, CultureInfo.InvariantCulture));
    }

    private static (string Output, string Errors) Shell(string program, string[] arguments, int expected)
    {
        var info = new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true };
        info.Environment["LC_ALL"] = "C";
        using Process p = Process.Start(info) ?? throw new InvalidOperationException($"cannot start {program}");
        Task<string> errors = p.StandardError.ReadToEndAsync();
        string output = p.StandardOutput.ReadToEnd();
        p.WaitForExit();
        return p.ExitCode == expected ? (output, errors.Result)
            : throw new InvalidOperationException($"{program} {string.Join(' ', arguments)}: status {p.ExitCode}\n{errors.Result}");
    }

    private static string FindRoot()
    {
        for (string? at = AppContext.BaseDirectory; at is not null; at = Path.GetDirectoryName(at))
        {
            if (File.Exists(Path.Combine(at, "Ring3.slnx")))
                return at;
        }
        throw new InvalidOperationException("Ring3.slnx not found above the program");
    }
}
