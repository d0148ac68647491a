namespace Ring3.Host;

/// <summary>System calls of x86-64 by number, as far as a <see cref="SystemCallFilter"/> is told of them. SPEC: syscalls(2).</summary>
public enum SystemCall
{
    read = 0, write = 1, close = 3, fstat = 5, poll = 7, lseek = 8, mmap = 9, mprotect = 10, munmap = 11, brk = 12, rt_sigaction = 13, rt_sigprocmask = 14,
    rt_sigreturn = 15, ioctl = 16, pread64 = 17, pwrite64 = 18, readv = 19, writev = 20, pipe = 22, select = 23, sched_yield = 24, mremap = 25, msync = 26,
    mincore = 27, madvise = 28, dup = 32, dup2 = 33, nanosleep = 35, getpid = 39, sendto = 44, recvfrom = 45, sendmsg = 46, recvmsg = 47, shutdown = 48,
    getsockname = 51, getpeername = 52, getsockopt = 55, clone = 56, exit = 60, wait4 = 61, kill = 62, uname = 63, fcntl = 72, flock = 73, fsync = 74,
    fdatasync = 75, ftruncate = 77, gettimeofday = 96, getrusage = 98, sysinfo = 99, times = 100, getuid = 102, getgid = 104, geteuid = 107, getegid = 108,
    getppid = 110, getpgrp = 111, setgroups = 116,
    rt_sigpending = 127, rt_sigtimedwait = 128, sigaltstack = 131, prctl = 157, gettid = 186, time = 201, futex = 202,
    sched_setaffinity = 203, sched_getaffinity = 204, set_tid_address = 218, restart_syscall = 219, fadvise64 = 221, clock_gettime = 228, clock_getres = 229,
    clock_nanosleep = 230, exit_group = 231, epoll_wait = 232, epoll_ctl = 233, tgkill = 234, mbind = 237, get_mempolicy = 239, waitid = 247, pselect6 = 270,
    ppoll = 271, set_robust_list = 273, get_robust_list = 274, sync_file_range = 277, epoll_pwait = 281, timerfd_create = 283, fallocate = 285,
    timerfd_settime = 286, timerfd_gettime = 287, accept4 = 288, eventfd2 = 290, epoll_create1 = 291, dup3 = 292, pipe2 = 293, preadv = 295, pwritev = 296,
    rt_tgsigqueueinfo = 297, prlimit64 = 302, getcpu = 309, getrandom = 318, memfd_create = 319, membarrier = 324, preadv2 = 327, pwritev2 = 328, rseq = 334,
    clone3 = 435, epoll_pwait2 = 441, futex_waitv = 449,
}
