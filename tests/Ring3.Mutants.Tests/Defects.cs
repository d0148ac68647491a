using Ring3.Cpu;
using Ring3.Mmu;
using Ring3.Sync;

namespace Ring3;

/// <summary>The mistakes that the protocol of roots has had, or almost had. See Defects.patch for where they are.</summary>
internal enum RootDefect { None, QueueTwice, QueueAfterUnlock, PutBeforeZap, IgnoreSkipped, CheckBeforeFlush, DropState }

/// <summary>Which defects of Defects.patch are there at the moment, in the whole process: tests that turn them on are of one collection.</summary>
internal static class Defects
{
    private static uint s_leftOut, s_leftOutByGuest;

    public static RootDefect Root { get; set; }

    public static bool LeavesOut(FlushSite site) => (Volatile.Read(ref s_leftOut) >> (int)site & 1) != 0;
    public static bool LeavesOut(GuestFlush site) => (Volatile.Read(ref s_leftOutByGuest) >> (int)site & 1) != 0;

    /// <summary>From now on flushes of this site are not made.</summary>
    public static void LeaveOut(FlushSite site) => Volatile.Write(ref s_leftOut, s_leftOut | 1u << (int)site);

    /// <inheritdoc cref="LeaveOut(FlushSite)"/>
    public static void LeaveOut(GuestFlush site) => Volatile.Write(ref s_leftOutByGuest, s_leftOutByGuest | 1u << (int)site);

    /// <summary>A descriptor of the client is closed as soon as nobody new can find it.</summary>
    public static bool ClosesEarly { get; set; }

    /// <summary>Whoever has found a descriptor lets others run before he uses it.</summary>
    public static bool WidensWindows { get; set; }

    /// <summary>Between finding a descriptor and using it.</summary>
    public static void Window()
    {
        if (WidensWindows)
            Thread.Sleep(1);
    }

    /// <summary>On return the loop does not watch the descriptor any more, but its owner may be in the middle of being told.</summary>
    public static void DetachWithoutWaiting(IPolled member)
    {
        new Thread(() => EventLoop.Shared.Detach(member)).Start();
        var probe = new Probe(member.Fd);
        while (EventLoop.Shared.Attach(probe) != 0)
            Thread.Yield();
        EventLoop.Shared.Detach(probe);
    }

    /// <summary>A descriptor can be watched again when it is not watched any more.</summary>
    private sealed class Probe(int fd) : IPolled
    {
        public int Fd => fd;

        public void Signalled()
        {
        }

        public void Failed(Exception e)
        {
        }
    }

    /// <summary>The product as it is.</summary>
    public static void None()
    {
        ClosesEarly = WidensWindows = false;
        Root = RootDefect.None;
        Volatile.Write(ref s_leftOut, 0);
        Volatile.Write(ref s_leftOutByGuest, 0);
    }
}
