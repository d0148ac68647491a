using System.CommandLine;
using System.CommandLine.Parsing;
using System.Text.Json;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary><c>ring3 ctl</c>: asks running machines of this user.</summary>
internal static class CtlCommand
{
    private static readonly Option<bool> s_json = new("--json") { Description = "print what the machines answer: a JSON object a line", Recursive = true };

    public static Command Build()
    {
        var list = new Command("list", "List this user's machines: name, process, state, processors, memory, age.");
        list.SetAction(r => List(r.GetValue(s_json)));
        var file = new Argument<string>("file") { Description = "where it goes", HelpName = "FILE" };
        var disk = new Argument<DiskOption?>("disk")
        {
            Description = "a raw image or block device", HelpName = "FILE[,ro][,direct][,serial=S]",
            CustomParser = r => Parsed(r, DiskOption.Parse, "--disk", "add-disk"),
        };
        var share = new Argument<ShareOption?>("share")
        {
            Description = "a folder of the host", HelpName = "DIR[:TAG][,ro]", CustomParser = r => Parsed(r, ShareOption.Parse, "--share", "add-share"),
        };
        var oldDisk = new Argument<string>("disk") { Description = "its file, or its serial number", HelpName = "FILE|SERIAL" };
        var oldShare = new Argument<string>("share") { Description = "its folder, or its tag", HelpName = "DIR|TAG" };
        return new Command("ctl", "Control running machines of this user, by the name of boot --name or by the number of the process.")
        {
            list,
            Build("pause", "Stop a machine's processors; its clocks go on."),
            Build("resume", "Let a machine's processors go on."),
            Build("stop", "End a machine at once, as SIGTERM does."),
            Build("power-button", "Press a machine's power button: an operating system that heeds it shuts down."),
            Build("stats", "Print a machine's counters, as --stats does at its end."),
            Build("snapshot", "Write a machine to FILE, for ring3 restore; it goes on.", file, (s, r) => ControlFiles.Snapshot(s, r.GetValue(file)!)),
            Build("add-disk", "Give a machine a disk.", disk, (s, r) => ControlFiles.AddDisk(s, r.GetValue(disk)!, Console.Error)),
            Build("remove-disk", "Ask a machine's guest to let a disk go, and close its file.", oldDisk,
                (s, r) => ControlFiles.Remove(s, "remove-disk", r.GetValue(oldDisk)!)),
            Build("add-share", "Give a machine a folder of the host, which its guest mounts by its tag: mount -t virtiofs TAG DIR.", share,
                (s, r) => ControlFiles.AddShare(s, r.GetValue(share)!)),
            Build("remove-share", "Ask a machine's guest to let a folder go.", oldShare,
                (s, r) => ControlFiles.Remove(s, "remove-share", r.GetValue(oldShare)!)),
            s_json,
        };
    }

    private delegate T? OptionParser<T>(string text, out string error) where T : class;

    private static T? Parsed<T>(ArgumentResult r, OptionParser<T> parse, string option, string command) where T : class
    {
        T? value = parse(r.Tokens.Count == 1 ? r.Tokens[0].Value : "", out string error);
        if (value is null)
            r.AddError(error.Replace(option, command, StringComparison.Ordinal));
        return value;
    }

    private static Command Build(string name, string description, Argument? argument = null, Func<string, ParseResult, JsonElement>? ask = null)
    {
        var machine = new Argument<string>("machine") { Description = "its name, or the number of its process", HelpName = "NAME|PID" };
        var command = new Command(name, description) { machine };
        if (argument is not null)
            command.Add(argument);
        command.SetAction(r =>
        {
            string socket = ControlClient.Find(r.GetValue(machine)!);
            JsonElement answer = ask?.Invoke(socket, r) ?? ControlClient.Ask(socket, [name]);
            Print(answer, r.GetValue(s_json));
            return ExitStatus.Ok;
        });
        return command;
    }

    private static void Print(JsonElement answer, bool json)
    {
        if (json)
            Console.Out.WriteLine(answer);
        else if (answer.TryGetProperty("stats", out JsonElement stats))
        {
            foreach (JsonProperty p in stats.EnumerateObject())
                Console.Out.WriteLine($"stat {p.Name,-32} {p.Value}");
        }
        else if (answer.TryGetProperty("serial", out JsonElement name) || answer.TryGetProperty("tag", out name))
            Console.Out.WriteLine(name);
    }

    private static int List(bool json)
    {
        string[] columns = ["name", "pid", "state", "cpus", "memory_bytes", "seconds"];
        foreach (string socket in ControlDirectory.Sockets())
        {
            if (ControlClient.TryAsk(socket, ["status"]) is not { } status)
                continue;
            Console.Out.WriteLine(json ? $"{status}" : string.Join('\t', columns.Select(c => status.TryGetProperty(c, out JsonElement v) ? $"{v}" : "-")));
        }
        return ExitStatus.Ok;
    }
}
