using Ring3.Host;

namespace Ring3.Xen;

/// <summary>
/// Atomic operations on words that are shared with the guest. Each is one or more locked host instructions with a fix-up: memory that has gone gives false,
/// never a signal.
/// A word that the guest has placed across a cache line is changed byte by byte: bits do not depend on each other, and a split lock would stop the host.
/// </summary>
/// <remarks>A locked instruction is a full fence, as the protocols between hypervisor and guest expect.</remarks>
internal static class GuestBits
{
    /// <summary>Sets bits of a 64-bit word. False: the memory is not there.</summary>
    public static bool Or64(ulong hva, ulong bits, out ulong old)
    {
        if (UserCopy.IsSplit(hva, 8))
            return ChangeBytes(hva, 8, bits, 0, out old);
        if (!UserCopy.TryRead8(hva, out old))
            return false;
        while (true)
        {
            if (!UserCopy.CompareExchange(hva, old | bits, old, out ulong seen))
                return false;
            if (seen == old)
                return true;
            old = seen;
        }
    }

    /// <summary>Sets bits of a 32-bit word.</summary>
    public static bool Or32(ulong hva, uint bits, out uint old) => Change32(hva, bits, 0, out old);

    /// <summary>Clears bits of a 32-bit word.</summary>
    public static bool AndNot32(ulong hva, uint bits, out uint old) => Change32(hva, 0, bits, out old);

    private static bool Change32(ulong hva, uint set, uint clear, out uint old)
    {
        if (UserCopy.IsSplit(hva, 4))
        {
            bool done = ChangeBytes(hva, 4, set, clear, out ulong was);
            old = (uint)was;
            return done;
        }
        if (!UserCopy.TryRead4(hva, out old))
            return false;
        while (true)
        {
            if (!UserCopy.CompareExchange(hva, old & ~clear | set, old, out uint seen))
                return false;
            if (seen == old)
                return true;
            old = seen;
        }
    }

    private static bool ChangeBytes(ulong hva, int size, ulong set, ulong clear, out ulong old)
    {
        old = 0;
        for (int i = 0; i < size; i++)
        {
            byte on = (byte)(set >> 8 * i), off = (byte)(clear >> 8 * i);
            if (!UserCopy.TryRead1(hva + (ulong)i, out byte now))
                return false;
            while ((on | off) != 0)
            {
                if (!UserCopy.CompareExchange(hva + (ulong)i, (byte)(now & ~off | on), now, out byte seen))
                    return false;
                if (seen == now)
                    break;
                now = seen;
            }
            old |= (ulong)now << 8 * i;
        }
        return true;
    }
}
