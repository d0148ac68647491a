namespace Ring3.Vmm;

/// <summary>A command of <c>ring3 run</c>: what it finds when it starts, as it would have found it here.</summary>
public sealed record RunCommand
{
    public required IReadOnlyList<string> Words { get; init; }
    /// <summary>Current directory, absolute.</summary>
    public required string Directory { get; init; }
    /// <summary>NAME=VALUE each.</summary>
    public required IReadOnlyList<string> Environment { get; init; }
    public required uint User { get; init; }
    public required uint Group { get; init; }
    public IReadOnlyList<uint> Groups { get; init; } = [];
    /// <summary>Programs of the host that start it.</summary>
    public required string EnvProgram { get; init; }
    public required string SetprivProgram { get; init; }

    /// <summary>A script that becomes the command.</summary>
    public string Script()
    {
        string groups = Groups.Count == 0 ? "--clear-groups" : $"--groups {string.Join(',', Groups)}";
        string environment = string.Join(' ', Environment.Select(Shell.Quote)), words = string.Join(' ', Words.Select(Shell.Quote));
        return $"""
            cd {Shell.Quote(Directory)} || exit 126
            exec {EnvProgram} -i {environment} {SetprivProgram} --reuid {User} --regid {Group} {groups} -- {words}

            """;
    }
}

/// <summary>The standard streams of a command in the guest, as ports of a virtio console.</summary>
public sealed record CommandStreams
{
    /// <summary>Ports: a terminal, the three streams, signals and window sizes, exit status, and what init does next.</summary>
    public const int Terminal = 0, Input = 1, Output = 2, Error = 3, Control = 4, Status = 5, Script = 6, Ports = 7;

    /// <summary>The command gets the host's standard input; else an empty one.</summary>
    public bool HasInput { get; init; }
    /// <summary>Its input and output are the terminal.</summary>
    public bool IsTerminal { get; init; }
    /// <summary>Its errors go to the terminal, too.</summary>
    public bool ErrorIsTerminal { get; init; }
}

/// <summary>Words for a shell.</summary>
internal static class Shell
{
    public static string Quote(string s) => "'" + s.Replace("'", "'\\''", StringComparison.Ordinal) + "'";
}
