using System.Net.Sockets;
using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>
/// Where this user's machines listen for <c>ring3 ctl</c>: a directory of his alone with a socket for each, by its name or by the number of its process.
/// </summary>
/// <remarks>A confined machine cannot remove its socket. Whoever comes next removes what nobody listens on; they take turns.</remarks>
public static class ControlDirectory
{
    private const int MaxNameChars = 64, EPERM = 1, ENOTDIR = 20;
    private const UnixFileMode OwnerOnly = UnixFileMode.UserRead | UnixFileMode.UserWrite;

    /// <summary>$XDG_RUNTIME_DIR/ring3, else /tmp/ring3-USER.</summary>
    public static string Place => Environment.GetEnvironmentVariable("XDG_RUNTIME_DIR") is { Length: > 0 } runtime && Path.IsPathRooted(runtime)
        && Directory.Exists(runtime) ? Path.Combine(runtime, "ring3") : $"/tmp/ring3-{Privileges.Identity.User}";

    /// <summary>A name that is a file's, and no process's number.</summary>
    public static bool IsName(string text) => text.Length is > 0 and <= MaxNameChars && text[0] is not ('.' or '-') && !text.All(char.IsAsciiDigit)
        && text.All(c => char.IsAsciiLetterOrDigit(c) || c is '.' or '-' or '_');

    /// <summary>Listens by a name, or by this process's number when it is null.</summary>
    /// <exception cref="BootException">The name is taken, or there is no such directory that is this user's alone.</exception>
    public static Socket Listen(string? name)
    {
        using PrivateDirectory directory = Enter(Place);
        string path = Path.Combine(directory.Path, name ?? $"{Environment.ProcessId}");
        return SocketFile.Listen(path, OwnerOnly, out string why)
            ?? throw new BootException(ExitStatus.NoInput, $"{(name is null ? "" : $"--name {name}: ")}{path} {why}");
    }

    /// <summary>Sockets of machines that live.</summary>
    /// <exception cref="BootException">There is no such directory that is this user's alone.</exception>
    public static IReadOnlyList<string> Sockets()
    {
        using PrivateDirectory directory = Enter(Place);
        return [.. Directory.EnumerateFileSystemEntries(directory.Path).Order(StringComparer.Ordinal)];
    }

    /// <summary>Opens it in turn, and without what nobody listens on.</summary>
    private static PrivateDirectory Enter(string place)
    {
        int error = PrivateDirectory.TryOpen(place, out PrivateDirectory? directory);
        if (error != 0)
        {
            string why = -error switch
            {
                EPERM => "is not this user's alone",
                ENOTDIR => "is no directory",
                _ => Marshal.GetPInvokeErrorMessage(-error),
            };
            throw new BootException(ExitStatus.NoInput, $"the directory for control sockets, {place}: {why}");
        }
        directory!.Enter();
        foreach (string path in Directory.EnumerateFileSystemEntries(place))
        {
            if (SocketFile.IsAbandoned(path))
                File.Delete(path);
        }
        return directory;
    }
}
