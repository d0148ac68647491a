namespace Ring3.Abi;

/// <summary>Linux errno values. Calls of the KVM interface return 0 or a positive result, or the negated errno that api.rst documents.</summary>
public static class Errno
{
    public const int EPERM = 1, ENOENT = 2, ENFILE = 23, EMFILE = 24, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, EBADF = 9, EAGAIN = 11, ENOMEM = 12,
        EFAULT = 14, EBUSY = 16, EEXIST = 17, ENODEV = 19, EINVAL = 22, ENOTTY = 25, ENOSPC = 28;
    public const int ENOSYS = 38, EOPNOTSUPP = 95, ENOBUFS = 105, ENOTCONN = 107, ETIMEDOUT = 110;
}
