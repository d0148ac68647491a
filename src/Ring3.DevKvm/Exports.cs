using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using Ring3.Host;

namespace Ring3.DevKvm;

/// <summary>The C interface of libring3-core.so: native/core.h describes the same functions for the interposer.</summary>
/// <remarks>
/// No exception crosses into C: what escapes the front door is an invariant that broke, reported as EIO.
/// SAFETY: the interposer passes valid pointers of its own; client addresses are numbers that only the checked copy routine follows.
/// </remarks>
internal static class Exports
{
    /// <summary>struct r3_host.</summary>
    public struct HostCalls
    {
        public unsafe delegate* unmanaged<int, ulong> FdHandle;
    }

    /// <summary>struct r3_shared.</summary>
    public struct Shared
    {
        public unsafe ulong* ClientBounds;
        public unsafe byte* IrqfdHints;
    }

    /// <summary>Says of which version this library is: the interposer's own, or they are of two installations.</summary>
    [UnmanagedCallersOnly(EntryPoint = "r3_version")]
    public static unsafe int Version(byte* text, int size)
    {
        try
        {
            string version = typeof(Exports).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()!.InformationalVersion;
            var to = new Span<byte>(text, size);
            if (!Encoding.UTF8.TryGetBytes(version, to[..^1], out int length))
                return -Abi.Errno.E2BIG;
            to[length] = 0;
            return 0;
        }
        catch (Exception)
        {
            return -Abi.Errno.EIO;
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_init")]
    public static unsafe int Init(HostCalls* host, Shared* shared)
    {
        try
        {
            KvmDevice.FdHandle = host->FdHandle;
            shared->ClientBounds = KvmDevice.ClientMemoryBounds;
            shared->IrqfdHints = KvmDevice.IrqfdHints;
            // The fault handler must be in front of the runtime's before the client can replace either.
            RuntimeHelpers.RunClassConstructor(typeof(FaultGuard).TypeHandle);
            return 0;
        }
        catch (Exception)
        {
            return -Abi.Errno.EIO;
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_open")]
    public static unsafe long Open(NewFd* made)
    {
        try
        {
            return KvmDevice.Open(out *made);
        }
        catch (Exception e)
        {
            return Broken("open", e);
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_ioctl")]
    public static unsafe long Ioctl(ulong handle, uint command, ulong argument, NewFd* made)
    {
        try
        {
            return KvmDevice.Ioctl(handle, command, argument, out *made);
        }
        catch (Exception e)
        {
            return Broken("ioctl", e);
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_run")]
    public static long Run(ulong handle, ulong argument, int thread)
    {
        try
        {
            return KvmDevice.Run(handle, argument, thread);
        }
        catch (Exception e)
        {
            return Broken("ioctl", e);
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_release")]
    public static void Release(ulong handle)
    {
        try
        {
            KvmDevice.Release(handle);
        }
        catch (Exception e)
        {
            Broken("close", e);
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_read")]
    public static unsafe long Read(ulong handle, byte* buffer, ulong length, long offset)
    {
        try
        {
            return KvmDevice.Read(handle, buffer, length, offset);
        }
        catch (Exception e)
        {
            return Broken("read", e);
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_irqfd_write")]
    public static int IrqfdWrite(int fd, ulong buffer)
    {
        try
        {
            return KvmDevice.TryWriteIrqfd(fd, buffer) ? 1 : 0;
        }
        catch (Exception e)
        {
            Broken("write", e);
            return 0;
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_vcpu_signal")]
    public static nint VcpuSignal(ulong handle) => KvmDevice.VcpuSignalAddress(handle);

    [UnmanagedCallersOnly(EntryPoint = "r3_invalidate_start")]
    public static int InvalidateStart(ulong lo, ulong hi)
    {
        try
        {
            return KvmDevice.InvalidateStart(lo, hi) ? 1 : 0;
        }
        catch (Exception e)
        {
            Broken("invalidate", e);
            return 0;
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_invalidate_end")]
    public static void InvalidateEnd(ulong lo, ulong hi)
    {
        try
        {
            KvmDevice.InvalidateEnd(lo, hi);
        }
        catch (Exception e)
        {
            Broken("invalidate", e);
        }
    }

    [UnmanagedCallersOnly(EntryPoint = "r3_at_exit")]
    public static void AtExit()
    {
        try
        {
            KvmDevice.ProcessEnds();
        }
        catch (Exception e)
        {
            Broken("exit", e);
        }
    }

    private static long Broken(string call, Exception e)
    {
        const int StandardError = 2;
        // The terminal belongs to the client: one line, and only for a defect.
        string text = $"ring3: internal error in {call}: {e.GetType().Name}: {e.Message.ReplaceLineEndings(" ")}\n";
        if (Environment.GetEnvironmentVariable("RING3_DEBUG") is not null)
            text += $"{e}\n";
        _ = Terminal.WriteAll(StandardError, Encoding.UTF8.GetBytes(text), out string _);
        return -Abi.Errno.EIO;
    }
}
