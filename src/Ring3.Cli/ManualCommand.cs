using System.CommandLine;
using System.Reflection;
using System.Text;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>The hidden <c>ring3 manual [COMMAND]</c>: a manual page for man(1), made from the commands that <c>--help</c> describes.</summary>
internal static class ManualCommand
{
    private static readonly (string Status, string When)[] s_statuses =
    [
        ("0", "all went well; the guest powered off, or Ctrl-] was pressed"), ("N", "boot --exec, exec: the status of the command or program"),
        ($"{ExitStatus.Usage}", "bad option or argument"), ($"{ExitStatus.BadImage}", "a kernel or other image is not valid"),
        ($"{ExitStatus.NoInput}", "a file cannot be read; a package, or the network, is not available"),
        ($"{ExitStatus.Internal}", "an error in ring3 itself; doctor: something that is needed is missing"),
        ($"{ExitStatus.Resources}", "not enough memory or disk space; a processor without AVX2, BMI2 and FMA"),
        ($"{ExitStatus.NoOutput}", "the output cannot be written"), ($"{ExitStatus.GuestReset}", "the guest reset the machine, or its kernel panicked"),
        ($"{ExitStatus.GuestTripleFault}", "the guest triple-faulted"), ($"{ExitStatus.MachineFailure}", "the hypervisor reported an error"),
        ($"{ExitStatus.ExecLost}", "boot --exec: the guest ended before the command did"),
        ("126, 127", "exec: the program cannot be used; there is no such program"),
    ];

    public static Command Build(RootCommand root)
    {
        var of = new Argument<string?>("command") { Description = "whose page; none: that of ring3", Arity = ArgumentArity.ZeroOrOne };
        of.AcceptOnlyFromAmong([.. Shown(root).Select(c => c.Name)]);
        var date = new Option<string>("--date") { Description = "the page's date", HelpName = "YYYY-MM-DD", DefaultValueFactory = _ => "" };
        var command = new Command("manual", "Print a manual page.") { of, date };
        command.Hidden = true;
        command.SetAction(r =>
        {
            string? name = r.GetValue(of);
            Console.Out.Write(Page(root, name is null ? root : root.Subcommands.Single(c => c.Name == name), r.GetValue(date)!));
            return ExitStatus.Ok;
        });
        return command;
    }

    /// <summary>What <c>ring3 --version</c> prints.</summary>
    public static string Version { get; } =
        typeof(ManualCommand).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()!.InformationalVersion;

    private static IEnumerable<Command> Shown(Command command) => command.Subcommands.Where(c => !c.Hidden);

    private static string Page(RootCommand root, Command command, string date)
    {
        bool isRoot = command is RootCommand;
        string name = isRoot ? "ring3" : $"ring3-{command.Name}";
        var page = new StringBuilder();
        page.Append($".TH {name.ToUpperInvariant()} 1 \"{date}\" \"Ring3 {Version}\" \"Ring3\"\n");
        // The name line is what apropos lists: one sentence, without the full stop.
        string first = command.Description!.Split(". ")[0].Split("; ")[0].TrimEnd('.');
        page.Append($".SH NAME\n{Text(name)} \\- {Text(first)}\n.SH SYNOPSIS\n");
        page.Append(isRoot ? "\\fBring3\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR]\n" : $"\\fBring3 {Text(command.Name)}\\fR [\\fIOPTIONS\\fR]");
        foreach (Argument argument in command.Arguments)
            page.Append($" \\fI{Text(argument.HelpName ?? argument.Name.ToUpperInvariant())}\\fR");
        page.Append(isRoot ? "" : "\n").Append($".SH DESCRIPTION\n{Text(command.Description)}\n");
        foreach (Argument argument in command.Arguments)
            Entry(page, $"\\fI{Text(argument.HelpName ?? argument.Name.ToUpperInvariant())}\\fR", argument.Description);
        if (Shown(command).Any())
        {
            page.Append(".SH COMMANDS\n");
            foreach (Command one in Shown(command))
                Entry(page, $"\\fB{Text(string.Join(' ', [one.Name, .. one.Arguments.Select(a => a.HelpName).Where(_ => !isRoot)]))}\\fR", one.Description);
        }
        page.Append(".SH OPTIONS\n");
        foreach (Option option in command.Options.Concat(isRoot ? [] : root.Options.Where(o => o.Recursive)).Where(o => !o.Hidden))
        {
            string names = string.Join(", ", option.Aliases.Where(a => a.StartsWith('-')).Prepend(option.Name).Select(a => $"\\fB{Text(a)}\\fR"));
            Entry(page, option.HelpName is null ? names : $"{names} \\fI{Text(option.HelpName)}\\fR", option.Description);
        }
        if (isRoot || command.Name == "boot")
        {
            page.Append(".SH EXAMPLES\n.nf\n");
            foreach (string line in CommandTree.Examples.Split('\n').Where(l => l.StartsWith("  ", StringComparison.Ordinal)))
                page.Append(Text(line)).Append('\n');
            page.Append(".fi\n");
        }
        page.Append(".SH EXIT STATUS\n");
        foreach ((string status, string when) in s_statuses)
            Entry(page, $"\\fB{status}\\fR", when);
        page.Append(".SH ENVIRONMENT\n");
        Entry(page, "\\fBXDG_CACHE_HOME\\fR", "where Debian's kernel and busybox are kept, in ring3; ~/.cache if it is not set");
        IEnumerable<string> others = Shown(root).Select(c => $"ring3-{c.Name}").Prepend("ring3").Where(n => n != name);
        page.Append(".SH SEE ALSO\n").Append(string.Join(",\n", others.Select(n => $"\\fB{Text(n)}\\fR(1)"))).Append('\n');
        return page.ToString();
    }

    private static void Entry(StringBuilder page, string term, string? description) => page.Append($".TP\n{term}\n{Text(description ?? "")}\n");

    /// <summary>Plain text as roff: nothing in it is an escape, a request or a hyphen that a reader cannot copy.</summary>
    private static string Text(string text)
    {
        string escaped = text.Replace("\\", "\\e", StringComparison.Ordinal).Replace("-", "\\-", StringComparison.Ordinal);
        return escaped.StartsWith('.') || escaped.StartsWith('\'') ? "\\&" + escaped : escaped;
    }
}
