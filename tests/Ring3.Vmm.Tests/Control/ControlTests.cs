using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using Ring3.Host;

namespace Ring3.Vmm.Tests.Control;

/// <summary>Both ends of ring3 ctl, over a socket.</summary>
public sealed class ControlTests : IDisposable
{
    private readonly string _directory = Directory.CreateTempSubdirectory("ring3-control").FullName;
    private readonly string _path;
    private readonly ControlServer _server;
    private readonly ManualResetEventSlim _waiting = new(false), _goOn = new(false);

    public ControlTests()
    {
        _path = Path.Combine(_directory, "machine");
        _server = new ControlServer(SocketFile.Listen(_path, UnixFileMode.UserRead | UnixFileMode.UserWrite, out _)!, new Dictionary<string, ControlCommand>
        {
            ["say"] = new((request, answer) => answer.WriteString("said", string.Join('|', request.Arguments))),
            ["refuse"] = new((_, _) => throw new ControlException("not today")),
            ["talk"] = new((_, answer) => answer.WriteString("said", new string('x', 1 << 20))),
            ["write"] = new((request, _) =>
            {
                using SafeFileHandle file = request.TakeFile();
                RandomAccess.Write(file, Encoding.UTF8.GetBytes(request.Argument(0)), 0);
            }),
            ["wait"] = new((_, _) =>
            {
                _waiting.Set();
                _goOn.Wait();
            }, TakesTime: true),
        });
    }

    public void Dispose()
    {
        _server.Dispose();
        Directory.Delete(_directory, recursive: true);
    }

    private Socket Connect()
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { ReceiveTimeout = 60_000 };
        socket.Connect(new UnixDomainSocketEndPoint(_path));
        return socket;
    }

    private static string ReadAll(Socket socket)
    {
        var all = new MemoryStream();
        byte[] buffer = new byte[4096];
        try
        {
            for (int n; (n = socket.Receive(buffer)) > 0;)
                all.Write(buffer, 0, n);
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.ConnectionReset) { }
        return Encoding.UTF8.GetString(all.ToArray());
    }

    private string Ask(string request)
    {
        using Socket socket = Connect();
        socket.Send(Encoding.UTF8.GetBytes(request));
        return ReadAll(socket);
    }

    [Fact]
    public void Words_ArriveAsTheyWere()
    {
        JsonElement answer = ControlClient.Ask(_path, ["say", "a b", "", "ü\"\n"]);
        Assert.Equal("a b||ü\"\n", answer.GetProperty("said").GetString());
    }

    [Fact]
    public void Refusals_AreOneLine()
    {
        Assert.Equal("machine: not today", Assert.Throws<BootException>(() => ControlClient.Ask(_path, ["refuse"])).Message);
        Assert.Contains("knows refuse, say, talk, wait, write, not 'walk'", Assert.Throws<BootException>(() => ControlClient.Ask(_path, ["walk"])).Message);
        Assert.Contains("too long", Assert.Throws<BootException>(() => ControlClient.Ask(_path, ["talk"])).Message);
    }

    [Theory]
    [InlineData("\n")]
    [InlineData("say\n")]
    [InlineData("[]\n")]
    [InlineData("[1]\n")]
    [InlineData("{\"say\":1}\n")]
    [InlineData("[\"say\"\n")]
    [InlineData("[\"\\ud800\"]\n")]
    public void WhatIsNoRequest_IsRefused(string request) => Assert.StartsWith("{\"ok\":false,\"error\":", Ask(request));

    [Fact]
    public void AFile_ComesWithTheWords()
    {
        string path = Path.Combine(_directory, "written");
        using (SafeFileHandle file = File.OpenHandle(path, FileMode.CreateNew, FileAccess.Write))
            ControlClient.Ask(_path, ["write", "hello"], (int)file.DangerousGetHandle());
        Assert.Equal("hello", File.ReadAllText(path));
        Assert.Contains("needs a file", Assert.Throws<BootException>(() => ControlClient.Ask(_path, ["write", "hello"])).Message);
    }

    /// <summary>What nobody has taken is closed: the reader finds the end.</summary>
    [Fact]
    public void Files_ThatNobodyTakes_AreClosed()
    {
        using StreamSocket socket = StreamSocket.CreatePair(out int other);
        ControlClient.Ask(_path, ["say", "x"], other);
        int[] many = [other, other, other, other, other];
        using (Socket client = Connect())
        {
            Assert.Equal(0, DescriptorMessage.Send((int)client.SafeHandle.DangerousGetHandle(), "[\"say\""u8, many));
            Assert.Contains("at most 4 files", ReadAll(client));
        }
        using (Socket client = Connect())
            Assert.Equal(0, DescriptorMessage.Send((int)client.SafeHandle.DangerousGetHandle(), "[\"say\""u8, other));
        FileDescriptor.Close(other);
        Assert.Equal(0, socket.Receive(new byte[1]));
    }

    [Fact]
    public void WhatTakesTime_KeepsNobodyElse_AndIsOneAtATime()
    {
        var asker = new Thread(() => ControlClient.Ask(_path, ["wait"], takesTime: true));
        asker.Start();
        _waiting.Wait();
        Assert.Equal("x", ControlClient.Ask(_path, ["say", "x"]).GetProperty("said").GetString());
        Assert.Contains("is busy with wait", Assert.Throws<BootException>(() => ControlClient.Ask(_path, ["wait"])).Message);
        _goOn.Set();
        asker.Join();
        // Who has an answer can ask again at once.
        for (int i = 0; i < 50; i++)
            ControlClient.Ask(_path, ["wait"], takesTime: true);
    }

    [Fact]
    public void ARequest_ComesInPieces()
    {
        using Socket socket = Connect();
        foreach (byte b in "[\"say\",\"x\"]\n"u8.ToArray())
            socket.Send([b]);
        Assert.Equal("{\"ok\":true,\"said\":\"x\"}\n", ReadAll(socket));
    }

    [Fact]
    public void AFlood_IsCutOff()
    {
        Assert.Equal("{\"ok\":false,\"error\":\"a request has at most 4096 bytes\"}\n", Ask(new string('[', 4096)));
        using Socket socket = Connect();
        byte[] flood = new byte[1 << 20];
        Array.Fill(flood, (byte)'[');
        void SendForEver()
        {
            while (true)
                _ = socket.Send(flood);
        }

        // Whoever goes on nevertheless has nobody who takes it.
        Assert.Throws<SocketException>((Action)SendForEver);
        Assert.Equal("x", ControlClient.Ask(_path, ["say", "x"]).GetProperty("said").GetString());
    }

    /// <summary>Clients that say nothing take places, lose them, and do not keep others from being heard.</summary>
    [Fact]
    public void SilentClients_LoseTheirPlaces()
    {
        Socket[] silent = [.. Enumerable.Range(0, 20).Select(_ => Connect())];
        try
        {
            Assert.Equal("x", ControlClient.Ask(_path, ["say", "x"]).GetProperty("said").GetString());
            Assert.Equal("", ReadAll(silent[0]));
        }
        finally
        {
            foreach (Socket s in silent)
                s.Dispose();
        }
    }

    [Fact]
    public void Clients_HangUpMidway()
    {
        for (int i = 0; i < 100; i++)
        {
            using Socket socket = Connect();
            socket.Send("[\"say\""u8);
            socket.LingerState = new LingerOption(true, 0);
        }
        using (Socket deaf = Connect())
            deaf.Send("[\"say\",\"x\"]\n"u8);
        Assert.Equal("x", ControlClient.Ask(_path, ["say", "x"]).GetProperty("said").GetString());
    }

    [Fact]
    public void Sockets_AreTaken_OrAbandoned()
    {
        Assert.Null(SocketFile.Listen(_path, mode: null, out string why));
        Assert.Equal("is taken", why);
        Assert.False(SocketFile.IsAbandoned(_path));
        string dead = Path.Combine(_directory, "dead");
        using (var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified))
        {
            // The runtime removes the name that it knows.
            socket.Bind(new UnixDomainSocketEndPoint(dead + ".new"));
            socket.Listen(1);
            File.Move(dead + ".new", dead);
        }
        Assert.True(SocketFile.IsAbandoned(dead));
        using Socket? again = SocketFile.Listen(dead, UnixFileMode.UserRead | UnixFileMode.UserWrite, out _);
        Assert.NotNull(again);
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(dead));
        string file = Path.Combine(_directory, "file");
        File.WriteAllText(file, "mine");
        Assert.False(SocketFile.IsAbandoned(file));
    }

    [Theory]
    [InlineData("vm1", true)]
    [InlineData("a.b-c_d", true)]
    [InlineData("1a", true)]
    [InlineData("12", false)]
    [InlineData("", false)]
    [InlineData(".x", false)]
    [InlineData("-x", false)]
    [InlineData("a/b", false)]
    [InlineData("ü", false)]
    [InlineData("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false)]
    public void Names_AreFiles_AndNoNumbers(string name, bool good) => Assert.Equal(good, ControlDirectory.IsName(name));
}
