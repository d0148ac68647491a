using System.CommandLine;
using System.CommandLine.Parsing;
using Ring3.Cli;
using Ring3.Host;
using Ring3.Vmm;

// The composition root: one command tree, one place where errors become a line and an exit status.
if (args is ["exec", .. string[] rest])
    return ExecCommand.Run(rest);
if (ConnectorCommand.TryRun(args, out int helped))
    return helped;
if (args is ["boot" or "run" or "restore", ..])
    Machine.PrepareFirst();
StandardStream.Install();
RootCommand root = CommandTree.Build();
ParseResult parsed = root.Parse(args);
if (parsed.Errors.Count > 0 && parsed.Action is System.CommandLine.Invocation.ParseErrorAction)
{
    string words = "";
    for (SymbolResult? r = parsed.CommandResult; r is CommandResult { Command: not RootCommand } c; r = r.Parent)
        words = $"{c.Command.Name} {words}";
    Errors.Line($"{parsed.Errors[0].Message} (see 'ring3 {words}--help')");
    return ExitStatus.Usage;
}

try
{
    return parsed.Invoke(new InvocationConfiguration { EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null });
}
catch (BootException e)
{
    Errors.Line(e.Message);
    return e.Status;
}
catch (TypeInitializationException) when (ExecutableMemory.Refusal() is string refusal)
{
    Errors.Line($"cannot have memory for code ({refusal}), which seccomp, SELinux or another policy may refuse");
    return ExitStatus.Resources;
}
catch (PlatformNotSupportedException e)
{
    Errors.Line(e.Message);
    return ExitStatus.Resources;
}
catch (OutOfMemoryException) when (Environment.GetEnvironmentVariable("RING3_DEBUG") is null)
{
    Errors.Line("not enough memory");
    return ExitStatus.Resources;
}
catch (Exception e) when (Environment.GetEnvironmentVariable("RING3_DEBUG") is null)
{
    Errors.Line($"internal error: {e.GetType().Name}: {e.Message.ReplaceLineEndings(" ")} (RING3_DEBUG=1 shows where)");
    return ExitStatus.Internal;
}
