using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Sync;

/// <summary>
/// Read-copy-update for the whole process. Readers pay two plain stores to a line of their own; writers pay a process-wide barrier.
/// </summary>
/// <remarks>
/// <para>Usage. A reader brackets its loads of published pointers with <see cref="Enter"/> and <see cref="Exit"/> (sections nest). A writer unlinks an object,
/// then calls
/// <see cref="Synchronize"/>, or hands it to a reclaimer that does, and only then frees or reuses it.</para>
/// <para>Rules. Never synchronize inside a section: it would wait for itself. Never take a lock inside a section that a thread holds across
/// <see cref="Synchronize"/> (the slots lock).
/// Threads outside a section are quiescent; in particular a vCPU is outside while it runs guest code, so page tables that the processor may be walking are
/// protected by the waiting TLB flush, not by RCU. A table page is freed only after both.</para>
/// <para>Implementation. <see cref="Enter"/> announces the current epoch; <see cref="Synchronize"/> advances the epoch, executes a barrier on every thread, and
/// waits until no thread announces an older one. A reader whose announcement the scan did not see has not passed the barrier's point yet, so its loads come
/// after it and see the unlinking.</para>
/// </remarks>
public static class Rcu
{
    [StructLayout(LayoutKind.Sequential, Size = 128)]
    private struct Reader
    {
        /// <summary>Epoch announced by the outermost section, 0 outside. Written by the owner only.</summary>
        public long Epoch;
        public int Nesting;
        public int ThreadId;
        /// <summary>1 while a thread owns the record. Records are reused, never freed.</summary>
        public int Owned;
        public unsafe Reader* Next;
    }

    /// <summary>Gives a record back when its thread is gone.</summary>
    private sealed class Owner(nint reader)
    {
        // SAFETY: records live for the whole process.
        unsafe ~Owner() => Volatile.Write(ref ((Reader*)reader)->Owned, 0);
    }

    private static long s_epoch = 1;
    private static nint s_readers;
    private static long s_synchronizeCount;
    [ThreadStatic] private static unsafe Reader* t_reader;
    [ThreadStatic] private static Owner? t_owner;

    /// <summary>Raised by a writer that has waited <see cref="StallWarningNs"/> for the reader thread named in the text.</summary>
    public static event Action<string>? Stalled;

    /// <summary>Time after which <see cref="Stalled"/> is raised, in nanoseconds.</summary>
    public static long StallWarningNs { get; set; } = 10_000_000_000;

    /// <summary>Grace periods completed since the process started.</summary>
    public static long GracePeriods => Volatile.Read(ref s_synchronizeCount);

    /// <summary>True if the calling thread is inside a read section.</summary>
    public static unsafe bool InSection => t_reader != null && t_reader->Nesting != 0;

    /// <summary>Begins a read section. Cheap; nests; must be ended by the same thread.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void Enter()
    {
        // SAFETY: t_reader is this thread's record, which lives for ever.
        Reader* r = t_reader;
        if (r == null)
            r = Register();
        if (r->Nesting++ == 0)
        {
            LockOrder.Section(1);
            // PAIRS-WITH: Synchronize (process-wide barrier): orders this store before the section's loads.
            Volatile.Write(ref r->Epoch, Volatile.Read(ref s_epoch));
        }
    }

    /// <summary>Ends a read section.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void Exit()
    {
        // SAFETY: as in Enter.
        Reader* r = t_reader;
        Debug.Assert(r != null && r->Nesting > 0, "Rcu.Exit without Enter");
        if (--r->Nesting == 0)
        {
            Volatile.Write(ref r->Epoch, 0);
            LockOrder.Section(-1);
        }
    }

    /// <summary><c>using (Rcu.Read())</c>: a section for a block.</summary>
    public static Section Read()
    {
        Enter();
        return default;
    }

    /// <summary>An open read section.</summary>
    public readonly ref struct Section
    {
        public void Dispose() => Exit();
    }

    /// <summary>The thread must be in a section (<see cref="LockOrder.IsChecked"/>).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AssertInSection() => LockOrder.AssertInSection();

    /// <summary>Waits until every read section that was open at the call has ended.</summary>
    public static unsafe void Synchronize()
    {
        LockOrder.WaitingForReaders();
        long epoch = Interlocked.Increment(ref s_epoch);
        // PAIRS-WITH: Enter. Turns every reader's compiler-ordered announcement into a globally ordered one.
        Interlocked.MemoryBarrierProcessWide();
        for (Reader* r = (Reader*)Volatile.Read(ref s_readers); r != null; r = r->Next)
            WaitFor(r, epoch);
        Interlocked.Increment(ref s_synchronizeCount);
    }

    private static unsafe void WaitFor(Reader* r, long epoch)
    {
        var backoff = new Backoff();
        long start = 0;
        while (Volatile.Read(ref r->Epoch) is var e && e != 0 && e < epoch)
        {
            backoff.Pause();
            if (!backoff.IsSleeping)
                continue;
            long now = HostClock.MonotonicNs();
            if (start == 0)
                start = now;
            else if (now - start > StallWarningNs)
            {
                Stalled?.Invoke($"RCU: thread {r->ThreadId} has been in a read section for {(now - start) / 1_000_000} ms");
                start = now;
            }
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static unsafe Reader* Register()
    {
        Reader* r = (Reader*)Volatile.Read(ref s_readers);
        while (r != null && Interlocked.CompareExchange(ref r->Owned, 1, 0) != 0)
            r = r->Next;
        if (r == null)
        {
            r = (Reader*)NativeMemory.AlignedAlloc((nuint)sizeof(Reader), 128);
            *r = default;
            r->Owned = 1;
            nint head;
            do
            {
                head = Volatile.Read(ref s_readers);
                r->Next = (Reader*)head;
            } while (Interlocked.CompareExchange(ref s_readers, (nint)r, head) != head);
        }
        r->ThreadId = Environment.CurrentManagedThreadId;
        r->Nesting = 0;
        t_owner = new Owner((nint)r);
        t_reader = r;
        return r;
    }
}
