using System.CommandLine;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary><c>ring3 fetch</c>: fills the cache and prints the paths.</summary>
internal static class FetchCommand
{
    public static Command Build()
    {
        var flavour = new Option<string>("--flavour") { Description = "Debian kernel flavour", HelpName = "NAME", DefaultValueFactory = _ => "cloud-amd64" };
        flavour.CompletionSources.Add("cloud-amd64", "amd64", "rt-amd64", "686-pae", "686");
        var update = new Option<bool>("--update") { Description = "download again, also when cached" };
        var command = new Command("fetch", "Download the default kernel and busybox into the cache and print their paths.") { flavour, update };
        command.SetAction(r =>
        {
            var cache = new GuestCache(Errors.Line);
            string name = r.GetValue(flavour)!;
            Console.Out.WriteLine(cache.Kernel(name, r.GetValue(update)));
            Console.Out.WriteLine(cache.Busybox(GuestCache.IsI386(name), r.GetValue(update)));
            return 0;
        });
        return command;
    }
}
