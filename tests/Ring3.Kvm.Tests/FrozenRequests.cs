using Ring3.Host;

namespace Ring3.Kvm.Tests;

/// <summary>
/// The protocol of VcpuRequests with one of its historical bugs in it: the control of each litmus test. Frozen: it is not to follow changes of the
/// original, and its bugs are not to be repaired.
/// </summary>
internal sealed unsafe class FrozenRequests : IDisposable
{
    internal enum Bug
    {
        /// <summary>The vCPU's mode is not visible before it looks at its requests: no fence between the two.</summary>
        NoFence,
        /// <summary>A waiting requester that finds somebody else's kick under way takes it for its own acknowledgement.</summary>
        KickIsAcknowledgement,
        /// <summary>A vCPU that has found nothing to do declares itself asleep and does not look again.</summary>
        NoSecondLook,
        /// <summary>The requester notes on which thread the vCPU runs before it looks at the mode.</summary>
        KicksTheOldThread,
    }

    private readonly Bug _bug;
    private readonly byte* _page = (byte*)HostMemory.Map(4096);

    internal FrozenRequests(Bug bug) => _bug = bug;

    /// <summary>Runs where the bug leaves its window open.</summary>
    internal Action Window = () => { };

    private ref ulong Requests => ref *(ulong*)_page;
    private ref int Mode => ref *(int*)(_page + 8);
    private ref int ExitSequence => ref *(int*)(_page + 12);
    private ref int Blocked => ref *(int*)(_page + 64);
    private ref int WakeSequence => ref *(int*)(_page + 68);

    /// <summary>Thread (0 or 1) that runs the vCPU, and the word that each of the two polls.</summary>
    internal ref int Thread => ref *(int*)(_page + 128);
    internal ref int PollWord(int thread) => ref *(int*)(_page + 256 + 64 * thread);

    /// <summary>False: somebody has kicked the vCPU already, so that nobody else will.</summary>
    internal bool CanBeKicked => Volatile.Read(ref Mode) == 1;

    internal bool AnyPending => Volatile.Read(ref Requests) != 0;

    internal bool TryEnter()
    {
        PollWord(Thread) = 0;
        if (_bug == Bug.NoFence)
            Volatile.Write(ref Mode, 1);
        else
            Interlocked.Exchange(ref Mode, 1);
        if (Volatile.Read(ref Requests) == 0)
            return true;
        Leave();
        return false;
    }

    internal void Leave()
    {
        Volatile.Write(ref Mode, 0);
        Interlocked.Increment(ref ExitSequence);
    }

    internal void TakeAll() => Interlocked.Exchange(ref Requests, 0);

    internal void Make(bool wait)
    {
        Interlocked.Or(ref Requests, 1);
        int sequence = Volatile.Read(ref ExitSequence);
        if (Volatile.Read(ref Blocked) != 0)
        {
            Interlocked.Increment(ref WakeSequence);
            Futex.Wake((int*)(_page + 68));
            return;
        }
        int thread = Volatile.Read(ref Thread);
        if (_bug == Bug.KicksTheOldThread)
            Window();
        int mode = Interlocked.CompareExchange(ref Mode, 2, 1);
        if (_bug != Bug.KicksTheOldThread)
            thread = Volatile.Read(ref Thread);
        if (mode == 1)
            Volatile.Write(ref PollWord(thread), 1);
        if (!wait || mode == 0 || mode == 2 && _bug == Bug.KickIsAcknowledgement)
            return;
        while (Volatile.Read(ref ExitSequence) == sequence)
            System.Threading.Thread.SpinWait(1);
    }

    /// <summary>Sleeps until there is a request, at most <paramref name="limitNs"/>. False when the time ran out.</summary>
    internal bool Sleep(long limitNs)
    {
        if (_bug == Bug.NoSecondLook)
        {
            if (AnyPending)
                return true;
            Window();
            int asleep = Volatile.Read(ref WakeSequence);
            Interlocked.Exchange(ref Blocked, 1);
            bool woken = Futex.Wait((int*)(_page + 68), asleep, limitNs);
            Volatile.Write(ref Blocked, 0);
            return woken;
        }
        int token = Volatile.Read(ref WakeSequence);
        Interlocked.Exchange(ref Blocked, 1);
        Window();
        bool inTime = AnyPending || Futex.Wait((int*)(_page + 68), token, limitNs);
        Volatile.Write(ref Blocked, 0);
        return inTime;
    }

    public void Dispose() => HostMemory.Unmap(_page, 4096);
}
