using System.Globalization;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>What <c>ring3 boot --vsock</c> starts beside itself: <see cref="VsockConnector"/>. No command for users.</summary>
internal static class ConnectorCommand
{
    public const string Name = "vsock-connector";

    /// <summary>The words that start it: this program, which may be a host of the .NET runtime with the program's name behind it.</summary>
    public static IReadOnlyList<string> Words { get; } =
        Path.GetFileNameWithoutExtension(Environment.ProcessPath) == "dotnet" ? [Environment.ProcessPath!, Environment.GetCommandLineArgs()[0], Name]
        : [Environment.ProcessPath!, Name];

    public static int Run(string descriptor, string path)
    {
        VsockConnector.Serve(int.Parse(descriptor, NumberStyles.None, CultureInfo.InvariantCulture), path);
        return ExitStatus.Ok;
    }
}
