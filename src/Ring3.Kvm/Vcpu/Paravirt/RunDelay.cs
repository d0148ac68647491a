using Ring3.Host;

namespace Ring3.Kvm;

/// <summary>
/// For how long the host has run something else though the vCPU's thread was runnable. The kernel is asked about a thread only where somebody uses the answer
/// (a guest with steal time, Xen's run states): nobody else makes these system calls, which a client that confines itself may not allow.
/// </summary>
internal sealed class RunDelay : IDisposable
{
    private SchedStat? _stat;
    private int _thread;
    /// <summary>The thread that <see cref="_stat"/> is about, or that the kernel tells nothing of; 0: not asked yet.</summary>
    private int _askedThread;

    /// <summary>The delay as it was last looked at, in nanoseconds. Another thread's begins elsewhere.</summary>
    public long LastNs { get; set; }

    /// <summary>The kernel tells the delay of the vCPU's thread.</summary>
    public bool IsKnown => _stat is not null;

    /// <summary>The delay in nanoseconds; 0 when it is not known.</summary>
    public long NowNs => _stat?.RunDelayNs ?? 0;

    /// <summary>The vCPU has come to another thread, the calling one.</summary>
    public void MoveTo(int thread, bool isUsed)
    {
        _stat?.Dispose();
        _stat = null;
        (_thread, _askedThread) = (thread, 0);
        if (isUsed)
            Use();
    }

    /// <summary>Asks about the vCPU's thread, which calls, unless that is done. True: it was not.</summary>
    public bool Use()
    {
        if (_askedThread == _thread)
            return false;
        _askedThread = _thread;
        _stat = SchedStat.OpenForCurrentThread();
        LastNs = NowNs;
        return true;
    }

    public void Dispose() => _stat?.Dispose();
}
