using System.Diagnostics;
using System.Security.Cryptography;

namespace Ring3.Differential;

/// <summary>The native side: tests/native/oracle.c, which runs single instructions on the host's processor.</summary>
/// <remarks>SAFETY: the header is part of the shared mapping, which lives as long as this object.</remarks>
internal sealed unsafe class NativeOracle : CaseProcess
{
    internal NativeOracle() : base(NativeProgram.Build("oracle", "-no-pie", "-static"))
    {
        Probes = HostProbes.Of(this);
        SetQuirks(Probes.Quirks);
    }

    /// <summary>What this host does otherwise than a bare processor.</summary>
    internal HostProbes Probes { get; }

    private protected override string Needs => "an x86-64 host with FSGSBASE and AVX";

    /// <summary>Tells the child what to allow for; it stays in the shared header when the child is started again.</summary>
    internal void SetQuirks(ulong quirks) => ((SharedHeader*)Base)->Quirks = quirks;

    internal override ulong ExitAddress => ((SharedHeader*)Base)->ExitAddress;
}

/// <summary>Builds the C helpers of tests/native with gcc, once for each version of the source.</summary>
internal static class NativeProgram
{
    private static readonly Lock s_building = new();

    /// <summary>Root of the repository: the folder with Ring3.slnx above the program.</summary>
    internal static string RepositoryRoot { get; } = FindRoot();

    internal static string Build(string name, params string[] options)
    {
        string source = Path.Combine(RepositoryRoot, "tests", "native", name + ".c");
        byte[] text = [.. File.ReadAllBytes(source), .. File.ReadAllBytes(Path.Combine(RepositoryRoot, "tests", "native", "oracle.h"))];
        string hash = Convert.ToHexString(SHA256.HashData(text))[..12].ToLowerInvariant();
        string folder = Path.Combine(RepositoryRoot, "artifacts", "native"), program = Path.Combine(folder, $"{name}-{hash}");
        lock (s_building)
        {
            if (File.Exists(program))
                return program;
            Directory.CreateDirectory(folder);
            string temporary = $"{program}.{Environment.ProcessId}";
            string[] arguments = ["-O2", "-Wall", "-Wextra", "-mfsgsbase", "-fno-stack-protector", "-fcf-protection=none", .. options, "-o", temporary, source];
            using Process gcc = Process.Start("gcc", arguments);
            gcc.WaitForExit();
            if (gcc.ExitCode != 0)
                throw new InvalidOperationException($"gcc failed on {source}");
            File.Move(temporary, program, overwrite: true);
            return program;
        }
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
