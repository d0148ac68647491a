using System.Globalization;
using System.IO.Compression;
using System.Text;

namespace Ring3.Vmm.Tests.Guest;

public class InitramfsTests
{
    private sealed record Entry(string Name, int Mode, byte[] Content);

    private static List<Entry> Parse(byte[] archive)
    {
        var entries = new List<Entry>();
        int at = 0;
        while (true)
        {
            Assert.Equal("070701", Encoding.ASCII.GetString(archive, at, 6));
            int Field(int n) => int.Parse(Encoding.ASCII.GetString(archive, at + 6 + 8 * n, 8), NumberStyles.HexNumber, CultureInfo.InvariantCulture);
            int nameSize = Field(11), size = Field(6);
            string name = Encoding.UTF8.GetString(archive, at + 110, nameSize - 1);
            int content = at + 110 + nameSize + 3 & ~3;
            if (name == "TRAILER!!!")
            {
                Assert.Equal(archive.Length, content);
                return entries;
            }
            entries.Add(new Entry(name, Field(1), archive[content..(content + size)]));
            at = content + size + 3 & ~3;
        }
    }

    [Fact]
    public void BaseHasBusyboxItsLinksAndDevices()
    {
        byte[] busybox = [1, 2, 3, 4, 5];
        List<Entry> entries = Parse(Initramfs.BuildBase(busybox, ["bin/sh", "bin/busybox", "usr/bin/awk", "", "bin/sh"]));
        Assert.Equal(busybox, entries.Single(e => e.Name == "bin/busybox").Content);
        Assert.Equal(0x81ed, entries.Single(e => e.Name == "bin/busybox").Mode);
        Assert.Equal("/bin/busybox", Encoding.ASCII.GetString(entries.Single(e => e.Name == "bin/sh").Content));
        Assert.Single(entries, e => e.Name == "usr/bin/awk");
        Assert.Equal(0x2180, entries.Single(e => e.Name == "dev/console").Mode);
        Assert.Equal(Initramfs.InitPath, Encoding.ASCII.GetString(entries.Single(e => e.Name == "init").Content));
        // Linux creates files in archive order: every parent must come first.
        var seen = new HashSet<string> { "" };
        foreach (Entry e in entries)
        {
            Assert.Contains(Path.GetDirectoryName(e.Name) ?? "", seen);
            seen.Add(e.Name);
        }
    }

    [Fact]
    public void OverlayCarriesTheCommandVerbatim()
    {
        const string Command = "echo \"$HOME\" 'ä' `date`; exit 3";
        List<Entry> entries = Parse(Initramfs.BuildOverlay(new InitOptions { Exec = Command }, [9]));
        Assert.Equal(Command + "\n", Encoding.UTF8.GetString(entries.Single(e => e.Name == ".ring3/command").Content));
        Assert.Equal([9], entries.Single(e => e.Name == ".ring3/busybox").Content);
        string init = Encoding.UTF8.GetString(entries.Single(e => e.Name == ".ring3/init").Content);
        Assert.StartsWith("#!/.ring3/busybox sh\n", init);
        Assert.Contains("/dev/ttyS3", init);
        Assert.DoesNotContain("\r", init);
        Assert.DoesNotContain("ttyS3", Encoding.UTF8.GetString(Parse(Initramfs.BuildOverlay(new InitOptions(), [])).Single(e =>
            e.Name == ".ring3/init").Content));
    }

    [Fact]
    public void ARootIsHandedOverTo()
    {
        string init = Encoding.UTF8.GetString(Parse(Initramfs.BuildOverlay(new InitOptions { Root = true }, [])).Single(e => e.Name == ".ring3/init").Content);
        Assert.Contains("switch_root", init);
        _ = Sh(init, "-n");
        Assert.DoesNotContain("switch_root", Encoding.UTF8.GetString(Parse(Initramfs.BuildOverlay(new InitOptions(), [])).Single(e =>
            e.Name == ".ring3/init").Content));
    }

    /// <summary>Words of every kind arrive as they are, and sh takes the scripts for scripts.</summary>
    [Theory, InlineData(true), InlineData(false)]
    public void RunStartsTheCommandAsTheUser(bool terminal)
    {
        var run = new RunCommand
        {
            Words = ["printf", "%s|", "it's", "a b", "", "$HOME"], Directory = "/", Environment = ["A=it's", "B="], User = 1, Group = 2, Groups = [3, 4],
            EnvProgram = "/usr/bin/env", SetprivProgram = "/usr/bin/setpriv",
        };
        var options = new InitOptions
        {
            Run = run, Mounts = [new GuestMount("root", "/host", true), new GuestMount("rw0", "/it's", false)],
            Streams = new CommandStreams { HasInput = !terminal, IsTerminal = terminal, ErrorIsTerminal = terminal },
        };
        List<Entry> entries = Parse(Initramfs.BuildOverlay(options, []));
        string command = Encoding.UTF8.GetString(entries.Single(e => e.Name == ".ring3/command").Content);
        Assert.Contains("--reuid 1 --regid 2 --groups 3,4 --", command);
        Assert.Equal("it's|a b||$HOME|", Sh(command.Replace("/usr/bin/setpriv --reuid 1 --regid 2 --groups 3,4 --", "")));
        _ = Sh(Encoding.UTF8.GetString(entries.Single(e => e.Name == ".ring3/init").Content), "-n");
        _ = Sh(InitScript.Build("/busybox", options with { WaitsForScript = true }), "-n");
        _ = Sh(InitScript.Script(options, clone: true), "-n");
        _ = Sh(InitScript.Script(options with { Run = null, Exec = "echo it's" }, clone: false), "-n");
    }

    private static string Sh(string script, params string[] options)
    {
        using var sh = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo("/bin/sh", options)
        {
            RedirectStandardInput = true, RedirectStandardOutput = true,
        })!;
        sh.StandardInput.Write(script);
        sh.StandardInput.Close();
        string output = sh.StandardOutput.ReadToEnd();
        sh.WaitForExit();
        Assert.Equal(0, sh.ExitCode);
        return output;
    }

    [Fact]
    public void GzipRoundTrip()
    {
        byte[] data = Encoding.ASCII.GetBytes(string.Concat(Enumerable.Repeat("ring3 ", 1000)));
        var back = new MemoryStream();
        new GZipStream(new MemoryStream(Initramfs.Gzip(data)), CompressionMode.Decompress).CopyTo(back);
        Assert.Equal(data, back.ToArray());
    }
}
