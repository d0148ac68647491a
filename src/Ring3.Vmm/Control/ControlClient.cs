using System.Buffers;
using System.Globalization;
using System.Net.Sockets;
using System.Text.Json;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>Asks this user's machines: the other end of <see cref="ControlServer"/>.</summary>
public static class ControlClient
{
    private const int MaxAnswerBytes = 1 << 20, PatienceMs = 15_000, LongPatienceMs = 3_600_000;

    /// <summary>The socket of a machine.</summary>
    /// <param name="machine">Its name, or the number of its process.</param>
    /// <exception cref="BootException">There is no such machine.</exception>
    public static string Find(string machine)
    {
        IReadOnlyList<string> sockets = ControlDirectory.Sockets();
        if (sockets.FirstOrDefault(s => Path.GetFileName(s) == machine) is { } named)
            return named;
        // A machine with a name has a number, too.
        if (int.TryParse(machine, NumberStyles.None, CultureInfo.InvariantCulture, out int process))
        {
            foreach (string socket in sockets)
            {
                if (TryAsk(socket, ["status"]) is { } status && status.TryGetProperty("pid", out JsonElement pid) && pid.GetInt32() == process)
                    return socket;
            }
        }
        throw new BootException(ExitStatus.NoInput, $"there is no machine {machine} (ring3 ctl list)");
    }

    /// <summary>What a machine answers; it is "ok".</summary>
    /// <exception cref="BootException">It does not do that, or does not answer.</exception>
    /// <param name="socket">The machine's.</param>
    /// <param name="words">The command, and its arguments.</param>
    /// <param name="file">A descriptor that the machine gets, too; -1: none.</param>
    /// <param name="takesTime">The command is one that takes its time.</param>
    public static JsonElement Ask(string socket, IReadOnlyList<string> words, int file = -1, bool takesTime = false)
    {
        string machine = Path.GetFileName(socket);
        if (TryAsk(socket, words, file, takesTime) is not { } answer || !answer.TryGetProperty("ok", out JsonElement ok))
            throw new BootException(ExitStatus.NoInput, $"{machine} does not answer");
        return ok.ValueKind == JsonValueKind.True ? answer
            : throw new BootException(ExitStatus.NoInput, $"{machine}: {(answer.TryGetProperty("error", out JsonElement why) ? why.GetString() : "no")}");
    }

    /// <summary>What a machine answers, an object; null when it does not, as one that has just ended.</summary>
    public static JsonElement? TryAsk(string path, IReadOnlyList<string> words, int file = -1, bool takesTime = false)
    {
        try
        {
            using var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified)
            {
                SendTimeout = PatienceMs, ReceiveTimeout = takesTime ? LongPatienceMs : PatienceMs,
            };
            socket.Connect(new UnixDomainSocketEndPoint(path));
            _ = DescriptorMessage.Send((int)socket.SafeHandle.DangerousGetHandle(), Request(words), file < 0 ? [] : [file]);
            byte[] answer = new byte[MaxAnswerBytes];
            int bytes = 0;
            for (int n = 1; n != 0 && bytes < answer.Length; bytes += n)
                n = socket.Receive(answer.AsSpan(bytes));
            using JsonDocument document = JsonDocument.Parse(answer.AsMemory(0, bytes));
            return document.RootElement.ValueKind == JsonValueKind.Object ? document.RootElement.Clone() : null;
        }
        catch (Exception e) when (e is SocketException or JsonException or ArgumentException) { return null; }
    }

    private static byte[] Request(IReadOnlyList<string> words)
    {
        var text = new ArrayBufferWriter<byte>();
        using (var writer = new Utf8JsonWriter(text))
        {
            writer.WriteStartArray();
            foreach (string word in words)
                writer.WriteStringValue(word);
            writer.WriteEndArray();
        }
        text.Write("\n"u8);
        return text.WrittenSpan.ToArray();
    }
}
