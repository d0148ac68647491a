using System.CommandLine;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary><c>ring3 initramfs</c>: writes the RAM disk that boot would use, for other machines and for a look inside.</summary>
internal static class InitramfsCommand
{
    public static Command Build()
    {
        var output = new Option<string>("--output", "-o") { Description = "file to write", HelpName = "FILE", Required = true };
        var exec = new Option<string?>("--exec")
        {
            Description = "run this command instead of a shell (output on ttyS1, errors on ttyS2, status on ttyS3)", HelpName = "CMD",
        };
        var gzip = new Option<bool>("--gzip") { Description = "compress" };
        var command = new Command("initramfs", "Write the default initramfs to a file.") { output, exec, gzip };
        command.SetAction(r =>
        {
            byte[] image = [.. new GuestCache(Errors.Line).BaseInitramfs(), .. Initramfs.BuildOverlay(new InitOptions { Exec = r.GetValue(exec) }, [])];
            if (r.GetValue(gzip))
                image = Initramfs.Gzip(image);
            string path = r.GetValue(output)!;
            try { File.WriteAllBytes(path, image); }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                throw new BootException(ExitStatus.Resources, $"cannot write {path}: {e.Message}");
            }
            return 0;
        });
        return command;
    }
}
