using System.CommandLine;

namespace Ring3.Cli;

/// <summary><c>ring3 boot</c>.</summary>
internal static class BootCommand
{
    public static Command Build()
    {
        var command = new Command("boot", "Boot a kernel; without options, Debian's cloud kernel of this release and a busybox shell.");
        return command;
    }
}
