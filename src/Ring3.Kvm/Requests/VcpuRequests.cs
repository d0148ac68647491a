using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using Ring3.Host;

namespace Ring3.Kvm;

/// <summary>
/// Mode, request word and sleep state of one vCPU, and both sides of the protocol between it and the threads that want something of it. See docs/requests.md.
///
/// The core is a Dekker pair: a requester sets a bit, fences, reads the mode; the vCPU sets its mode, fences, reads the bits. At least one of them sees the
/// other's store, so a request is either seen before the entry or followed by a kick. The same shape covers sleeping (Blocked against the condition) and
/// acknowledging (ExitSequence against Waiters).
/// </summary>
/// <remarks>SAFETY: the block lies in a pinned array that lives as long as this object, so a late kick by a client that has disposed
/// of its VM touches nothing else.</remarks>
internal sealed class VcpuRequests
{
    [StructLayout(LayoutKind.Explicit, Size = 192)]
    private struct Block
    {
        // Line 1: written by the vCPU at every entry and exit, by requesters when they want something.
        [FieldOffset(0)] public ulong Requests;
        [FieldOffset(8)] public int Mode;
        /// <summary>Counts departures from guest mode (and from reading).
        /// Waiters sleep on it; it wraps after 2^32 exits within one wait, which the kick makes impossible.</summary>
        [FieldOffset(12)] public int ExitSequence;
        [FieldOffset(16)] public int Waiters;
        // Line 2: sleeping.
        [FieldOffset(64)] public int Blocked;
        [FieldOffset(68)] public int WakeSequence;
        // Line 3: counters, written by requesters.
        [FieldOffset(128)] public RequestCounters Counters;
    }

    private readonly byte[] _memory;
    private readonly unsafe Block* _b;
    private readonly unsafe int* _exitRequest;

    /// <summary>Looks at the exit sequence before a waiter sleeps: 20 to 50 us, the price of falling asleep and being woken.</summary>
    private static readonly int s_looks = Environment.ProcessorCount > 1 ? 1000 : 0;

    /// <summary>Word that the running processor polls.</summary>
    internal unsafe VcpuRequests(int* exitRequest)
    {
        _exitRequest = exitRequest;
        _memory = GC.AllocateArray<byte>(sizeof(Block) + 64, pinned: true);
        _b = (Block*)(((nuint)Unsafe.AsPointer(ref _memory[0]) + 63) & ~(nuint)63);
    }

    public unsafe VcpuMode Mode => (VcpuMode)Volatile.Read(ref _b->Mode);
    internal unsafe bool AnyPending
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Volatile.Read(ref _b->Requests) != 0;
    }
    internal unsafe bool IsBlocked => Volatile.Read(ref _b->Blocked) != 0;
    internal unsafe ulong PendingBits => Volatile.Read(ref _b->Requests);

    /// <summary>What was asked of this vCPU so far. Read without stopping anybody: the sums may be one request apart.</summary>
    public unsafe RequestCounters Counters => _b->Counters;

    /// <summary>Times the vCPU has left guest mode, modulo 2^32.</summary>
    public unsafe uint Exits => (uint)Volatile.Read(ref _b->ExitSequence);

    // ---- The vCPU's side -------------------------------------------------------------------------------------------

    /// <summary>Declares the vCPU to be in the guest. False when a request or a kick came first:
    /// then the mode is OutsideGuestMode again and the caller handles requests.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal unsafe bool TryEnterGuestMode()
    {
        // Drops kicks meant for an earlier stay. One that arrives late makes this stay end early, which costs a loop and loses nothing.
        // The exchange below orders it before the mode: whoever sees InGuestMode stores after this store.
        *_exitRequest = 0;
        // PAIRS-WITH: VcpuRequests.Post (request bit, then mode).
        Interlocked.Exchange(ref _b->Mode, (int)VcpuMode.InGuestMode);
        if (Volatile.Read(ref _b->Requests) == 0)
            return true;
        LeaveGuestMode();
        return false;
    }

    /// <summary>Declares the vCPU to be out of the guest (or done reading), and acknowledges to those who wait for that.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal unsafe void LeaveGuestMode()
    {
        Volatile.Write(ref _b->Mode, (int)VcpuMode.OutsideGuestMode);
        // PAIRS-WITH: VcpuRequests.WaitForExit (Waiters, process-wide barrier, then ExitSequence): the waiter pays for the fence between these two lines, so
        // that an exit nobody waits for costs two stores. Only this thread writes the sequence.
        Volatile.Write(ref _b->ExitSequence, _b->ExitSequence + 1);
        if (Volatile.Read(ref _b->Waiters) != 0)
            Futex.Wake(&_b->ExitSequence);
    }

    /// <summary>Declares that this thread reads tables without a lock, until <see cref="LeaveGuestMode"/>.</summary>
    internal unsafe void BeginReadingShadowPageTables() =>
        // PAIRS-WITH: VcpuRequests.Post: a requester that frees tables sees the mode, or this thread sees the tables unlinked.
        Interlocked.Exchange(ref _b->Mode, (int)VcpuMode.ReadingShadowPageTables);

    internal unsafe bool Test(VcpuRequest request) => (Volatile.Read(ref _b->Requests) & request.Bit) != 0;

    /// <summary>Whether any of the requests with these <see cref="VcpuRequest.Bit"/>s is pending.</summary>
    internal unsafe bool TestAny(ulong bits) => (Volatile.Read(ref _b->Requests) & bits) != 0;

    /// <summary>Takes a request: true once for each time it was made (coalesced while pending). What the requester wrote before is visible after.</summary>
    internal unsafe bool Check(VcpuRequest request)
    {
        if ((Volatile.Read(ref _b->Requests) & request.Bit) == 0)
            return false;
        // Full fence: PAIRS-WITH: VcpuRequests.Post (data, then bit).
        Interlocked.And(ref _b->Requests, ~request.Bit);
        return true;
    }

    internal unsafe void Clear(VcpuRequest request) => Interlocked.And(ref _b->Requests, ~request.Bit);

    /// <summary>Sets a bit from the vCPU's own thread, outside the guest: no kick can be needed.</summary>
    internal unsafe void MakeSelf(VcpuRequest request) => Interlocked.Or(ref _b->Requests, request.Bit);

    /// <summary>First half of sleeping: after this call the caller tests its condition, then calls <see cref="Sleep"/> or <see cref="EndBlock"/>.
    /// Returns the token for Sleep.</summary>
    internal unsafe int BeginBlock()
    {
        int token = Volatile.Read(ref _b->WakeSequence);
        // PAIRS-WITH: VcpuRequests.WakeUp (condition, then Blocked).
        Interlocked.Exchange(ref _b->Blocked, 1);
        return token;
    }

    /// <summary>Sleeps unless somebody woke the vCPU since <see cref="BeginBlock"/> returned <paramref name="token"/>.</summary>
    internal unsafe void Sleep(int token, long timeoutNs = -1) => Futex.Wait(&_b->WakeSequence, token, timeoutNs);

    /// <summary>The futex word of <see cref="Sleep"/>; its value is the token.</summary>
    internal unsafe int* WakeWord => &_b->WakeSequence;

    internal unsafe int WakeToken => Volatile.Read(ref _b->WakeSequence);
    internal unsafe void EndBlock() => Volatile.Write(ref _b->Blocked, 0);

    // ---- Everybody else's side -------------------------------------------------------------------------------------

    /// <summary>Wakes the vCPU if it sleeps. The caller has made its condition true before.</summary>
    internal unsafe bool WakeUp()
    {
        // PAIRS-WITH: VcpuRequests.BeginBlock (Blocked, then condition).
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref _b->Blocked) == 0)
            return false;
        Interlocked.Increment(ref _b->WakeSequence);
        Futex.Wake(&_b->WakeSequence);
        Interlocked.Increment(ref _b->Counters.Wakeups);
        return true;
    }

    /// <summary>Makes a request to this vCPU, kicks or wakes it as the request says, and waits if it says so. True when the vCPU was kicked. Callable from any
    /// thread, also the vCPU's own outside the guest.</summary>
    public bool Make(VcpuRequest request)
    {
        bool kicked = Post(request, out bool mustWait, out int sequence);
        if (mustWait)
            WaitForExit(sequence);
        return kicked;
    }

    /// <summary>Makes a request to many vCPUs, except those that <paramref name="include"/> leaves out (null: all), and waits once for all.
    /// True when any was kicked.</summary>
    /// <remarks>A vCPU that makes requests is itself OutsideGuestMode, so two vCPUs that wait for all vCPUs never wait for each other.</remarks>
    internal static bool MakeAll(ReadOnlySpan<VcpuRequests> vcpus, VcpuRequest request, ReadOnlySpan<ulong> include = default)
    {
        Span<int> sequences = stackalloc int[vcpus.Length];
        Span<ulong> waiting = stackalloc ulong[(vcpus.Length + 63) / 64];
        waiting.Clear();
        bool any = false;
        for (int i = 0; i < vcpus.Length; i++)
        {
            if (!include.IsEmpty && (i / 64 >= include.Length || (include[i / 64] >> (i & 63) & 1) == 0))
                continue;
            any |= vcpus[i].Post(request, out bool mustWait, out sequences[i]);
            if (mustWait)
                waiting[i / 64] |= 1UL << (i & 63);
        }
        for (int i = 0; i < vcpus.Length; i++)
        {
            if ((waiting[i / 64] >> (i & 63) & 1) != 0)
                vcpus[i].WaitForExit(sequences[i]);
        }
        return any;
    }

    /// <summary>A kick without a request: the vCPU leaves the guest once. KVM: almost never what is wanted, because nothing makes the vCPU act on it.</summary>
    public unsafe bool Kick()
    {
        if (WakeUp())
            return true;
        if (Interlocked.CompareExchange(ref _b->Mode, (int)VcpuMode.ExitingGuestMode, (int)VcpuMode.InGuestMode) != (int)VcpuMode.InGuestMode)
        {
            Interlocked.Increment(ref _b->Counters.KicksElided);
            return false;
        }
        SendKick();
        return true;
    }

    private unsafe bool Post(VcpuRequest request, out bool mustWait, out int sequence)
    {
        // PAIRS-WITH: VcpuRequests.TryEnterGuestMode (mode, then requests): full fence between the bit and the reads below.
        if (!request.Has(VcpuRequest.NoAction))
            Interlocked.Or(ref _b->Requests, request.Bit);
        else
            Interlocked.MemoryBarrier();
        mustWait = false;
        // Read before the mode: if the vCPU leaves in between, the wait ends at once; if it comes back in between, it has seen the request.
        sequence = Volatile.Read(ref _b->ExitSequence);
        if (!request.Has(VcpuRequest.NoWakeup) && WakeUp())
            return false;

        var mode = request.Concerns(VcpuMode.InGuestMode)
            ? (VcpuMode)Interlocked.CompareExchange(ref _b->Mode, (int)VcpuMode.ExitingGuestMode, (int)VcpuMode.InGuestMode)
            : Mode;
        bool concerned = request.Concerns(mode);
        mustWait = concerned && request.Has(VcpuRequest.Wait);
        if (mustWait)
            Interlocked.Increment(ref _b->Counters.Waits);
        if (concerned && mode == VcpuMode.InGuestMode)
        {
            SendKick();
            return true;
        }
        // Exiting: the thread that moved the mode may not have stored the kick yet. A waiter does not depend on it being scheduled.
        if (concerned && mode == VcpuMode.ExitingGuestMode)
            Volatile.Write(ref *_exitRequest, 1);
        Interlocked.Increment(ref _b->Counters.KicksElided);
        return false;
    }

    private unsafe void SendKick()
    {
        Interlocked.Increment(ref _b->Counters.Kicks);
        Volatile.Write(ref *_exitRequest, 1);
    }

    /// <summary>Returns when the vCPU has left the mode it was in when the exit sequence was <paramref name="sequence"/>.</summary>
    private unsafe void WaitForExit(int sequence)
    {
        // The usual acknowledgement comes within a block of guest code: look for a while before the system calls.
        // With one host processor the vCPU cannot run meanwhile.
        for (int look = s_looks; look > 0; look--)
        {
            if (Volatile.Read(ref _b->ExitSequence) != sequence)
                return;
            if (X86Base.IsSupported)
                X86Base.Pause();
            else
                Thread.SpinWait(1);
        }
        Interlocked.Increment(ref _b->Counters.Sleeps);
        Interlocked.Increment(ref _b->Waiters);
        // PAIRS-WITH: VcpuRequests.LeaveGuestMode (ExitSequence, then Waiters).
        Interlocked.MemoryBarrierProcessWide();
        while (Volatile.Read(ref _b->ExitSequence) == sequence)
            Futex.Wait(&_b->ExitSequence, sequence);
        Interlocked.Decrement(ref _b->Waiters);
    }
}
