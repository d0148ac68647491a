using Ring3.Abi;
using Ring3.Host;

namespace Ring3.DevKvm;

/// <summary>Makes the descriptor and the handle of a new object.</summary>
internal static class Descriptors
{
    /// <summary>A descriptor (an empty memfd) for an object: 0, or -errno with the object not in the table.</summary>
    public static int Create(KvmObject o, string name, out NewFd fd)
    {
        int memfd = MemFd.Create(name, 0);
        fd = default;
        return memfd < 0 ? memfd : Publish(o, memfd, out fd);
    }

    /// <summary>Enters an object in the table under a descriptor that exists. 0, or -ENFILE with the descriptor closed.</summary>
    public static int Publish(KvmObject o, int memfd, out NewFd fd)
    {
        fd = default;
        if (!ObjectTable.TryAdd(o))
        {
            MemFd.Close(memfd);
            return -Errno.ENFILE;
        }
        fd = new NewFd { Handle = o.Handle, Fd = memfd, Kind = (int)o.Kind };
        return 0;
    }
}
