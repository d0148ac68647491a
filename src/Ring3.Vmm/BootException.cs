namespace Ring3.Vmm;

/// <summary>Exit statuses of <c>ring3</c>. docs/cli.md describes each.</summary>
public static class ExitStatus
{
    public const int Ok = 0;
    /// <summary>The guest reset itself (reboot, or a panic with panic=-1).</summary>
    public const int GuestReset = 120;
    /// <summary>The guest triple-faulted.</summary>
    public const int GuestTripleFault = 121;
    /// <summary>The hypervisor reported an error it cannot continue from.</summary>
    public const int MachineFailure = 122;
    /// <summary>--exec: the guest ended before it reported the command's status.</summary>
    public const int ExecLost = 123;
    /// <summary>Bad option or argument.</summary>
    public const int Usage = 64;
    /// <summary>A kernel, initrd or other image is not valid.</summary>
    public const int BadImage = 65;
    /// <summary>A file cannot be read, or the network or a package is not available.</summary>
    public const int NoInput = 66;
    /// <summary>The guest's or the command's output cannot be written: the device is full, the reader has gone.</summary>
    public const int NoOutput = 74;
    /// <summary>Not enough memory or disk space.</summary>
    public const int Resources = 71;
    /// <summary>An unexpected error in ring3 itself.</summary>
    public const int Internal = 70;
    /// <summary>The user quit with Ctrl-].</summary>
    public const int Quit = 0;
}

/// <summary>A reason not to start, or not to go on, that the user can understand: one line, and the exit status.</summary>
public sealed class BootException(int status, string message) : Exception(message)
{
    /// <summary>Exit status of the process: see <see cref="ExitStatus"/>.</summary>
    public int Status { get; } = status;

    internal static BootException BadImage(string message) => new(ExitStatus.BadImage, message);
}
