using Ring3.Host;

namespace Ring3.Kvm;

/// <summary>Receives readiness of an eventfd on the poller's thread; must not block.</summary>
internal interface IPolled
{
    Vm Vm { get; }
    int Fd { get; }
    void Signalled();
}

/// <summary>The process's poller: one thread that waits for the eventfds of all VMs. Started with the first.</summary>
internal static class Poller
{
    private static readonly Lock s_lock = new();
    private static readonly Dictionary<ulong, IPolled> s_members = [];
    private static Epoll? s_epoll;
    private static ulong s_nextKey;

    /// <summary>0 or -errno.</summary>
    public static int Attach(IPolled member)
    {
        lock (s_lock)
        {
            if (s_epoll is null)
            {
                try { s_epoll = new Epoll(); }
                catch (HostCallException e) { return -e.Errno; }
                new Thread(Run) { IsBackground = true, Name = "ring3-poller" }.Start();
            }
            ulong key = ++s_nextKey;
            s_members.Add(key, member);
            int r = s_epoll.Add(member.Fd, key);
            if (r != 0)
                s_members.Remove(key);
            return r;
        }
    }

    /// <summary>On return the member is not and will not be called.</summary>
    public static void Detach(IPolled member)
    {
        lock (s_lock)
        {
            foreach (var (key, m) in s_members)
            {
                if (m != member)
                    continue;
                Forget(key, m);
                return;
            }
        }
    }

    private static void Forget(ulong key, IPolled member)
    {
        s_epoll!.Remove(member.Fd);
        s_members.Remove(key);
    }

    /// <summary>A member that throws ends its VM, not the process, which is the client's; and it is not asked again.</summary>
    private static void Tell(ulong key, IPolled member)
    {
        try
        {
            member.Signalled();
        }
        catch (Exception e)
        {
            Forget(key, member);
            member.Vm.BugOn(true, e.ToString());
        }
    }

    private static void Run()
    {
        Span<ulong> keys = stackalloc ulong[64];
        while (true)
        {
            int n = s_epoll!.Wait(keys, -1);
            for (int i = 0; i < n; i++)
            {
                // Held during the call, so that Detach can promise silence.
                lock (s_lock)
                    if (s_members.TryGetValue(keys[i], out IPolled? member))
                        Tell(keys[i], member);
            }
        }
    }
}
