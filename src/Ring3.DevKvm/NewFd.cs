namespace Ring3.DevKvm;

/// <summary>What a new descriptor stands for.</summary>
public enum ObjectKind
{
    None = 0,
    System = 1,
    Vm = 2,
    Vcpu = 3,
    Device = 4,
    Stats = 5,
    GuestMemfd = 6,
}

/// <summary>
/// An object that a call has made: its handle, and the memfd that stands for it among the client's descriptors (close-on-exec as KVM's). <see cref="Handle"/>
/// is 0 when the call made none.
/// </summary>
public struct NewFd
{
    public ulong Handle;
    public int Fd;
    /// <summary>An <see cref="ObjectKind"/>.</summary>
    public int Kind;
}
