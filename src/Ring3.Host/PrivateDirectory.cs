using System.Runtime.InteropServices;
using System.Text;

namespace Ring3.Host;

/// <summary>A directory that belongs to this user and that nobody else can look into, change or have put there.</summary>
/// <remarks>SAFETY: paths are pinned for the call; struct stat has 144 bytes, its mode at 24 and its owner at 28.</remarks>
public sealed class PrivateDirectory : IDisposable
{
    private const int Exclusive = 2, Unlock = 8;
    private readonly int _fd;

    private PrivateDirectory(int fd, string path) => (_fd, Path) = (fd, path);

    public string Path { get; }

    /// <summary>Opens it, and makes it where it is not there. 0; -EPERM when it is another's, or others may use it; -ENOTDIR when it is something else, a
    /// symbolic link for instance; or what the host says.</summary>
    public static unsafe int TryOpen(string path, out PrivateDirectory? directory)
    {
        const int MakeDirectory = 83, OpenAt = 257, FileStatus = 5, Here = -100;
        const int DirectoryOnly = 0x10000, NoFollow = 0x20000, Cloexec = 0x80000;
        const int EPERM = 1, EEXIST = 17, StatusBytes = 144, ModePlace = 24, OwnerPlace = 28;
        const uint OwnerOnly = 0x1c0, Others = 0x3f;
        directory = null;
        int fd;
        fixed (byte* p = Encoding.UTF8.GetBytes(path + "\0"))
        {
            if (Libc.syscall(MakeDirectory, (nint)p, (nint)OwnerOnly, 0, 0, 0, 0) != 0 && Marshal.GetLastPInvokeError() is var error and not EEXIST)
                return -error;
            fd = (int)Libc.syscall(OpenAt, Here, (nint)p, DirectoryOnly | NoFollow | Cloexec, 0, 0, 0);
        }
        if (fd < 0)
            return -Marshal.GetLastPInvokeError();
        byte* status = stackalloc byte[StatusBytes];
        if (Libc.syscall(FileStatus, fd, (nint)status, 0, 0, 0, 0) != 0 || *(uint*)(status + OwnerPlace) != Privileges.Identity.User
            || (*(uint*)(status + ModePlace) & Others) != 0)
        {
            _ = Libc.close(fd);
            return -EPERM;
        }
        directory = new PrivateDirectory(fd, path);
        return 0;
    }

    /// <summary>Waits until no other process has it, and has it until <see cref="Dispose"/>.</summary>
    public void Enter()
    {
        while (Libc.syscall(73 /* flock */, _fd, Exclusive, 0, 0, 0, 0) != 0 && Marshal.GetLastPInvokeError() == Libc.EINTR)
        {
        }
    }

    public void Dispose()
    {
        _ = Libc.syscall(73 /* flock */, _fd, Unlock, 0, 0, 0, 0);
        _ = Libc.close(_fd);
    }
}
