namespace Ring3.Host;

/// <summary>Facts about descriptors of the process.</summary>
public static class FileDescriptor
{
    /// <summary>What /proc says the descriptor is open on ("/dev/vfio/7", "anon_inode:[eventfd]"); null when it is closed.</summary>
    public static string? LinkTarget(int fd)
    {
        if (fd < 0)
            return null;
        try { return new FileInfo($"/proc/self/fd/{fd}").LinkTarget; }
        catch (IOException) { return null; }
        catch (UnauthorizedAccessException) { return null; }
    }

    /// <summary>Closes a descriptor that was made for another program, which has it now.</summary>
    public static void Close(int fd) => _ = Libc.close(fd);

    /// <summary>The descriptor stays open in a program that this process executes.</summary>
    public static void KeepOnExec(int fd) => _ = Libc.fcntl(fd, 2 /* F_SETFD */, 0);
}
