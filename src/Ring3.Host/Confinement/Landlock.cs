using System.Globalization;
using System.Runtime.InteropServices;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Host;

/// <summary>
/// Takes from the process what Landlock can take: to open, execute, make, rename or remove files, to bind and connect TCP sockets, to connect to abstract
/// local sockets of others. Descriptors that are open stay what they are.
/// </summary>
/// <remarks>
/// A thread can restrict only itself, and those that it starts. The runtime has threads of its own, so every thread is sent a signal whose handler, machine
/// code that makes four system calls, restricts it and notes its number. This is over when every thread that a list has was noted before the list was made:
/// whoever is not in it was started by one of these. SPEC: landlock(7). Signals are not scoped: kernels before 6.15 would take those between restricted
/// threads, which the runtime needs, for foreign ones.
/// SAFETY: the handler reads and writes only the record that the signal names; neither it nor the record is ever freed, and the table has a place for every
/// signal that is sent. It keeps to the system's ABI and uses no stack but for one saved register.
/// </remarks>
public static class Landlock
{
    private const int CreateRuleset = 444, RestrictSelf = 446, FutexCall = 202, Prctl = 157, SignalAction = 13, QueueSignal = 297, GetThread = 186;
    private const int SetNoNewPrivileges = 38, WakePrivate = 129, MaxThreads = 4000;
    /// <summary>A real-time signal that neither the C library (32, 33) nor the runtime (34) uses.</summary>
    private const int Signal = 50;
    private const long PatienceNs = 20_000_000_000, LookNs = 10_000_000;

    /// <summary>What the handler knows and leaves: behind it are the numbers of the threads.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Record
    {
        public int Done, Ruleset, Failure, Unused;
    }

/// <summary>The kernel's version of it; 0 where there is none.</summary>
    public static int Version => Math.Max(0, (int)Libc.syscall(CreateRuleset, 0, 0, 1 /* VERSION */, 0, 0, 0));

    /// <summary>Restricts all threads: 0, or -errno. The process is as it was, or has lost these rights in some threads.</summary>
    public static unsafe int RestrictAllThreads()
    {
        int version = Version;
        if (version == 0)
            return -38 /* ENOSYS */;
        // struct landlock_ruleset_attr: file system, network, scopes; older kernels know less of it.
        ulong* attributes = stackalloc ulong[3] { FileAccess(version), version >= 4 ? 3UL : 0, version >= 6 ? 1UL : 0 };
        int bytes = version >= 6 ? 24 : version >= 4 ? 16 : 8;
        int ruleset = (int)Libc.syscall(CreateRuleset, (nint)attributes, bytes, 0, 0, 0, 0);
        if (ruleset < 0)
            return -Marshal.GetLastPInvokeError();
        try { return Restrict(ruleset); }
        finally { _ = Libc.close(ruleset); }
    }

    /// <summary>All rights that a version knows: those of the first, REFER, TRUNCATE, IOCTL_DEV.</summary>
    private static ulong FileAccess(int version) => version switch { 1 => 0x1fff, 2 => 0x3fff, 3 or 4 => 0x7fff, _ => 0xffff };

    private static unsafe int Restrict(int ruleset)
    {
        var record = (Record*)NativeMemory.AllocZeroed((nuint)(sizeof(Record) + MaxThreads * sizeof(int)));
        record->Ruleset = ruleset;
        var code = new ExecutableMemory(4096);
        KernelAction previous, action = new()
        {
            Handler = (ulong)code.Add(Handler()),
            Restorer = (ulong)code.Add(FaultHandlerCode.Restorer()),
            Flags = 4 /* SIGINFO */ | 0x04000000 /* RESTORER */ | 0x08000000 /* ONSTACK */ | 0x10000000 /* RESTART */,
        };
        if (Libc.syscall(SignalAction, Signal, (nint)(&action), (nint)(&previous), 8, 0, 0) != 0)
            return -Marshal.GetLastPInvokeError();
        // Opened before: the calling thread cannot when it is restricted.
        int tasks;
        fixed (byte* place = "/proc/self/task\0"u8)
            tasks = (int)Libc.syscall(257 /* openat */, -100, (nint)place, 0x10000 | 0x80000 /* DIRECTORY, CLOEXEC */, 0, 0, 0);
        if (tasks < 0)
            return -Marshal.GetLastPInvokeError();
        int result = EveryThread(record, tasks);
        _ = Libc.close(tasks);
        // A signal that is still to come would meet the default action, which ends the process.
        if (result != -Libc.ETIMEDOUT)
            _ = Libc.syscall(SignalAction, Signal, (nint)(&previous), 0, 8, 0, 0);
        return result;
    }

    private static unsafe int EveryThread(Record* record, int tasks)
    {
        int process = Environment.ProcessId;
        var told = new HashSet<int>();
        // struct siginfo: signal, error, code; then process, user, value.
        byte* info = stackalloc byte[128];
        new Span<byte>(info, 128).Clear();
        (*(int*)info, *(int*)(info + 8), *(int*)(info + 16), *(nint*)(info + 24)) = (Signal, -1 /* SI_QUEUE */, process, (nint)record);
        long end = HostClock.MonotonicNs() + PatienceNs;
        while (true)
        {
            int done = Volatile.Read(ref record->Done);
            var noted = new HashSet<int>(new ReadOnlySpan<int>(record + 1, done).ToArray());
            List<int> threads = Threads(tasks);
            if (noted.IsSupersetOf(threads))
                return -Volatile.Read(ref record->Failure);
            foreach (int thread in threads)
            {
                if (told.Count < MaxThreads && told.Add(thread))
                    _ = Libc.syscall(QueueSignal, process, thread, Signal, (nint)info, 0, 0);
            }
            if (HostClock.MonotonicNs() > end)
                return -Libc.ETIMEDOUT;
            _ = Futex.Wait(&record->Done, done, LookNs);
        }
    }

    /// <summary>The threads of the process, by the names in its directory of them.</summary>
    private static unsafe List<int> Threads(int tasks)
    {
        // struct linux_dirent64: inode, offset, length of the entry, type, name.
        const int BufferBytes = 4096, LengthPlace = 16, NamePlace = 19;
        var threads = new List<int>();
        byte* buffer = stackalloc byte[BufferBytes];
        _ = Libc.syscall(8 /* lseek */, tasks, 0, 0, 0, 0, 0);
        for (int n; (n = (int)Libc.syscall(217 /* getdents64 */, tasks, (nint)buffer, BufferBytes, 0, 0, 0)) > 0;)
        {
            for (int at = 0; at < n; at += *(ushort*)(buffer + at + LengthPlace))
            {
                if (int.TryParse(MemoryMarshal.CreateReadOnlySpanFromNullTerminated(buffer + at + NamePlace), CultureInfo.InvariantCulture, out int thread))
                    threads.Add(thread);
            }
        }
        return threads;
    }

    /// <summary>handler(edi = signal, rsi = siginfo, rdx = ucontext).</summary>
    private static unsafe byte[] Handler() => MachineCode.Assemble(a =>
    {
        const int Value = 24, Done = 0, Ruleset = 4, Failure = 8;
        Label good = a.CreateLabel();
        a.push(rbx);
        a.mov(rbx, __[rsi + Value]);
        a.mov(eax, Prctl);
        a.mov(edi, SetNoNewPrivileges);
        a.mov(esi, 1);
        a.xor(edx, edx);
        a.xor(r10d, r10d);
        a.xor(r8d, r8d);
        a.syscall();
        a.mov(eax, RestrictSelf);
        a.mov(edi, __dword_ptr[rbx + Ruleset]);
        a.xor(esi, esi);
        a.syscall();
        a.test(eax, eax);
        a.jz(good);
        a.neg(eax);
        a.mov(__dword_ptr[rbx + Failure], eax);
        a.Label(ref good);
        a.mov(eax, GetThread);
        a.syscall();
        a.mov(ecx, 1);
        a.@lock.xadd(__dword_ptr[rbx + Done], ecx);
        a.mov(__dword_ptr[rbx + rcx * 4 + sizeof(Record)], eax);
        a.mov(eax, FutexCall);
        a.mov(rdi, rbx);
        a.mov(esi, WakePrivate);
        a.mov(edx, 1);
        a.syscall();
        a.pop(rbx);
        a.ret();
    });
}
