using Ring3.Vmm.Tests.Firmware;
using System.Diagnostics;

namespace Ring3.Vmm.Tests.Cli;

/// <summary>The built program: every bad input is one line that starts with "ring3:" and the documented status.</summary>
public class CommandLineTests : IDisposable
{
    private readonly string _directory = Directory.CreateTempSubdirectory("ring3-cli").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    private (int Status, string Output, string Error) Run(params string[] arguments)
    {
        string program = Path.Combine(AppContext.BaseDirectory, "ring3.dll");
        var start = new ProcessStartInfo(Tools.Find("dotnet")!, [program, .. arguments]) { RedirectStandardOutput = true, RedirectStandardError = true,
            RedirectStandardInput = true };
        start.Environment["XDG_CACHE_HOME"] = Path.Combine(_directory, "cache");
        start.Environment["PATH"] = _directory; // no apt-get: nothing is downloaded
        using Process p = Process.Start(start)!;
        p.StandardInput.Close();
        Task<string> error = p.StandardError.ReadToEndAsync();
        string output = p.StandardOutput.ReadToEnd();
        Assert.True(p.WaitForExit(60_000));
        return (p.ExitCode, output, error.Result);
    }

    private string FileOf(string name, byte[] content)
    {
        string path = Path.Combine(_directory, name);
        File.WriteAllBytes(path, content);
        return path;
    }

    private void Refused(int status, string part, params string[] arguments)
    {
        (int Status, string Output, string Error) r = Run(arguments);
        Assert.Equal((status, ""), (r.Status, r.Output));
        Assert.StartsWith("ring3: ", r.Error);
        Assert.Single(r.Error.TrimEnd('\n').Split('\n'));
        Assert.Contains(part, r.Error);
    }

    [Fact]
    public void BadOptions()
    {
        Refused(64, "--bogus", "boot", "--bogus");
        Refused(64, "frobnicate", "frobnicate");
        Refused(64, "--cpus", "boot", "--cpus", "many");
        Refused(64, "--cpus", "boot", "--cpus", "0");
        Refused(64, "--memory", "boot", "--memory", "12Q");
        Refused(64, "--memory", "boot", "--memory", "99999999999G");
        Refused(64, "--trace", "boot", "--trace", "everything");
        Refused(64, "--protocol", "boot", "--protocol", "1");
        Refused(64, "--seed", "boot", "--seed", "-1");
        Refused(64, "--zap", "boot", "--zap", "later");
        Refused(64, "--cpu knows host, intel and amd", "boot", "--cpu", "cyrix");
        Refused(64, "--zap-share", "boot", "--zap-share", "101");
    }

    /// <summary>Output that cannot be written is an error of its own; messages that cannot be written change no status.</summary>
    [Theory]
    [InlineData("--help")]
    [InlineData("boot --help")]
    [InlineData("doctor")]
    [InlineData("completion bash")]
    public void FullDevice(string command)
    {
        string ring3 = $"exec '{Tools.Find("dotnet")}' '{Path.Combine(AppContext.BaseDirectory, "ring3.dll")}'";
        using Process p = Process.Start(new ProcessStartInfo(Tools.Find("sh")!, ["-c", $"{ring3} {command} >/dev/full"]) { RedirectStandardError = true })!;
        string error = p.StandardError.ReadToEnd();
        Assert.True(p.WaitForExit(60_000));
        Assert.Equal((74, "ring3: cannot write standard output: No space left on device\n"), (p.ExitCode, error));
        using Process q = Process.Start(Tools.Find("sh")!, ["-c", $"{ring3} boot --bogus 2>/dev/full"]);
        Assert.True(q.WaitForExit(60_000));
        Assert.Equal(64, q.ExitCode);
    }

    [Fact]
    public void BadFiles()
    {
        Refused(66, "no such file", "boot", "--kernel", Path.Combine(_directory, "absent"));
        Refused(66, "nothing was built there", "boot", "--kernel", _directory);
        Refused(65, "empty", "boot", "--kernel", FileOf("empty", []));
        Refused(65, "not a kernel", "boot", "--kernel", FileOf("noise", new byte[5000]));
        string bz = FileOf("bz", Boot.LoaderTests.BzImage());
        Refused(71, "too little memory", "boot", "--kernel", bz, "--initrd", bz, "--memory", "8M");
        Refused(66, "no such file", "boot", "--kernel", bz, "--initrd", Path.Combine(_directory, "absent"));
        Refused(66, "cannot open --serial", "boot", "--kernel", bz, "--initrd", bz, "--serial", Path.Combine(_directory, "no", "such", "place"));
        Refused(66, "pass --kernel FILE", "boot");
    }

    [Fact]
    public void HelpVersionAndCompletion()
    {
        (int status, string help, _) = Run("--help");
        Assert.Equal(0, status);
        Assert.Contains("ring3 boot --exec 'uname -a'", help);
        Assert.Contains("Ctrl-]", Run("boot", "--help").Output);
        Assert.Matches(@"^\d+\.\d+\.\d+", Run("--version").Output);
        Assert.Contains("complete", Run("completion", "bash").Output);
        Assert.Contains("--kernel", Run("[suggest:13]", "ring3 boot --k").Output);
        Refused(64, "tcsh", "completion", "tcsh");
    }

    /// <summary>A boot sector that writes 3 to the debug-exit port after printing through the BIOS and the serial port.</summary>
    [Fact]
    public void BootSectorRuns()
    {
        var sector = new byte[512];
        // mov al,'H'; mov ah,0x0e; int 0x10; mov dx,0x3f8; mov al,'i'; out dx,al; mov al,3; out 0xf4,al; hlt
        byte[] code = [0xb0, (byte)'H', 0xb4, 0x0e, 0xcd, 0x10, 0xba, 0xf8, 0x03, 0xb0, (byte)'i', 0xee, 0xb0, 0x03, 0xe6, 0xf4, 0xf4];
        code.CopyTo(sector, 0);
        (sector[510], sector[511]) = (0x55, 0xaa);
        (int status, string output, _) = Run("boot", "--kernel", FileOf("sector", sector), "--cpus", "1", "--memory", "4M");
        Assert.Equal((7, "Hi"), (status, output));
    }

    [Fact]
    public void TripleFaultAndResetEndTheMachine()
    {
        byte[] Sector(params byte[] code)
        {
            var s = new byte[512];
            code.CopyTo(s, 0);
            (s[510], s[511]) = (0x55, 0xaa);
            return s;
        }
        // lidt of an empty table, then int3
        (int status, _, string error) = Run("boot", "--kernel", FileOf("fault", Sector(0x31, 0xc0, 0xa3, 0x00, 0x06, 0x0f, 0x01, 0x1e, 0x00, 0x06, 0xcc)),
            "--cpus", "1", "--memory", "4M");
        Assert.Equal(121, status);
        Assert.Contains("triple-faulted", error);
        // out 0x64, 0xfe
        Assert.Equal(120, Run("boot", "--kernel", FileOf("reset", Sector(0xb0, 0xfe, 0xe6, 0x64, 0xf4)), "--cpus", "1", "--memory", "4M").Status);
    }
}
