using System.Runtime.CompilerServices;

namespace Ring3.Host.Tests;

/// <summary>A fault on guest memory becomes an exception at the access, wherever the access is, and only there.</summary>
public unsafe class FaultGuardTests : IDisposable
{
    private const nuint Page = 4096;
    /// <summary>Never freed: a range of emitted code stays known to the handler, and would be taken for what is mapped there next.</summary>
    private static readonly ExecutableMemory s_leaves = new(4096), s_runs = new(4096);
    private readonly byte* _map = HostMemory.Map(4 * Page);
    private readonly nint _ticket;

    public FaultGuardTests() => _ticket = FaultGuard.AddGuestMemory((ulong)_map, (ulong)_map + 4 * Page);

    public void Dispose()
    {
        FaultGuard.RemoveGuestMemory(_ticket);
        HostMemory.Unmap(_map, 4 * Page);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ulong Load(byte* p) => Volatile.Read(ref *(ulong*)p);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Store(byte* p, ulong value) => Volatile.Write(ref *(ulong*)p, value);

    /// <summary>Runs an access as a vCPU does; the record's address and write flag when it faulted, else 0.</summary>
    private static (ulong Address, bool Write) Guest(Action access)
    {
        FaultRecord* r = FaultGuard.RecordOfThread(null);
        r->Inside = 1;
        try
        {
            access();
            return default;
        }
        catch (NullReferenceException) when (r->Pending != 0)
        {
            r->Pending = 0;
            return (r->Address, (r->Error & 2) != 0);
        }
        finally { r->Inside = 0; }
    }

    [Fact]
    public void ManagedAccess_Throws_AndWorksAfterRepair()
    {
        byte* p = _map + Page;
        for (int i = 0; i < 3; i++)
        {
            Assert.Equal(0, Libc.mprotect(p, Page, Libc.PROT_NONE));
            Assert.Equal(((ulong)p + 16, false), Guest(() => Load(p + 16)));
            Assert.Equal(((ulong)p + 24, true), Guest(() => Store(p + 24, 1)));
            Assert.Equal(((ulong)p, false), Guest(() => Load(p - 3)));
            Assert.Equal(((ulong)p, true), Guest(() => Interlocked.Increment(ref *(int*)p)));
            Assert.Equal(0, Libc.mprotect(p, Page, Libc.PROT_READ));
            Assert.Equal(default, Guest(() => Load(p + 16)));
            Assert.Equal(((ulong)p + 24, true), Guest(() => Store(p + 24, 1)));
            Assert.Equal(0, Libc.mprotect(p, Page, Libc.PROT_READ | Libc.PROT_WRITE));
            Assert.Equal(default, Guest(() => Store(p + 24, 1)));
        }
    }

    [Fact]
    public void ShrunkFile_ThrowsToo()
    {
        byte* name = stackalloc byte[] { (byte)'t', 0 };
        int fd = Libc.memfd_create(name, 1);
        Assert.Equal(0, Libc.ftruncate(fd, 8192));
        byte* p = HostMemory.MapShared(fd, 8192);
        nint ticket = FaultGuard.AddGuestMemory((ulong)p, (ulong)p + 8192);
        for (int i = 0; i < 3; i++)
        {
            Assert.Equal(0, Libc.ftruncate(fd, 4096));
            Assert.Equal(((ulong)p + 4096, false), Guest(() => Load(p + 4096)));
            Assert.Equal(((ulong)p + 4104, true), Guest(() => Store(p + 4104, 1)));
            Assert.Equal(0, Libc.ftruncate(fd, 8192));
            Assert.Equal(default, Guest(() => Load(p + 4096)));
        }
        FaultGuard.RemoveGuestMemory(ticket);
        HostMemory.Unmap(p, 8192);
        _ = Libc.close(fd);
    }

    [Fact]
    public void Leaf_IsLeft_AndItsCallerThrows()
    {
        // fldz; ldmxcsr would be next; mov rax, [rdi]; ret
        nint leaf = s_leaves.Add([0xD9, 0xEE, 0x48, 0x8B, 0x07, 0xC3]);
        FaultGuard.AddThunks(leaf, 16, ThunkKind.Leaf);
        // push r9; call rsi; pop r9; ret
        nint trampoline = s_leaves.Add([0x41, 0x51, 0xFF, 0xD6, 0x41, 0x59, 0xC3]);
        FaultGuard.SetTrampoline(trampoline, 16);
        byte* p = _map + Page;
        Assert.Equal(0, Libc.mprotect(p, Page, Libc.PROT_NONE));
        for (int i = 0; i < 20; i++)
        {
            Assert.Equal(((ulong)p + 8, false), Guest(() => ((delegate* unmanaged[SuppressGCTransition]<byte*, ulong>)leaf)(p + 8)));
            Assert.Equal(((ulong)p + 8, false), Guest(() => ((delegate* unmanaged[SuppressGCTransition]<byte*, nint, ulong>)trampoline)(p + 8, leaf)));
        }
        FaultRecord* r = FaultGuard.RecordOfThread(null);
        // Each fldz was taken off the host's unit again, and is in the image.
        Assert.Equal(0x80, r->Units[4]);
        Assert.Equal(Math.PI * 2, Math.Atan2(0, -1) * 2, 12);
        Assert.Equal(0, Libc.mprotect(p, Page, Libc.PROT_READ));
    }

    [Fact]
    public void Run_ContinuesAtItsExit()
    {
        // test edx, edx; jne exit; add rax, [rsi+rcx+16]; mov r8, [rax]; mov eax, 1; ret; exit: mov eax, 2; ret
        nint run = s_runs.Add([0x48, 0x89, 0xF8, 0x31, 0xC9, 0x85, 0xD2, 0x0F, 0x85, 14, 0, 0, 0, 0x48, 0x03, 0x44, 0x0E, 0x10, 0x4C, 0x8B, 0x00, 0xB8, 1, 0, 0,
            0, 0xC3, 0xB8, 2, 0, 0, 0, 0xC3]);
        FaultGuard.AddThunks(run, 64, ThunkKind.Run);
        byte* zero = stackalloc byte[32];
        new Span<byte>(zero, 32).Clear();
        var f = (delegate* unmanaged[SuppressGCTransition]<byte*, byte*, int, int>)run;
        byte* p = _map + Page;
        Assert.Equal(1, f(p, zero, 0));
        Assert.Equal(2, f(p, zero, 1));
        Assert.Equal(0, Libc.mprotect(p, Page, Libc.PROT_NONE));
        Assert.Equal(2, f(p, zero, 0));
        Assert.Equal(0, Libc.mprotect(p, Page, Libc.PROT_READ));
    }

    [Fact]
    public void ManyThreads_HaveTheirOwnRecords()
    {
        byte* p = _map + 2 * Page;
        Assert.Equal(0, Libc.mprotect(p, Page, Libc.PROT_NONE));
        Thread[] threads = [.. Enumerable.Range(0, 6).Select(n => new Thread(() =>
        {
            for (int i = 0; i < 200; i++)
                Assert.Equal(((ulong)p + (ulong)n * 8, false), Guest(() => Load(p + n * 8)));
        }))];
        foreach (Thread t in threads)
            t.Start();
        foreach (Thread t in threads)
            t.Join();
        Assert.Equal(0, Libc.mprotect(p, Page, Libc.PROT_READ));
    }

    [Fact]
    public void NullReferenceOfOurs_IsNotAGuestFault()
    {
        string s = null!;
        Assert.Throws<NullReferenceException>(() => Guest(() => _ = s.Length));
    }
}
