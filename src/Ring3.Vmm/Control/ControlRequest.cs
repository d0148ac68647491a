using System.Text.Json;
using Microsoft.Win32.SafeHandles;

namespace Ring3.Vmm;

/// <summary>Why a command is not done: one line for whoever asked.</summary>
public sealed class ControlException(string message) : Exception(message);

/// <summary>Does a command; what it has to say are members of a JSON object.</summary>
/// <exception cref="ControlException">It is not done.</exception>
public delegate void ControlHandler(ControlRequest request, Utf8JsonWriter answer);

/// <summary>What a machine can be asked to do.</summary>
/// <param name="Handler">Does it.</param>
/// <param name="TakesTime">It is done on a thread of its own, and one at a time; the others are done meanwhile.</param>
public readonly record struct ControlCommand(ControlHandler Handler, bool TakesTime = false);

/// <summary>A command's words behind its name, and the files that came with it.</summary>
/// <param name="Arguments">The words.</param>
/// <param name="Files">Closed behind the command, but for those that were taken.</param>
public sealed record ControlRequest(IReadOnlyList<string> Arguments, IReadOnlyList<SafeFileHandle> Files)
{
    /// <summary>An argument that there has to be.</summary>
    /// <exception cref="ControlException">It is not there.</exception>
    public string Argument(int index) => index < Arguments.Count ? Arguments[index] : throw new ControlException("the command lacks an argument");

    /// <summary>Takes the file, of which there has to be one: it belongs to the caller.</summary>
    /// <exception cref="ControlException">It is not there.</exception>
    public SafeFileHandle TakeFile()
    {
        if (Files is not [{ IsInvalid: false, IsClosed: false } file])
            throw new ControlException("the command needs a file");
        var taken = new SafeFileHandle(file.DangerousGetHandle(), ownsHandle: true);
        file.SetHandleAsInvalid();
        return taken;
    }
}
