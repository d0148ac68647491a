using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Host;

namespace Ring3.Kvm.Tests;

/// <summary>
/// Host memory that goes away under a guest, without notice: KVM_RUN gives -EFAULT with the state of before the instruction, and goes on when the
/// memory is back.
/// </summary>
public sealed unsafe partial class HostMemoryGoneTests
{
    private const ulong Extra = 0x4000_0000;
    private const int Bytes = 0x2000;

    /// <summary>How memory goes and comes back.</summary>
    public enum Way { Truncate, Protect, Unmap, ReadOnly }

    [LibraryImport("libc")] private static partial int ftruncate(int fd, long length);
    [LibraryImport("libc")] private static partial int memfd_create([MarshalAs(UnmanagedType.LPUTF8Str)] string name, uint flags);
    [LibraryImport("libc")] private static partial void* mmap(void* at, nuint length, int prot, int flags, int fd, long offset);

    /// <summary>A client's file: its size can change.</summary>
    private static int Create()
    {
        int fd = memfd_create("gone", 1);
        Assert.True(fd >= 0);
        Assert.Equal(0, ftruncate(fd, Bytes));
        return fd;
    }

    private static long s_places;

    /// <summary>Maps the file far below everything that the host places by itself: while it is unmapped, nobody else gets the addresses.</summary>
    private static byte* Map(int fd)
    {
        const int MapShared = 1, MapFixedNoReplace = 0x100000;
        void* place = (void*)(0x1000_0000_0000 + Interlocked.Add(ref s_places, 0x10000));
        void* memory = mmap(place, Bytes, 3, MapShared | MapFixedNoReplace, fd, 0);
        Assert.True(memory == place);
        return (byte*)memory;
    }

    private static void Take(Way way, byte* memory, int fd)
    {
        switch (way)
        {
            case Way.Truncate: Assert.Equal(0, ftruncate(fd, 0)); break;
            case Way.Protect: HostMemory.Protect(memory, Bytes, false, false); break;
            case Way.Unmap: HostMemory.Unmap(memory, Bytes); break;
            case Way.ReadOnly: HostMemory.Protect(memory, Bytes, true, false); break;
        }
    }

    private static void Return(Way way, byte* memory, int fd)
    {
        switch (way)
        {
            case Way.Truncate: Assert.Equal(0, ftruncate(fd, Bytes)); break;
            case Way.Unmap: Assert.True(mmap(memory, Bytes, 3, 0x11, fd, 0) == memory); break;
            default: HostMemory.Protect(memory, Bytes, true, true); break;
        }
    }

    /// <summary>Instructions that access [rbx] and may use rax, rdx, rsi, rdi and vector registers.</summary>
    public static TheoryData<string, string> Forms => new()
    {
        { "load", "488b03" }, { "store", "488903" }, { "inc", "ff03" }, { "add to register", "480303" }, { "cmp with jump", "48833b077400" },
            { "narrow store", "8803" },
        { "lock xadd", "f0480fc103" }, { "lock cmpxchg", "f0480fb103" }, { "cmpxchg16b", "f0480fc70b" }, { "xchg", "488703" }, { "bts", "480fba2b05" },
            { "push memory", "ff33 58" }, { "pop memory", "50 8f03" },
        { "crossing load", "488b83fd0f0000" }, { "crossing store", "488983fd0f0000" }, { "crossing lock inc", "f048ff83fd0f0000" },
        { "movups load", "0f1003" }, { "movups store", "0f1103" }, { "paddd", "660ffe0b" }, { "addsd", "f20f5803" },
            { "two vector ops", "0f1003 660ffe0b 0f1103" }, { "crossing movups", "0f1083f80f0000" },
        { "fld", "dd03 ddd8" }, { "fstp", "d9e8 dd1b" }, { "fild fistp", "d9eb df2b df3b" }, { "mmx", "0f6f03 0f77" }, { "vmovups", "c5fc1003" },
            { "vaddpd", "c5fd5803" },
        { "rep movsb from", "4889de 4889cd b964000000 bf00800000 f3a4 4889e9" }, { "rep movsq to", "4889df 4889cd b904010000 be00800000 f348a5 4889e9" },
        { "rep stosb", "4889df 4889cd b964000000 f3aa 4889e9" }, { "repe cmpsb", "4889de 4889df 4889cd b964000000 f3a6 4889e9" },
            { "repne scasb", "4889df 4889cd b964000000 b0ff f2ae 4889e9" }, { "lodsq", "4889de 48ad" },
        { "fxsave", "480fae03" }, { "fxrstor", "480fae03 480fae0b" }, { "stmxcsr", "0fae1b" }, { "crc32", "f2480f38f103" }, { "movbe", "480f38f003" },
    };

    [Theory]
    [MemberData(nameof(Forms))]
    public void Instruction_StopsBeforeItself_AndGoesOn(string name, string hex)
    {
        byte[] body = Convert.FromHexString(hex.Replace(" ", ""));
        using TestGuest g = new();
        int fd = Create();
        byte* memory = Map(fd);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, 0, Extra, Bytes, (ulong)memory));
        // xsetbv of 7; mov ebx, Extra; mov ecx, count; again: body; dec ecx; jnz again; out 0xf4, al
        byte[] code = [0xb8, 7, 0, 0, 0, 0x31, 0xd2, 0x31, 0xc9, 0x0f, 0x01, 0xd1, 0xbb, 0, 0, 0, 0x40, 0xb9, 60, 0, 0, 0, .. body, 0xff, 0xc9, 0x0f, 0x85,
            .. BitConverter.GetBytes(-body.Length - 8), 0xe6, 0xf4];
        g.Load(code);
        ulong first = TestGuest.Code + 22, end = first + (ulong)body.Length;
        for (int round = 0; round < 3; round++)
            foreach (Way way in Enum.GetValues<Way>())
            {
                // The first round meets an empty processor, the later ones a warm one.
                if (round > 0)
                    Start(g);
                if (round > 0)
                    g.RunToEnd();
                new Span<byte>(memory, Bytes).Clear();
                Take(way, memory, fd);
                Start(g);
                int result = g.Cpu.Run();
                bool touched = way != Way.ReadOnly || result != 0;
                if (touched)
                {
                    string what = $"{name} {way} round {round}";
                    Assert.True(result == -Errno.EFAULT, $"{what}: {result}, exit {g.Cpu.KvmRun->exit_reason}");
                    kvm_regs before = g.Regs();
                    Assert.True(before.rip >= first && before.rip < end, $"{what}: rip {before.rip:x}");
                    Assert.Equal(-Errno.EFAULT, g.Cpu.Run());
                    kvm_regs after = g.Regs();
                    Assert.True(new ReadOnlySpan<byte>(&before, sizeof(kvm_regs)).SequenceEqual(new ReadOnlySpan<byte>(&after, sizeof(kvm_regs))), what
                        + ": registers changed");
                    Return(way, memory, fd);
                    g.RunToEnd();
                }
                else
                {
                    Assert.Equal(0, result);
                    Return(way, memory, fd);
                }
                Assert.Equal(0UL, g.Regs().rcx);
            }
        g.Vm.Dispose();
        HostMemory.Unmap(memory, Bytes);
        MemFd.Close(fd);
    }

    private static void Start(TestGuest g)
    {
        TestGuest.StartLong(g.Cpu, TestGuest.Code, TestGuest.Stack);
        g.Cpu.GetSregs(out kvm_sregs s);
        s.cr4 |= 1 << 18;
        Assert.Equal(0, g.Cpu.SetSregs(s));
    }

    [Fact]
    public void RunningVcpus_StopAndGoOn_ManyTimes()
    {
        using TestGuest g = new(cpus: 2);
        int fd = Create();
        byte* memory = Map(fd);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, 0, Extra, Bytes, (ulong)memory));
        // mov ebx, Extra; again: inc rax; mov [rbx], rax; jmp again
        g.Load(0xbb, 0, 0, 0, 0x40, 0x48, 0xff, 0xc0, 0x48, 0x89, 0x03, 0xeb, 0xf8);
        for (int round = 0; round < 40; round++)
        {
            Way way = (Way)(round % 3);
            var threads = new Thread[2];
            int[] results = new int[2];
            for (int i = 0; i < 2; i++)
            {
                int n = i;
                threads[i] = new Thread(() => results[n] = g.Vm.Vcpus[n].Run());
                threads[i].Start();
            }
            Assert.True(SpinWait.SpinUntil(() => Volatile.Read(ref *(long*)memory) != 0, 20_000));
            Take(way, memory, fd);
            for (int i = 0; i < 2; i++)
            {
                Assert.True(threads[i].Join(20_000), "a vCPU did not stop");
                Assert.Equal(-Errno.EFAULT, results[i]);
                Assert.Equal(TestGuest.Code + 8, g.Regs(g.Vm.Vcpus[i]).rip);
            }
            Return(way, memory, fd);
            *(long*)memory = 0;
        }
        g.Vm.Dispose();
        HostMemory.Unmap(memory, Bytes);
        MemFd.Close(fd);
    }

    [Theory]
    [InlineData(TestGuest.Code)]
    [InlineData(TestGuest.Tables)]
    [InlineData(TestGuest.Tables + 0x1000)]
    public void CodeAndPageTables(ulong page)
    {
        using TestGuest g = new();
        g.Load(0xb0, 7, 0xe6, 0xf4);
        for (int round = 0; round < 3; round++)
        {
            HostMemory.Protect((void*)(g.Ram.Hva + page), 4096, false, false);
            // Other code each time, so that it is fetched again.
            HostMemory.Protect((void*)(g.Ram.Hva + TestGuest.Code), 4096, true, true);
            g.Load(0xb0, (byte)round, 0xe6, 0xf4);
            HostMemory.Protect((void*)(g.Ram.Hva + page), 4096, false, false);
            Start(g);
            Assert.Equal(-Errno.EFAULT, g.Cpu.Run());
            Assert.Equal(TestGuest.Code, g.Regs().rip);
            HostMemory.Protect((void*)(g.Ram.Hva + page), 4096, true, true);
            Assert.Equal(round, g.RunToEnd());
        }
    }

    [Fact]
    public void StringInput_WaitsForItsMemory()
    {
        using TestGuest g = new();
        // mov edi, 0x30000; mov ecx, 8; mov edx, 0x99; rep insb; out 0xf4
        g.Load(0xbf, 0, 0, 3, 0, 0xb9, 8, 0, 0, 0, 0xba, 0x99, 0, 0, 0, 0xf3, 0x6c, 0xe6, 0xf4);
        Assert.Equal(KvmApi.KVM_EXIT_IO, g.Run());
        int done = 0;
        kvm_run* run = g.Cpu.KvmRun;
        HostMemory.Protect((void*)(g.Ram.Hva + 0x30000), 4096, false, false);
        Fill(run, ref done);
        Assert.Equal(-Errno.EFAULT, g.Cpu.Run());
        Assert.Equal(-Errno.EFAULT, g.Cpu.Run());
        HostMemory.Protect((void*)(g.Ram.Hva + 0x30000), 4096, true, true);
        Assert.Equal(KvmApi.KVM_EXIT_IO, g.Run());
        while (run->io.port == 0x99)
        {
            Fill(run, ref done);
            Assert.Equal(KvmApi.KVM_EXIT_IO, g.Run());
        }
        Assert.Equal(8, done);
        Assert.Equal(0x0807060504030201UL, *(ulong*)(g.Ram.Hva + 0x30000));
    }

    private static void Fill(kvm_run* run, ref int done)
    {
        for (uint i = 0; i < run->io.count; i++)
            *((byte*)run + run->io.data_offset + i) = (byte)++done;
    }

    [Fact]
    public void Hypervisor_FailsItsOwnAccesses()
    {
        using TestGuest g = new();
        HostMemory.Protect((void*)(g.Ram.Hva + 0x20000), 4096, false, false);
        Assert.False(g.Vm.Memory.TryRead(0x20008, out ulong _));
        Assert.False(g.Vm.Memory.TryWrite(0x20008, 1UL));
        Assert.False(g.Vm.Memory.CompareExchange(0x20008, 1UL, 0UL, out _));
        Assert.False(g.Vm.Memory.Fill(0x1fff0, 1, 0x100));
        Assert.False(g.Vm.Memory.Read(0x1f000, new byte[0x3000]));
        HostMemory.Protect((void*)(g.Ram.Hva + 0x20000), 4096, true, true);
        Assert.True(g.Vm.Memory.TryRead(0x20008, out ulong v) && v == 0);
    }
}
