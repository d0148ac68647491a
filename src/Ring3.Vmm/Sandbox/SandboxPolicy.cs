using Ring3.Host;
using static Ring3.Host.SystemCall;

namespace Ring3.Vmm;

/// <summary>
/// The system calls of a machine at work: on descriptors that are open already, on its own memory, threads, timers and signals. None opens or names a file,
/// makes or connects a socket, executes a program, or touches another process, its helpers' end excepted.
/// </summary>
public static class SandboxPolicy
{
    private const int ENOSYS = 38;

    /// <param name="process">The process that is to be confined.</param>
    /// <param name="helpers">Its children that it ends by a signal.</param>
    public static SystemCallFilter Create(int process, params IReadOnlyList<int> helpers)
    {
        var filter = new SystemCallFilter();
        // Bytes of what is open. Not newfstatat: it takes a path, too.
        filter.Allow(read, write, readv, writev, pread64, pwrite64, preadv, pwritev, preadv2, pwritev2, lseek, fsync, fdatasync, sync_file_range, fallocate,
            ftruncate, fadvise64, fstat, close, dup, dup2, dup3, pipe2, flock);
        filter.Allow(poll, ppoll, select, pselect6, epoll_create1, epoll_ctl, epoll_wait, epoll_pwait, epoll_pwait2, eventfd2, timerfd_create, timerfd_settime,
            timerfd_gettime);
        // Sockets that are connected, or listen.
        filter.Allow(accept4, sendto, recvfrom, sendmsg, recvmsg, shutdown, getsockname, getpeername, getsockopt);
        // Memory; executable, too: the translator and a just-in-time compiler make code.
        filter.Allow(mmap, munmap, mremap, mprotect, madvise, msync, mincore, brk, mbind, get_mempolicy, memfd_create, membarrier);
        filter.Allow(futex, futex_waitv, set_robust_list, get_robust_list, rseq, set_tid_address, sched_yield, sched_getaffinity, getcpu, exit, exit_group);
        filter.Allow(clock_gettime, clock_getres, clock_nanosleep, nanosleep, gettimeofday, time, times, getrusage, sysinfo, uname, getrandom);
        filter.Allow(rt_sigaction, rt_sigprocmask, rt_sigreturn, rt_sigpending, rt_sigtimedwait, sigaltstack, restart_syscall, wait4, waitid);
        filter.Allow(getpid, getppid, gettid, getuid, getgid, geteuid, getegid, getpgrp);
        AllowThreads(filter);
        AllowSignals(filter, (uint)process, helpers);
        AllowControls(filter);
        return filter;
    }

    /// <summary>Threads of this process, in its name spaces. The arguments of clone3 are in memory, where a filter cannot see them: the C library then
    /// takes clone.</summary>
    private static void AllowThreads(SystemCallFilter filter)
    {
        const ulong SharedMemory = 0x100, SharedHandlers = 0x800, Thread = 0x10000, NameSpaces = 0x7e02_0000;
        const ulong OfThread = SharedMemory | SharedHandlers | Thread;
        filter.AllowWhen(clone, new ArgumentIs(0, OfThread | NameSpaces, OfThread));
        filter.Fail(clone3, ENOSYS);
        // A thread's own: the runtime gives each the processors of the process.
        filter.AllowWhen(sched_setaffinity, ArgumentIs.Int(0, 0));
    }

    private static void AllowSignals(SystemCallFilter filter, uint process, IReadOnlyList<int> helpers)
    {
        const uint SIGKILL = 9, SIGTERM = 15;
        filter.AllowWhen(tgkill, ArgumentIs.Int(0, process));
        filter.AllowWhen(rt_tgsigqueueinfo, ArgumentIs.Int(0, process));
        filter.AllowWhen(kill, ArgumentIs.Int(0, process));
        foreach (int helper in helpers)
        {
            foreach (uint signal in (uint[])[0, SIGKILL, SIGTERM])
                filter.AllowWhen(kill, ArgumentIs.Int(0, (uint)helper), ArgumentIs.Int(1, signal));
        }
    }

    /// <summary>Calls that are many: not what a descriptor sends signals by, or types into a terminal with.</summary>
    private static void AllowControls(SystemCallFilter filter)
    {
        const uint DupFd = 0, GetFd = 1, SetFd = 2, GetFlags = 3, SetFlags = 4, GetLock = 5, SetLock = 6, DupCloexec = 1030, AddSeals = 1033, GetSeals = 1034;
        foreach (uint command in (uint[])[DupFd, GetFd, SetFd, GetFlags, SetFlags, GetLock, SetLock, DupCloexec, AddSeals, GetSeals])
            filter.AllowWhen(fcntl, ArgumentIs.Int(1, command));
        // TCGETS, TCSETS, TCSETSW, TCSETSF and their successors, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX.
        uint[] requests = [0x5401, 0x5402, 0x5403, 0x5404, 0x802c542a, 0x402c542b, 0x402c542c, 0x402c542d, 0x540f, 0x5413, 0x541b, 0x5421, 0x5451];
        foreach (uint request in requests)
            filter.AllowWhen(ioctl, ArgumentIs.Int(1, request));
        const uint SetName = 15, GetName = 16, SetVma = 0x53564d41;
        foreach (uint option in (uint[])[SetName, GetName, SetVma])
            filter.AllowWhen(prctl, ArgumentIs.Int(0, option));
        // Limits can be read; a new one is the third argument.
        filter.AllowWhen(prlimit64, ArgumentIs.Int(0, 0), new ArgumentIs(2, ulong.MaxValue, 0));
    }
}
