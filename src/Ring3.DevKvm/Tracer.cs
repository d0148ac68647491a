namespace Ring3.DevKvm;

/// <summary>RING3_TRACE=ioctl[:FILE].</summary>
internal static class Tracer
{
    public static readonly bool IsOn;

    public static void Open(long result, in NewFd fd)
    {
    }

    public static long Ioctl(KvmObject o, uint command, ulong argument, out NewFd fd) => KvmDevice.Call(o, command, argument, out fd);

    public static void Close(KvmObject o)
    {
    }

    public static void VmFreed(VmObject vm)
    {
    }
}
