using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>
/// A region for emitted code, mapped twice from one memfd: writable at <see cref="Write"/>, executable at <see cref="Execute"/>, so that no page is ever both.
/// Bump-allocated; freed as a whole.
/// </summary>
/// <remarks>SAFETY: Add checks the bounds before it copies; code is only reached through addresses that Add returned.</remarks>
public sealed class ExecutableMemory : IDisposable
{
    private readonly nuint _size;
    private readonly unsafe byte* _write, _execute;
    private nuint _used;

    public unsafe ExecutableMemory(nuint bytes)
    {
        _size = (bytes + 4095) & ~(nuint)4095;
        byte* name = stackalloc byte[] { (byte)'r', (byte)'3', 0 };
        int fd = Libc.memfd_create(name, 1);
        if (fd < 0)
            throw new IOException($"memfd_create: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
        try
        {
            if (Libc.ftruncate(fd, (long)_size) != 0)
                throw new IOException($"ftruncate: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
            _write = HostMemory.MapShared(fd, _size);
            void* x = Libc.mmap(null, _size, Libc.PROT_READ | Libc.PROT_EXEC, Libc.MAP_SHARED, fd, 0);
            if (x == (void*)-1)
                throw new IOException($"cannot map executable memory: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
            _execute = (byte*)x;
        }
        finally { _ = Libc.close(fd); }
    }

    /// <summary>Why this system gives no such memory, as where a policy (seccomp, SELinux) refuses it. Null: it does.</summary>
    public static string? Refusal()
    {
        try
        {
            using var memory = new ExecutableMemory(1);
            return null;
        }
        catch (IOException e)
        {
            return e.Message;
        }
    }

    /// <summary>Copies code in and returns its executable address, 16-byte aligned. Not thread-safe.</summary>
    public unsafe nint Add(ReadOnlySpan<byte> code)
    {
        _used = (_used + 15) & ~(nuint)15;
        if (_used + (nuint)code.Length > _size)
            throw new OutOfMemoryException("executable memory region is full");
        code.CopyTo(new Span<byte>(_write + _used, code.Length));
        nint at = (nint)(_execute + _used);
        _used += (nuint)code.Length;
        return at;
    }

    /// <summary>Executable address at which the next <see cref="Add"/> will place its code.</summary>
    public unsafe nint Next => (nint)(_execute + ((_used + 15) & ~(nuint)15));
    public nuint Free => _size - _used;

    /// <summary>First byte of the executable view, and of the writable one, for an owner that lays the region out itself.</summary>
    public unsafe nint ExecuteBase => (nint)_execute;
    public unsafe byte* WriteBase => _write;

    public unsafe void Dispose()
    {
        HostMemory.Unmap(_write, _size);
        HostMemory.Unmap(_execute, _size);
    }
}
