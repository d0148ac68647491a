using System.CommandLine;
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
        return new Command("ctl", "Control running machines of this user, by the name of boot --name or by the number of the process.")
        {
            list,
            Build("pause", "Stop a machine's processors; its clocks go on."),
            Build("resume", "Let a machine's processors go on."),
            Build("stop", "End a machine at once, as SIGTERM does."),
            Build("power-button", "Press a machine's power button: an operating system that heeds it shuts down."),
            Build("stats", "Print a machine's counters, as --stats does at its end."),
            s_json,
        };
    }

    private static Command Build(string name, string description)
    {
        var machine = new Argument<string>("machine") { Description = "its name, or the number of its process", HelpName = "NAME|PID" };
        var command = new Command(name, description) { machine };
        command.SetAction(r =>
        {
            JsonElement answer = ControlClient.Ask(ControlClient.Find(r.GetValue(machine)!), [name]);
            if (r.GetValue(s_json))
                Console.Out.WriteLine(answer);
            else if (answer.TryGetProperty("stats", out JsonElement stats))
            {
                foreach (JsonProperty p in stats.EnumerateObject())
                    Console.Out.WriteLine($"stat {p.Name,-32} {p.Value}");
            }
            return ExitStatus.Ok;
        });
        return command;
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
