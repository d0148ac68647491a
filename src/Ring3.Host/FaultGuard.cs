using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>
/// The process's first handler of SIGSEGV and SIGBUS: machine code in front of the .NET runtime's handler. A fault in a registered routine continues at the routine's fix-up;
/// everything else reaches the handler that was there before, unchanged.
/// </summary>
/// <remarks>
/// Installed by the first use, with the system call itself, so that neither the C library nor an interposer of sigaction takes part. It is never removed.
/// SAFETY: the table only grows; an entry's begin is stored last, and the handler stops at the first zero begin.
/// </remarks>
public static unsafe class FaultGuard
{
    private const int SIGBUS = 7, SIGSEGV = 11, SYS_rt_sigaction = 13;
    private const ulong SA_SIGINFO = 4, SA_RESTORER = 0x04000000, SA_ONSTACK = 0x08000000, SA_NODEFER = 0x40000000;
    private const int MaxRoutines = 128;

    /// <summary>A routine and where its faults continue.</summary>
    private struct Routine
    {
        public ulong Begin, End, Fixup;
    }

    /// <summary>The kernel's struct sigaction.</summary>
    private struct KernelAction
    {
        public ulong Handler, Flags, Restorer, Mask;
    }

    private static readonly Lock s_lock = new();
    private static readonly ExecutableMemory s_code = new(8192);
    private static readonly Routine* s_routines = (Routine*)HostMemory.Map((nuint)((MaxRoutines + 1) * sizeof(Routine)) + 2 * (nuint)sizeof(KernelAction));
    private static readonly KernelAction* s_previous = (KernelAction*)(s_routines + MaxRoutines + 1);
    private static readonly nint s_failed = s_code.Add(FaultCode.Failed);
    private static int s_count;

    static FaultGuard() => Install();

    /// <summary>Places a leaf routine without a stack frame; a fault inside returns 1 to its caller.</summary>
    internal static nint Add(ReadOnlySpan<byte> code)
    {
        lock (s_lock)
            return AddLocked(code, s_failed);
    }

    /// <summary>Places a leaf routine whose faults continue at a fix-up of its own.</summary>
    internal static nint Add(ReadOnlySpan<byte> code, ReadOnlySpan<byte> fixup)
    {
        lock (s_lock)
            return AddLocked(code, s_code.Add(fixup));
    }

    private static nint AddLocked(ReadOnlySpan<byte> code, nint fixup)
    {
        nint at = s_code.Add(code);
        Register((ulong)at, (ulong)at + (ulong)code.Length, (ulong)fixup);
        return at;
    }

    private static void Register(ulong begin, ulong end, ulong fixup)
    {
        if (s_count == MaxRoutines)
            throw new InvalidOperationException("too many routines with a fix-up");
        Routine* r = s_routines + s_count++;
        r->End = end;
        r->Fixup = fixup;
        Volatile.Write(ref r->Begin, begin);
    }

    private static void Install()
    {
        Span<byte> handler = stackalloc byte[FaultCode.Handler.Length];
        FaultCode.Handler.CopyTo(handler);
        MemoryMarshal.Write(handler[FaultCode.HandlerTable..], (ulong)s_routines);
        MemoryMarshal.Write(handler[FaultCode.HandlerPrevious..], (ulong)s_previous);
        KernelAction action = new()
        {
            Handler = (ulong)s_code.Add(handler),
            Restorer = (ulong)s_code.Add(FaultCode.Restorer),
            Flags = SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_NODEFER,
        };
        InstallSignal(SIGSEGV, &action, s_previous);
        InstallSignal(SIGBUS, &action, s_previous + 1);
    }

    private static void InstallSignal(int signal, KernelAction* action, KernelAction* previous)
    {
        // The previous action is complete before ours can run: a fault of another thread may come at once.
        if (Libc.syscall(SYS_rt_sigaction, signal, 0, (nint)previous, 8, 0, 0) != 0 || Libc.syscall(SYS_rt_sigaction, signal, (nint)action, (nint)previous, 8, 0, 0) != 0)
            throw new IOException($"rt_sigaction: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
    }
}
