using System.Collections.Concurrent;
using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text;
using Ring3.Abi;
using Ring3.Host;

namespace Ring3.DevKvm.Tests;

/// <summary>
/// The programs of tests/facts as libraries, on the Ring3 in this process: what a client of /dev/kvm is told, without an interposer and under the
/// runtime's own compiler. `./test facts` runs the same files below
/// `ring3 exec`, which is compiled ahead of time, and on the kernel's /dev/kvm.
/// </summary>
/// <remarks>SAFETY: the libraries are ours; they get function pointers of static methods, and a message buffer of the size that fact.h has.</remarks>
[Collection("devkvm")]
public sealed unsafe class FactTests(ITestOutputHelper output)
{
    private const int MessageBytes = 4096, Rounds = 10_000, Skipped = 4;

    /// <summary>struct fact_calls.</summary>
    private struct FactCalls
    {
        public delegate* unmanaged<long> Open;
        public delegate* unmanaged<int, uint, ulong, long> Ioctl;
        public delegate* unmanaged<int, long> Close;
        public delegate* unmanaged<ulong, ulong, long> Munmap;
    }

    /// <summary>Handles by the facts' descriptors.</summary>
    private static readonly ConcurrentDictionary<int, ulong> s_handles = [];

    private static readonly string s_facts = Path.Combine(Root(), "tests", "facts");

    public static TheoryData<string> Names =>
        [.. Directory.GetFiles(s_facts, "*.c").Select(f => Path.GetFileNameWithoutExtension(f)!).Order(StringComparer.Ordinal)];

    [Theory]
    [MemberData(nameof(Names))]
    public void Fact_InThisProcess_Holds(string name)
    {
        string library = Compile(name);
        nint loaded = NativeLibrary.Load(library);
        int objects = KvmDevice.OpenObjects;
        var run = (delegate* unmanaged<FactCalls*, byte*, long, long, long*, int>)NativeLibrary.GetExport(loaded, "fact_run");
        FactCalls calls = new() { Open = &Open, Ioctl = &Ioctl, Close = &Close, Munmap = &Munmap };
        byte* message = stackalloc byte[MessageBytes];
        long made = 0;
        KvmDevice.FdHandle = &HandleOf;
        try
        {
            int status = run(&calls, message, Rounds, Milliseconds, &made);
            string told = Encoding.UTF8.GetString(MemoryMarshal.CreateReadOnlySpanFromNullTerminated(message)).Trim();
            output.WriteLine($"{made} rounds; {told}");
            Assert.SkipWhen(status == Skipped, told);
            Assert.True(status == 0, $"round {made}: {told}");
            Assert.Equal(objects, KvmDevice.OpenObjects);
        }
        finally
        {
            KvmDevice.FdHandle = null;
            // What a fact that does not hold has left open.
            foreach (int fd in s_handles.Keys)
                CloseObject(fd);
            NativeLibrary.Free(loaded);
            File.Delete(library);
        }
    }

    /// <summary>As long as FACT_MS says: after it the loop of a fact ends early.</summary>
    private static long Milliseconds => long.TryParse(Environment.GetEnvironmentVariable("FACT_MS"), out long ms) ? ms : 20_000;

    private static string Compile(string name)
    {
        string library = Path.Combine(Path.GetTempPath(), $"ring3-fact-{Environment.ProcessId}-{name}.so");
        string[] arguments = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-DFACT_LIBRARY", "-o", library,
            Path.Combine(s_facts, name + ".c")];
        using Process gcc = Process.Start(new ProcessStartInfo("gcc", arguments) { RedirectStandardError = true })!;
        // A stream that was asked for is not closed with its process, but by its finalizer, some time.
        using StreamReader stream = gcc.StandardError;
        string errors = stream.ReadToEnd();
        gcc.WaitForExit();
        Assert.True(gcc.ExitCode == 0, errors);
        return library;
    }

    private static string Root()
    {
        for (DirectoryInfo? d = new(AppContext.BaseDirectory); d is not null; d = d.Parent)
            if (File.Exists(Path.Combine(d.FullName, "Ring3.slnx")))
                return d.FullName;
        throw new DirectoryNotFoundException("no Ring3.slnx above the test binaries");
    }

    [UnmanagedCallersOnly]
    private static ulong HandleOf(int fd) => s_handles.GetValueOrDefault(fd);

    [UnmanagedCallersOnly]
    private static long Open()
    {
        long r = KvmDevice.Open(out NewFd made);
        return r < 0 ? r : Enter(made);
    }

    [UnmanagedCallersOnly]
    private static long Ioctl(int fd, uint request, ulong argument)
    {
        if (!s_handles.TryGetValue(fd, out ulong handle))
            return -Errno.ENOTTY;
        long r = KvmDevice.Ioctl(handle, request, argument, out NewFd made);
        if (made.Handle == 0)
            return r;
        Enter(made);
        // KVM_CREATE_DEVICE tells the descriptor in its structure, the others return it.
        return r < 0 || request == KvmApi.KVM_CREATE_DEVICE ? r : made.Fd;
    }

    [UnmanagedCallersOnly]
    private static long Close(int fd) => CloseObject(fd);

    [UnmanagedCallersOnly]
    private static long Munmap(ulong address, ulong bytes)
    {
        bool concerned = KvmDevice.InvalidateStart(address, address + bytes);
        HostMemory.Unmap((void*)address, (nuint)bytes);
        if (concerned)
            KvmDevice.InvalidateEnd(address, address + bytes);
        return 0;
    }

    private static int Enter(in NewFd made)
    {
        s_handles[made.Fd] = made.Handle;
        return made.Fd;
    }

    private static int CloseObject(int fd)
    {
        // Before the close, which gives the number away.
        bool ours = s_handles.TryRemove(fd, out ulong handle);
        MemFd.Close(fd);
        if (ours)
            KvmDevice.Release(handle);
        return 0;
    }
}
