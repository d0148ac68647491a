using System.CommandLine;
using System.CommandLine.Help;

namespace Ring3.Cli;

/// <summary>Every command of <c>ring3</c>.</summary>
internal static class CommandTree
{
    /// <summary>Below the help of <c>ring3</c> and <c>ring3 boot</c>, and in their manual pages: lines that begin with two spaces.</summary>
    internal const string Examples = """

        Examples:
          ring3 boot                                   Debian's cloud kernel, an interactive shell; Ctrl-] quits
          ring3 boot --exec 'uname -a'                 run one command, exit with its status
          ring3 boot --cpus 8 --memory 1G --stats      more of everything, and KVM's counters at the end
          ring3 boot --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'
          ring3 run -- make check                      a command in a guest with this machine's root, directory and user
          ring3 boot --snapshot web.snap               Ctrl-^ writes the running guest to web.snap
          ring3 restore web.snap                       a clone of it, at once
          ring3 exec -- qemu-system-x86_64 -accel kvm   an unmodified KVM client on Ring3
          ring3 boot --name vm1                        a machine with a name; ring3 ctl pause vm1, ring3 ctl list
          source <(ring3 completion bash)              completion for this shell

        Exit statuses are listed in ring3(1) and docs/cli.md.
        """;

    public static RootCommand Build()
    {
        var root = new RootCommand("Linux KVM in user space: boots kernels and runs KVM clients on a software x86-64 machine, without /dev/kvm.")
        {
            BootCommand.Build(),
            RunCommandLine.Build(),
            RestoreCommand.Build(),
            ExecCommand.Build(),
            CtlCommand.Build(),
            DoctorCommand.Build(),
            FetchCommand.Build(),
            InitramfsCommand.Build(),
        };
        root.Add(CompletionCommand.Build(root));
        root.Add(ManualCommand.Build(root));
        foreach (Option option in root.Options)
        {
            if (option is HelpOption help)
                help.Action = new HelpWithExamples((HelpAction)help.Action!, Examples);
        }
        root.SetAction(_ => root.Parse("--help").Invoke());
        return root;
    }

    /// <summary>The library's help, followed by examples on the root and on boot.</summary>
    private sealed class HelpWithExamples(HelpAction inner, string examples) : System.CommandLine.Invocation.SynchronousCommandLineAction
    {
        public override bool ClearsParseErrors => true;

        public override int Invoke(ParseResult parseResult)
        {
            int status = inner.Invoke(parseResult);
            if (parseResult.CommandResult.Command is RootCommand or { Name: "boot" or "run" })
                parseResult.InvocationConfiguration.Output.WriteLine(examples);
            return status;
        }
    }
}
