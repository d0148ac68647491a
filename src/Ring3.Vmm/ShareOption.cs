using System.Text;
using Ring3.Virtio;

namespace Ring3.Vmm;

/// <summary>What --share says.</summary>
public sealed record ShareOption
{
    /// <summary>Where the default guest has a share of the root directory.</summary>
    private const string RootPlace = "/host";

    /// <summary>The folder, absolute.</summary>
    public required string Directory { get; init; }
    /// <summary>What the guest mounts it by; null: a name by the share's number.</summary>
    public string? Tag { get; init; }
    public bool ReadOnly { get; init; }

    /// <summary>Where the default guest has it.</summary>
    public string Place => Directory == "/" ? RootPlace : Directory;

    /// <summary>Reads DIR[:TAG][,ro]; a comma or a colon of a folder's name is doubled. Null and a message when it is something else.</summary>
    public static ShareOption? Parse(string text, out string error)
    {
        const string Comma = "\0", Colon = "\u0001";
        string Plain(string word) => word.Replace(Comma, ",", StringComparison.Ordinal).Replace(Colon, ":", StringComparison.Ordinal);
        string[] words = text.Replace(",,", Comma, StringComparison.Ordinal).Replace("::", Colon, StringComparison.Ordinal).Split(',');
        string[] names = words[0].Split(':');
        error = "";
        if (names.Length > 2 || names[0].Length == 0 || text.Contains('\n', StringComparison.Ordinal))
            error = $"--share wants DIR[:TAG][,ro], not '{text}' (a comma or a colon of a folder's name is doubled)";
        else if (words.Length > 2 || words.Length == 2 && words[1] != "ro")
            error = $"--share knows ro, not '{words[^1]}' (a comma of a folder's name is doubled)";
        else if (names.Length == 2 && Encoding.UTF8.GetByteCount(names[1]) is 0 or > VhostFsDevice.MaxTagBytes)
            error = $"the tag of a share has 1 to {VhostFsDevice.MaxTagBytes} bytes, not '{names[1]}'";
        if (error.Length != 0)
            return null;
        string directory = Path.GetFullPath(Plain(names[0]));
        return new ShareOption
        {
            Directory = directory.Length > 1 ? directory.TrimEnd('/') : directory, Tag = names.Length == 2 ? Plain(names[1]) : null,
            ReadOnly = words.Length == 2,
        };
    }
}
