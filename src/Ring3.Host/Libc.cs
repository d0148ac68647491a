using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

[assembly: DisableRuntimeMarshalling]

namespace Ring3.Host;

/// <summary>The C library calls that Ring3 uses. Blittable signatures only; every other P/Invoke in the product is a defect.</summary>
/// <remarks>SAFETY: declarations only; each caller in this project states why its pointers are valid.</remarks>
internal static partial class Libc
{
    private const string C = "libc";

    internal const int PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4;
    internal const int MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20, MAP_NORESERVE = 0x4000;
    internal const int MADV_DONTNEED = 4, MADV_REMOVE = 9, MADV_HUGEPAGE = 14, MADV_NOHUGEPAGE = 15,
        MADV_DONTDUMP = 16, MADV_POPULATE_READ = 22, MADV_POPULATE_WRITE = 23;
    internal const int EINTR = 4, EAGAIN = 11, ENOMEM = 12, EFAULT = 14, EINVAL = 22, ETIMEDOUT = 110;

    [LibraryImport(C, SetLastError = true)] internal static unsafe partial void* mmap(void* addr, nuint length, int prot, int flags, int fd, long offset);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int munmap(void* addr, nuint length);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int mprotect(void* addr, nuint length, int prot);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int madvise(void* addr, nuint length, int advice);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial nint getrandom(void* buffer, nuint length, uint flags);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int memfd_create(byte* name, uint flags);
    [LibraryImport(C, SetLastError = true)] internal static partial int ftruncate(int fd, long length);
    [LibraryImport(C, SetLastError = true)] internal static partial int fallocate(int fd, int mode, long offset, long length);
    [LibraryImport(C, SetLastError = true)] internal static partial int close(int fd);
    [LibraryImport(C, SetLastError = true)] internal static partial int fcntl(int fd, int command, nint argument);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial nint read(int fd, void* buffer, nuint count);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial nint write(int fd, void* buffer, nuint count);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial nint pread(int fd, void* buffer, nuint count, long offset);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial nint preadv(int fd, HostPiece* pieces, int count, long offset);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial nint pwrite(int fd, void* buffer, nuint count, long offset);
    [LibraryImport(C)] internal static partial int posix_fadvise(int fd, long offset, long length, int advice);
    [LibraryImport(C, SetLastError = true)] internal static partial int eventfd(uint initial, int flags);
    [LibraryImport(C, SetLastError = true)] internal static partial int timerfd_create(int clock, int flags);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int timerfd_settime(int fd, int flags, long* newValue, long* oldValue);
    [LibraryImport(C, SetLastError = true)] internal static partial int epoll_create1(int flags);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int epoll_ctl(int epfd, int op, int fd, void* ev);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int epoll_wait(int epfd, void* events, int max, int timeoutMs);
    [LibraryImport(C, SetLastError = true)] internal static partial nint syscall(nint number, nint a1, nint a2, nint a3, nint a4, nint a5, nint a6);
    [LibraryImport(C, SetLastError = true)] internal static partial int isatty(int fd);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int tcgetattr(int fd, void* termios);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int tcsetattr(int fd, int actions, void* termios);
    [LibraryImport(C)] internal static unsafe partial void cfmakeraw(void* termios);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int ioctl(int fd, nuint request, void* argument);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int poll(void* fds, nuint count, int timeoutMs);
    [LibraryImport(C), SuppressGCTransition] internal static unsafe partial int clock_gettime(int clock, long* ts);
    [LibraryImport(C, SetLastError = true)] internal static unsafe partial int execv(byte* path, byte** arguments);
    [LibraryImport(C)] internal static partial nint signal(int number, nint handler);
}
