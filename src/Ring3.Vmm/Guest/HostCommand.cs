using System.ComponentModel;
using System.Diagnostics;

namespace Ring3.Vmm;

/// <summary>Runs a program of the host and collects its output. Used for apt and dpkg only.</summary>
internal static class HostCommand
{
    /// <summary>Outcome of a program: exit status, standard output (text), and the last line of standard error that says what went wrong.</summary>
    public readonly record struct Result(int Status, string Output, string Error)
    {
        public bool Ok => Status == 0;
    }

    /// <summary>Status of a program that is not there.</summary>
    public const int NotInstalled = 127;

    /// <summary>Runs to completion. A program that is not there has status <see cref="NotInstalled"/>.</summary>
    public static Result Run(string program, IEnumerable<string> arguments, string? directory = null)
    {
        string output = "";
        Result r = Stream(program, arguments, directory, s => output = new StreamReader(s).ReadToEnd());
        return r with { Output = output };
    }

    /// <summary>Runs a program and hands its standard output to <paramref name="consume"/>.</summary>
    public static Result Stream(string program, IEnumerable<string> arguments, string? directory, Action<Stream> consume)
    {
        var start = new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true, RedirectStandardInput = true,
            WorkingDirectory = directory ?? "" };
        start.Environment["LC_ALL"] = "C";
        start.Environment["DEBIAN_FRONTEND"] = "noninteractive";
        Process process;
        try
        {
            process = Process.Start(start)!;
        }
        catch (Win32Exception)
        {
            return new Result(NotInstalled, "", $"{program} is not installed");
        }
        using (process)
        {
            process.StandardInput.Close();
            string error = "";
            process.ErrorDataReceived += (_, e) =>
            {
                if (e.Data is { Length: > 0 } line && (error.Length == 0 || !error.StartsWith("E:", StringComparison.Ordinal)))
                    error = line;
            };
            process.BeginErrorReadLine();
            consume(process.StandardOutput.BaseStream);
            process.WaitForExit();
            return new Result(process.ExitCode, "", error.StartsWith("E: ", StringComparison.Ordinal) ? error[3..] : error);
        }
    }
}
