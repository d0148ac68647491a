using System.CommandLine;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary><c>ring3 restore</c>: a clone of a guest that was written to a file.</summary>
internal static class RestoreCommand
{
    private static readonly Argument<string> s_file = new("file") { Description = "what ring3 boot --snapshot has written", HelpName = "FILE" };
    private static readonly Option<bool> s_verify = new("--verify") { Description = "read all the guest's memory first and compare its checksums" };

    public static Command Build()
    {
        var command = new Command("restore", "Go on with a guest where it was when it was written to a file; each time a clone of it. Ctrl-] quits.")
        {
            BootCommand.s_exec, s_verify, BootCommand.s_net, BootCommand.s_vsock, BootCommand.s_stats, BootCommand.s_name, BootCommand.s_noSandbox, s_file,
        };
        command.SetAction(r =>
        {
            string path = r.GetValue(s_file)!;
            using SnapshotFile file = SnapshotFile.Open(path);
            string? exec = r.GetValue(BootCommand.s_exec);
            if (exec is not null && !file.TakesCommand)
                throw new BootException(ExitStatus.Usage, $"{path}: nobody waits for a command in it (ring3 boot --snapshot FILE --snapshot-at ready)");
            if (r.GetValue(s_verify))
                file.Verify();
            var options = new BootOptions
            {
                Exec = exec, Streams = BootCommand.Streams(exec), Stats = r.GetValue(BootCommand.s_stats), Name = r.GetValue(BootCommand.s_name),
                Sandbox = !r.GetValue(BootCommand.s_noSandbox), Messages = Console.Error,
                Net = r.GetValue(BootCommand.s_net), Vsock = r.GetValue(BootCommand.s_vsock),
                VsockConnector = r.GetValue(BootCommand.s_noSandbox) ? null : ConnectorCommand.Words,
            };
            return BootSession.Run(file.Apply(options), file, null);
        });
        return command;
    }
}
