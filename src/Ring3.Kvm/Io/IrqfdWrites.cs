using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Host;

namespace Ring3.Kvm;

/// <summary>
/// Writes of the process's own threads to eventfds that are irqfds. KVM injects in the thread that writes; a host that sees the client's writes first can have
/// the same from here, and the event loop need not wake up.
/// Everything else (other processes, duplicates, other values) reaches the irqfd through the event loop.
/// </summary>
/// <remarks>
/// The table is a hint by the client's descriptor number. A number may mean something else since:
/// <see cref="Irqfd.TryDeliver"/> asks the kernel each time, and a hint that was wrong is dropped.
/// SAFETY: Hints has <see cref="Slots"/> bytes and is never freed; every index is checked against Slots.
/// </remarks>
public static class IrqfdWrites
{
    /// <summary>Descriptor numbers that can have a hint.</summary>
    public const int Slots = 1 << 14;

    private static readonly RankedLock s_lock = new(LockRank.IrqfdWrites);
    private static Irqfd?[] s_irqfds = [];
    private static unsafe byte* s_hints;

    /// <summary>From now on irqfds are entered here. Returns <see cref="Slots"/> bytes by descriptor number, not 0 where a write is worth a call;
    /// valid until the process ends.</summary>
    public static unsafe byte* Enable()
    {
        using (s_lock.Enter())
        {
            if (s_hints == null)
            {
                s_hints = (byte*)NativeMemory.AllocZeroed(Slots);
                Volatile.Write(ref s_irqfds, new Irqfd?[Slots]);
            }
            return s_hints;
        }
    }

    /// <summary>Stands for write(<paramref name="fd"/>, <paramref name="buffer"/>, 8). True: done, all 8 bytes are written.
    /// False: nothing was done, the write itself is to be made.</summary>
    /// <param name="buffer">The client's address, which may be wrong.</param>
    public static bool TryWrite(int fd, ulong buffer)
    {
        Irqfd?[] irqfds = Volatile.Read(ref s_irqfds);
        if ((uint)fd >= (uint)irqfds.Length || Volatile.Read(ref irqfds[fd]) is not { } irqfd)
            return false;
        // One is what every semaphore and every counter takes as one event.
        if (!UserCopy.TryRead(buffer, out ulong value) || value != 1)
            return false;
        try
        {
            if (irqfd.TryDeliver(fd))
                return true;
        }
        catch (Exception e) when (e is not OutOfMemoryException)
        {
            irqfd.Failed(e);
            return true;
        }
        Forget(irqfd, fd);
        return false;
    }

    /// <summary>The newest irqfd of a number has it, as the newest waiter of an eventfd gets its count.</summary>
    internal static unsafe void Add(Irqfd irqfd)
    {
        using (s_lock.Enter())
        {
            if ((uint)irqfd.ClientFd >= (uint)s_irqfds.Length)
                return;
            Volatile.Write(ref s_irqfds[irqfd.ClientFd], irqfd);
            Volatile.Write(ref s_hints[irqfd.ClientFd], 1);
        }
    }

    internal static void Remove(Irqfd irqfd) => Forget(irqfd, irqfd.ClientFd);

    private static unsafe void Forget(Irqfd irqfd, int fd)
    {
        using (s_lock.Enter())
        {
            if ((uint)fd >= (uint)s_irqfds.Length || s_irqfds[fd] != irqfd)
                return;
            Volatile.Write(ref s_hints[fd], 0);
            Volatile.Write(ref s_irqfds[fd], null);
        }
    }
}
