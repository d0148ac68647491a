using System.Globalization;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>What a confined <c>ring3 boot</c> starts beside itself for what it cannot do any more. No commands for users.</summary>
internal static class ConnectorCommand
{
    /// <summary>The words that start this program, which may be a host of the .NET runtime with the program's name behind it.</summary>
    private static readonly string[] s_program =
        Path.GetFileNameWithoutExtension(Environment.ProcessPath) == "dotnet" ? [Environment.ProcessPath!, Environment.GetCommandLineArgs()[0]]
        : [Environment.ProcessPath!];

    /// <summary>Starts a <see cref="VsockConnector"/>.</summary>
    public static IReadOnlyList<string> Words { get; } = [.. s_program, "vsock-connector"];

    /// <summary>Starts a <see cref="SnapshotKeeper"/>.</summary>
    public static IReadOnlyList<string> KeeperWords { get; } = [.. s_program, "snapshot-keeper"];

    /// <summary>Whether the program was started for this, and its exit status.</summary>
    public static bool TryRun(string[] arguments, out int status)
    {
        status = ExitStatus.Ok;
        if (arguments is not [string name, string descriptor, string path]
            || !int.TryParse(descriptor, NumberStyles.None, CultureInfo.InvariantCulture, out int fd))
            return false;
        if (name == Words[^1])
            VsockConnector.Serve(fd, path);
        else if (name == KeeperWords[^1])
            SnapshotKeeper.Serve(fd, path);
        else
            return false;
        return true;
    }
}
