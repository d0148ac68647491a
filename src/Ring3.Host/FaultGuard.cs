using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>What a registered range of emitted code does when a guest access in it faults.</summary>
public enum ThunkKind
{
    /// <summary>A leaf without a stack frame, called from managed code directly or through the trampoline:
    /// it is left, and its caller meets a null reference.</summary>
    Leaf = 1,
    /// <summary>
    /// Code in which every guest access is directly behind <c>jne rel32; add rax, [rsi+rcx+disp8]</c>: it continues at the target of that jump; or directly
    /// behind <c>nop [rax+rax+disp32]</c>: it continues that far from the access.
    /// </summary>
    Run = 2,
}

/// <summary>
/// The process's first handler of SIGSEGV and SIGBUS: machine code in front of the .NET runtime's handler. A fault in a registered routine continues at the
/// routine's fix-up; a fault of a thread that is inside the guest on registered guest memory becomes a <see cref="NullReferenceException"/> at the access; a
/// write to paged memory that is being written to its store waits; everything else reaches the handler that was there before, unchanged.
/// </summary>
/// <remarks>
/// Installed by the first use, with the system call itself, so that neither the C library nor an interposer of sigaction takes part. It is never removed.
/// SAFETY: the table of routines only grows; an entry's begin is stored last, and the handler stops at the first zero begin.
/// All that the handler reads is unmanaged and never freed.
/// </remarks>
public static partial class FaultGuard
{
    private const int SIGBUS = 7, SIGSEGV = 11, SYS_rt_sigaction = 13;
    private const ulong SA_SIGINFO = 4, SA_RESTORER = 0x04000000, SA_ONSTACK = 0x08000000, SA_NODEFER = 0x40000000;
    private const int MaxRoutines = 255;

    private static readonly RankedLock s_lock = new(LockRank.FaultGuard);
    private static readonly ExecutableMemory s_code = new(8192);
    private static readonly unsafe FaultControl* s_control = (FaultControl*)HostMemory.Map(4096);
    private static readonly nint s_failed = s_code.Add(AccessorCode.Failed());
    private static readonly unsafe delegate* unmanaged[SuppressGCTransition]<ulong> s_threadPointer =
        (delegate* unmanaged[SuppressGCTransition]<ulong>)s_code.Add(FaultHandlerCode.ThreadPointer());
    private static int s_count;

    static FaultGuard() => Install();

    /// <summary>Places a leaf routine without a stack frame; a fault inside returns 1 to its caller.</summary>
    internal static nint Add(ReadOnlySpan<byte> code)
    {
        using (s_lock.Enter())
            return AddLocked(code, s_failed);
    }

    /// <summary>Places a leaf routine whose faults continue at a fix-up of its own.</summary>
    internal static nint Add(ReadOnlySpan<byte> code, ReadOnlySpan<byte> fixup)
    {
        using (s_lock.Enter())
            return AddLocked(code, s_code.Add(fixup));
    }

    /// <summary>Declares a range of emitted code. Never undone: the memory is never freed.</summary>
    public static void AddThunks(nint begin, nuint length, ThunkKind kind)
    {
        using (s_lock.Enter())
            Register((ulong)begin, (ulong)begin + length, (ulong)kind);
    }

    /// <summary>Declares the one piece of emitted code that calls leaves with one saved register between its return address and theirs.</summary>
    public static unsafe void SetTrampoline(nint begin, nuint length)
    {
        s_control->TrampolineBegin = (ulong)begin;
        s_control->TrampolineEnd = (ulong)begin + length;
    }

    private static nint AddLocked(ReadOnlySpan<byte> code, nint fixup)
    {
        nint at = s_code.Add(code);
        Register((ulong)at, (ulong)at + (ulong)code.Length, (ulong)fixup);
        return at;
    }

    private static unsafe void Register(ulong begin, ulong end, ulong fixup)
    {
        if (s_count == MaxRoutines)
            throw new InvalidOperationException("too many ranges of emitted code");
        FaultRoutine* r = s_control->Routines + s_count++;
        r->End = end;
        r->Fixup = fixup;
        Volatile.Write(ref r->Begin, begin);
    }

    private static unsafe void Install()
    {
        FaultControl* c = s_control;
        c->Routines = (FaultRoutine*)HostMemory.Map((MaxRoutines + 1) * (nuint)sizeof(FaultRoutine));
        c->Ranges = c->RangesEnd = (GuestRange*)HostMemory.Map(MaxRanges * (nuint)sizeof(GuestRange));
        c->Paged = c->PagedEnd = (GuestRange*)HostMemory.Map(MaxPaged * (nuint)sizeof(GuestRange));
        c->WaitNanoseconds = PagedWaitNs;
        c->Records = (FaultRecord*)HostMemory.Map(FaultRecord.Count * (nuint)sizeof(FaultRecord));
        (c->CodeBegin, c->CodeEnd) = ManagedCode();
        KernelAction action = new()
        {
            Handler = (ulong)s_code.Add(new FaultHandlerCode(c).Handler()),
            Restorer = (ulong)s_code.Add(FaultHandlerCode.Restorer()),
            Flags = SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_NODEFER,
        };
        // A SIGBUS may become the runtime's SIGSEGV at once: know both previous actions before the first of ours.
        Swap(SIGSEGV, null, &c->PreviousSegv);
        Swap(SIGBUS, null, &c->PreviousBus);
        Swap(SIGSEGV, &action, &c->PreviousSegv);
        Swap(SIGBUS, &action, &c->PreviousBus);
    }

    private static unsafe void Swap(int signal, KernelAction* action, KernelAction* previous)
    {
        if (Libc.syscall(SYS_rt_sigaction, signal, (nint)action, (nint)previous, 8, 0, 0) != 0)
            throw new IOException($"rt_sigaction: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
    }

    /// <summary>With ahead-of-time compilation, the mapping that holds this assembly's code; a just-in-time compiler can put code anywhere.</summary>
    private static unsafe (ulong Begin, ulong End) ManagedCode()
    {
        if (RuntimeFeature.IsDynamicCodeSupported)
            return (0, ulong.MaxValue);
        ulong here = (ulong)(delegate*<void>)&Install;
        foreach (string line in File.ReadLines("/proc/self/maps"))
        {
            int dash = line.IndexOf('-'), space = line.IndexOf(' ');
            ulong begin = Convert.ToUInt64(line[..dash], 16), end = Convert.ToUInt64(line[(dash + 1)..space], 16);
            if (here >= begin && here < end)
                return (begin, end);
        }
        return (0, ulong.MaxValue);
    }
}
