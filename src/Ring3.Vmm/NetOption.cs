using System.Globalization;

namespace Ring3.Vmm;

/// <summary>What --net says.</summary>
public sealed record NetOption
{
    /// <summary>A port of the host's loopback address that leads to one of the guest.</summary>
    public readonly record struct Forward(ushort Host, ushort Guest);

    /// <summary>TAP interface; null: passt.</summary>
    public string? Tap { get; init; }
    public IReadOnlyList<Forward> Forwards { get; init; } = [];

    private const int MaxName = 15;

    /// <summary>Whether an interface can have this name.</summary>
    public static bool IsInterface(string name) => name.Length is > 0 and <= MaxName && System.Text.Ascii.IsValid(name);

    /// <summary>Reads none, tap=NAME or user[,forward=HOST:GUEST]... Null without a network, and with a message when it is something else.</summary>
    public static NetOption? Parse(string text, out string error)
    {
        string[] words = text.Split(',');
        error = "";
        if (words is ["none"])
            return null;
        if (words is [var tap] && tap.StartsWith("tap=", StringComparison.Ordinal))
        {
            string name = tap["tap=".Length..];
            if (IsInterface(name))
                return new NetOption { Tap = name };
            error = $"the name of a TAP interface has 1 to {MaxName} ASCII characters, not '{name}'";
            return null;
        }
        var forwards = new List<Forward>();
        if (words[0] != "user")
            error = $"--net knows user[,forward=HOST:GUEST], tap=NAME and none, not '{text}'";
        foreach (string word in words.Skip(1))
        {
            if (word.Split('=', 2) is ["forward", var ports] && TryForward(ports, out Forward forward))
                forwards.Add(forward);
            else if (error.Length == 0)
                error = $"--net user knows forward=HOST:GUEST, two ports from 1 to 65535, not '{word}'";
        }
        return error.Length == 0 ? new NetOption { Forwards = forwards } : null;
    }

    private static bool TryForward(string text, out Forward forward)
    {
        forward = default;
        if (text.Split(':') is not [var host, var guest] || !TryPort(host, out ushort h) || !TryPort(guest, out ushort g))
            return false;
        forward = new Forward(h, g);
        return true;
    }

    private static bool TryPort(string text, out ushort port) => ushort.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out port) && port != 0;
}
