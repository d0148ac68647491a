using System.CommandLine;
using Ring3.Host;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary><c>ring3 exec</c>: becomes the native launcher, which puts libring3.so in front of the program. The wrapper script starts it without this
/// process.</summary>
internal static class ExecCommand
{
    /// <summary>For help and completion. The launcher reads the command line itself: everything after PROGRAM is the program's.</summary>
    public static Command Build()
    {
        var direct = new Option<bool>("--direct") { Description = "hand over each system call of PROGRAM, whatever it is" };
        var cpuid = new Option<bool>("--cpuid") { Description = "show a processor that has virtualisation; needs one whose CPUID can fault" };
        var trace = new Option<string>("--trace") { Description = "print each KVM call, to standard error or FILE", HelpName = "ioctl[:FILE]" };
        var stats = new Option<bool>("--stats") { Description = "print KVM's counters when the program ends" };
        var program = new Argument<string[]>("program") { Description = "the program and its arguments", HelpName = "PROGRAM [ARGS...]",
            Arity = ArgumentArity.OneOrMore };
        var command = new Command("exec", "Run a KVM client, and everything it starts, with Ring3 as its /dev/kvm.") { direct, cpuid, trace, stats, program };
        command.SetAction(r => Run(["--", .. r.GetValue(program)!]));
        return command;
    }

    /// <summary>Does not return when the launcher is there.</summary>
    public static int Run(string[] arguments)
    {
        string? launcher = NativeFiles.Find(NativeFiles.Launcher);
        if (launcher is null)
        {
            Errors.Line(NativeFiles.Missing(NativeFiles.Launcher));
            return ExitStatus.NoInput;
        }
        Errors.Line($"{launcher}: {HostProcess.Replace(launcher, arguments)}");
        return ExitStatus.NoInput;
    }
}
