using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>Bytes of a local stream socket that descriptors come with.</summary>
/// <remarks>SAFETY: spans are pinned for the call; message headers are laid out as struct msghdr, iovec and cmsghdr of x86-64 in locals of their
/// size.</remarks>
public static class DescriptorMessage
{
    /// <summary>Descriptors of one message.</summary>
    public const int MaxDescriptors = 8;

    private const int NoSignal = 0x4000, HeaderBytes = 56, ControlHeader = 16, ControlBytes = ControlHeader + 4 * MaxDescriptors, Rights = 1, SolSocket = 1;
    private const int VectorPlace = 16, ControlPlace = 32;

    /// <summary>Sends everything, and descriptors with the first byte, waiting for room: 0 or -errno.</summary>
    public static unsafe int Send(int socket, ReadOnlySpan<byte> data, params ReadOnlySpan<int> descriptors)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(descriptors.Length, MaxDescriptors);
        byte* header = stackalloc byte[HeaderBytes], control = stackalloc byte[ControlBytes];
        nint* vector = stackalloc nint[2];
        fixed (byte* p = data)
        {
            for (int done = 0; done < data.Length;)
            {
                Lay(header, vector, p + done, data.Length - done);
                if (done == 0 && descriptors.Length != 0)
                {
                    int length = ControlHeader + 4 * descriptors.Length;
                    *(nint*)control = length;
                    (*(int*)(control + 8), *(int*)(control + 12)) = (SolSocket, Rights);
                    descriptors.CopyTo(new Span<int>(control + ControlHeader, MaxDescriptors));
                    *(byte**)(header + ControlPlace) = control;
                    *(nint*)(header + ControlPlace + 8) = (length + 7) & ~7;
                }
                nint n = Libc.syscall(46 /* sendmsg */, socket, (nint)header, NoSignal, 0, 0, 0);
                if (n >= 0)
                    done += (int)n;
                else if (Marshal.GetLastPInvokeError() is var error and not Libc.EINTR)
                    return -error;
            }
        }
        return 0;
    }

    /// <summary>Takes what is there, without waiting if the socket does not: bytes, 0 when the other end is closed, or -errno.</summary>
    /// <param name="socket">Whose.</param>
    /// <param name="buffer">Room for bytes.</param>
    /// <param name="descriptors">Room for <see cref="MaxDescriptors"/>; those that came belong to the caller. The system closes what has no room.</param>
    /// <param name="count">How many came.</param>
    public static unsafe int Receive(int socket, Span<byte> buffer, Span<int> descriptors, out int count)
    {
        const int CloseOnExec = 0x40000000;
        ArgumentOutOfRangeException.ThrowIfLessThan(descriptors.Length, MaxDescriptors);
        byte* header = stackalloc byte[HeaderBytes], control = stackalloc byte[ControlBytes];
        nint* vector = stackalloc nint[2];
        count = 0;
        fixed (byte* p = buffer)
        {
            nint n;
            do
            {
                Lay(header, vector, p, buffer.Length);
                *(byte**)(header + ControlPlace) = control;
                *(nint*)(header + ControlPlace + 8) = ControlBytes;
                n = Libc.syscall(47 /* recvmsg */, socket, (nint)header, CloseOnExec, 0, 0, 0);
            }
            while (n < 0 && Marshal.GetLastPInvokeError() == Libc.EINTR);
            if (n < 0)
                return -Marshal.GetLastPInvokeError();
            nint length = *(nint*)(header + ControlPlace + 8) >= ControlHeader ? *(nint*)control : 0;
            if (length > ControlHeader && length <= ControlBytes && (*(int*)(control + 8), *(int*)(control + 12)) == (SolSocket, Rights))
            {
                count = (int)(length - ControlHeader) / sizeof(int);
                new ReadOnlySpan<int>(control + ControlHeader, count).CopyTo(descriptors);
            }
            return (int)n;
        }
    }

    private static unsafe void Lay(byte* header, nint* vector, byte* data, int bytes)
    {
        new Span<byte>(header, HeaderBytes).Clear();
        (vector[0], vector[1]) = ((nint)data, bytes);
        *(nint**)(header + VectorPlace) = vector;
        *(nint*)(header + VectorPlace + 8) = 1;
    }
}
