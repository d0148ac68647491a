using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>A call of the host that makes something has failed, for want of descriptors or memory as a rule.</summary>
public sealed class HostCallException : IOException
{
    /// <summary>The calling thread's last call, with the error that it left.</summary>
    public HostCallException(string call) : this(call, Marshal.GetLastPInvokeError()) { }

    /// <summary>A call that has failed with a known error.</summary>
    public HostCallException(string call, int errno) : base($"{call}: {Marshal.GetPInvokeErrorMessage(errno)}") => Errno = errno;

    /// <summary>The system's number for the reason.</summary>
    public int Errno { get; }
}
