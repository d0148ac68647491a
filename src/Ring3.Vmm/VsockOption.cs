using System.Globalization;

namespace Ring3.Vmm;

/// <summary>What --vsock says.</summary>
/// <param name="Path">Name of the host's socket, absolute.</param>
/// <param name="Cid">The guest's address.</param>
public sealed record VsockOption(string Path, ulong Cid)
{
    private const ulong FirstCid = 3;

    /// <summary>Reads PATH[,cid=N]; a comma of a name is doubled. Null and a message when it is something else.</summary>
    public static VsockOption? Parse(string text, out string error)
    {
        const string Comma = "\0";
        string[] words = [.. text.Replace(",,", Comma, StringComparison.Ordinal).Split(',').Select(w => w.Replace(Comma, ",", StringComparison.Ordinal))];
        ulong cid = FirstCid;
        error = "";
        if (words[0].Length == 0 || words.Length > 2)
            error = $"--vsock wants PATH[,cid=N], not '{text}' (a comma of a name is doubled)";
        // SPEC: virtio 1.2, "Socket Device": the upper half is reserved, and the last one is anybody's.
        else if (words.Length == 2 && !(words[1].StartsWith("cid=", StringComparison.Ordinal)
            && ulong.TryParse(words[1].AsSpan(4), NumberStyles.None, CultureInfo.InvariantCulture, out cid) && cid is >= FirstCid and < uint.MaxValue))
        {
            error = $"--vsock knows cid=N, a number from {FirstCid} to {uint.MaxValue - 1}, not '{words[1]}'";
        }
        return error.Length == 0 ? new VsockOption(System.IO.Path.GetFullPath(words[0]), cid) : null;
    }
}
