using Microsoft.Win32.SafeHandles;

namespace Ring3.Vmm;

/// <summary>Where a snapshot is written to. It has its name when it is whole, and what had that name before is there until then.</summary>
/// <param name="path">Its name.</param>
public abstract class SnapshotPlace(string path)
{
    public string Path { get; } = path;

    /// <summary>An empty file without the name.</summary>
    /// <exception cref="BootException">There can be none.</exception>
    internal abstract SafeFileHandle Create();

    /// <summary>The file is whole: it gets the name.</summary>
    /// <exception cref="BootException">It cannot have it.</exception>
    internal abstract void Keep();

    /// <summary>The file, if there is one, is not to be.</summary>
    internal abstract void Drop();
}

/// <summary>A place that this process may write to.</summary>
/// <param name="path">The snapshot's name; the work file lies beside it.</param>
public sealed class SnapshotFolder(string path) : SnapshotPlace(path)
{
    private readonly string _work = $"{path}.{Environment.ProcessId}.tmp";

    internal override SafeFileHandle Create() => Try(() =>
    {
        File.Delete(_work);
        SafeFileHandle file = File.OpenHandle(_work, FileMode.CreateNew, FileAccess.Write);
        try { File.SetUnixFileMode(file, UnixFileMode.UserRead | UnixFileMode.UserWrite); }
        catch
        {
            file.Dispose();
            throw;
        }
        return file;
    });

    internal override void Keep() => Try(() =>
    {
        File.Move(_work, Path, overwrite: true);
        return true;
    });

    internal override void Drop()
    {
        try { File.Delete(_work); }
        catch (Exception e) when (IsRefusal(e)) { }
    }

    private T Try<T>(Func<T> action)
    {
        try { return action(); }
        catch (Exception e) when (IsRefusal(e)) { throw Failure(Path, e); }
    }

    private static bool IsRefusal(Exception e) => e is IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException;

    internal static BootException Failure(string path, Exception e) =>
        new(e is UnauthorizedAccessException or DirectoryNotFoundException ? ExitStatus.NoInput : ExitStatus.Resources,
            $"cannot write the snapshot {path}: {e.Message}");
}

/// <summary>A file that somebody else has made, and names.</summary>
/// <param name="path">What it will be called, for messages.</param>
/// <param name="file">The file, empty. It is closed behind the snapshot.</param>
internal sealed class SnapshotDescriptor(string path, SafeFileHandle file) : SnapshotPlace(path)
{
    internal override SafeFileHandle Create() => file;

    internal override void Keep()
    {
    }

    internal override void Drop() => file.Dispose();
}
