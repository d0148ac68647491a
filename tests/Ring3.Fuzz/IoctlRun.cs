using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.DevKvm;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Fuzz;

/// <summary>
/// Hostile clients of /dev/kvm: sessions of random ioctls by one or several threads on shared objects, with guest memory that disappears under them.
/// After a session nothing may be left: no object,
/// no descriptor, no memory.
/// </summary>
/// <remarks>SAFETY: signal words can be written for ever, what they point to may go and is written with a check; the run page is a mapping of the
/// session.</remarks>
internal sealed unsafe class IoctlRun(int threads) : IHostileRun
{
    private const int CallsPerThread = 200;

    /// <summary>A descriptor of the session.</summary>
    internal sealed class Handle
    {
        public ulong Value;
        public int Fd;
        public ObjectKind Kind;
        public byte* Run;
        public VcpuSignal* Signal;
        /// <summary>1: being released; 2: released.</summary>
        public int Released;
        /// <summary>Calls in progress.</summary>
        public int Inside;
    }

    private static readonly ConcurrentDictionary<int, ulong> s_handles = [];
    private readonly IoctlWorld _world = new();
    private readonly Lock _lock = new();
    private readonly List<Handle> _open = [];
    /// <summary>The call that each thread is in, for the report of a hang.</summary>
    private readonly (string? Call, Handle Handle, ulong Argument)[] _doing = new (string?, Handle, ulong)[threads];
    private int _descriptors = -1, _sessions;
    private long _calls, _succeeded;

    [UnmanagedCallersOnly]
    private static ulong HandleOf(int fd) => s_handles.GetValueOrDefault(fd);

    public string Once(Random random)
    {
        KvmDevice.FdHandle = &HandleOf;
        _world.Restore();
        long r = KvmDevice.Open(out NewFd system);
        Check(r >= 0, $"open: {r}");
        Handle root = Add(system);
        r = KvmDevice.Ioctl(root.Value, KvmApi.KVM_CREATE_VM, 0, out NewFd vm);
        Check(r >= 0, $"KVM_CREATE_VM: {r}");
        Add(vm);
        int[] seeds = [.. Enumerable.Range(0, threads).Select(_ => random.Next())];
        if (threads == 1)
            Calls(new Random(seeds[0]), 0);
        else
            InParallel(seeds);
        Handle[] left;
        lock (_lock)
            left = [.. _open];
        foreach (Handle h in left)
            CheckAlive(h, "the session");
        foreach (Handle h in left)
            Release(h);
        lock (_lock)
        {
            foreach (Handle h in _open)
                if (h.Run != null)
                    HostMemory.Unmap(h.Run, 4096);
            _open.Clear();
        }
        Check(KvmDevice.OpenObjects == 0, $"{KvmDevice.OpenObjects} objects left");
        if (++_sessions % 100 == 0)
            CheckDescriptors();
        return "sessions";
    }

    private void InParallel(int[] seeds)
    {
        Exception? failure = null;
        Thread[] workers = [.. seeds.Select((seed, i) => new Thread(() =>
        {
            try { Calls(new Random(seed), i); }
            catch (Exception e) { failure ??= e; }
        }))];
        foreach (Thread t in workers)
            t.Start();
        foreach (Thread t in workers)
            t.Join();
        if (failure != null)
            throw new InvalidOperationException("in a thread of the session", failure);
    }

    private void Calls(Random random, int thread)
    {
        for (int i = 0; i < CallsPerThread; i++)
        {
            if (random.Next(40) == 0)
                _world.Disturb(random);
            Handle? h = Pick(random);
            if (h == null)
                return;
            if (random.Next(150) == 0 && h.Kind != ObjectKind.System)
                Release(h);
            else
                Call(random, h, thread);
        }
    }

    private Handle? Pick(Random random)
    {
        lock (_lock)
        {
            // Released handles stay candidates now and then: calls on them must give -EBADF.
            for (int i = 0; i < 4; i++)
            {
                Handle h = _open[random.Next(_open.Count)];
                if (h.Released == 0 || i == 3)
                    return h;
            }
            return null;
        }
    }

    private void Call(Random random, Handle h, int thread)
    {
        if (random.Next(60) == 0)
        {
            long n = KvmDevice.Read(h.Value, _world.Scratch(thread), (ulong)random.Next(5000), random.Next(3000));
            Check(n is >= -4095 and <= 5000, $"read: {n}");
            return;
        }
        uint command = _world.Command(random, h.Kind);
        bool released = Volatile.Read(ref h.Released) == 2;
        if (command == KvmApi.KVM_RUN && h.Signal != null)
        {
            // What the interposer does before KVM_RUN.
            Volatile.Write(ref h.Signal->Signalled, 0);
            h.Run[1] = random.Next(3) == 0 ? (byte)1 : (byte)0;
        }
        ulong argument = _world.Argument(random, command, h.Kind, thread, out bool followUp);
        if (followUp)
        {
            // What is there, changed a little, is likelier to be accepted than noise.
            long got = KvmDevice.Ioctl(h.Value, IoctlWorld.GetOf(command), argument, out _);
            Check(got >= -4095, $"{_world.Name(IoctlWorld.GetOf(command))}: {got}");
            _world.Mutate(random, thread);
        }
        Interlocked.Increment(ref h.Inside);
        _doing[thread] = (_world.Name(command), h, argument);
        long r = KvmDevice.Ioctl(h.Value, command, argument, out NewFd fd);
        _doing[thread].Call = null;
        Interlocked.Decrement(ref h.Inside);
        Interlocked.Increment(ref _calls);
        if (r >= 0)
            Interlocked.Increment(ref _succeeded);
        string what = $"{_world.Name(command)} on {h.Kind} with 0x{argument:x}";
        Check(r >= -4095, $"{what}: {r}");
        Check(!released || r == -Errno.EBADF, $"{what} of a released object: {r}");
        if (r == -Errno.EIO)
            CheckAlive(h, what);
        if (fd.Handle != 0)
        {
            Check(fd.Fd >= 0, $"{what}: no descriptor");
            Add(fd);
        }
    }

    /// <summary>A guest without writable SMRAM breaks its VM, as in KVM; an exception is a defect.</summary>
    private static void CheckAlive(Handle h, string what)
    {
        string? bug = KvmDevice.BugMessage(h.Value);
        Check(bug == null || !bug.Contains("Exception", StringComparison.Ordinal), $"{what} broke the VM: {bug}");
    }

    private Handle Add(NewFd fd)
    {
        Handle h = new() { Value = fd.Handle, Fd = fd.Fd, Kind = (ObjectKind)fd.Kind };
        s_handles[fd.Fd] = fd.Handle;
        if (h.Kind == ObjectKind.Vcpu)
        {
            h.Signal = (VcpuSignal*)KvmDevice.VcpuSignalAddress(fd.Handle);
            h.Run = MemFd.Map(fd.Fd, 4096);
            Check(h.Run != null && h.Signal != null, "a vCPU without its page or its signal words");
        }
        lock (_lock)
            _open.Add(h);
        return h;
    }

    private static void Release(Handle h)
    {
        if (Interlocked.Exchange(ref h.Released, 1) != 0)
            return;
        s_handles.TryRemove(h.Fd, out _);
        // The interposer closes first and tells afterwards.
        MemFd.Close(h.Fd);
        KvmDevice.Release(h.Value);
        Volatile.Write(ref h.Released, 2);
    }

    /// <summary>A signal for every vCPU, as the interposer's trampoline and the kernel's interruption of futex waits deliver it.</summary>
    public void Kick()
    {
        lock (_lock)
            foreach (Handle h in _open)
            {
                if (h.Signal == null || (h.Released != 0 && Volatile.Read(ref h.Inside) == 0))
                    continue;
                // From another thread, unlike the interposer: the vCPU may go meanwhile.
                nint exitRequest = Volatile.Read(ref *(nint*)&h.Signal->ExitRequest), wakeWord = Volatile.Read(ref *(nint*)&h.Signal->WakeWord);
                Volatile.Write(ref h.Signal->Signalled, 1);
                _ = UserCopy.TryWrite4((ulong)exitRequest, 1);
                _ = UserCopy.TryRead4((ulong)wakeWord, out uint wakes) && UserCopy.TryWrite4((ulong)wakeWord, wakes + 1);
                Futex.Wake((int*)wakeWord);
            }
    }

    private void CheckDescriptors()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        int now = Directory.GetFiles("/proc/self/fd").Length;
        if (_descriptors < 0)
            _descriptors = now;
        Check(now <= _descriptors + 8, $"{now} descriptors after {_sessions} sessions, {_descriptors} at first");
    }

    public override string ToString() => string.Join(", ", _doing.Select(d => d.Call == null ? "no call"
        : $"{d.Call} on {d.Handle.Kind} {d.Handle.Value:x} with 0x{d.Argument:x}, released {d.Handle.Released}, "
            + $"signalled {(d.Handle.Signal != null ? d.Handle.Signal->Signalled : 0)}"));

    public void Recycle()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
    }

    public void Dispose() => Console.WriteLine($"fuzz ioctls: {_calls} calls, {_succeeded} succeeded");

    private static void Check(bool ok, string what)
    {
        if (!ok)
            throw new InvalidOperationException(what);
    }
}
