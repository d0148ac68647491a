using System.Buffers.Text;
using Microsoft.Win32.SafeHandles;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Kvm;
using Ring3.Mmu;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Bench;

/// <summary>
/// 16 GiB of guest memory in 4-KiB mappings, aliased onto 64 MiB of the host's, and two vCPUs in 64-bit mode. Each owns half: it chooses a page at
/// random, writes to each of its 64 cache lines, and at one page in 32 writes to a page of a
/// window that the host keeps unmapping, so that it faults; then it counts.
/// </summary>
internal sealed unsafe class AgeGuest : IDisposable
{
    internal const ulong Gib = 1 << 30, Pages = 16 * Gib / Page, Page = 4096;
    internal const ulong WindowGfn = Window / Page, WindowPages = 4096;
    internal const int Cpus = 2;
    private const ulong Alias = 64 << 20, Control = 20 * Gib, Window = 24 * Gib, Pml4 = Control + 0x2000, Pdpt = Control + 0x3000, Code = Control + 0x1000,
        Counters = Control + 0x10000;
    private const int RunOffset = 0x15;

    // movq $1 to each page from rdi, rcx times; out 0x80. Then, for ever: xorshift64 in rax; page = rdi + (rax & rsi); 64 times incq (rdx), rdx += 64;
    // if ((rax >> 40 & 31) == 0) incq (rbx + (rax >> 20 & r9)); r8++ to (rbp).
    private static ReadOnlySpan<byte> Program =>
    [
        0x48, 0xc7, 0x07, 0x01, 0x00, 0x00, 0x00, 0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x48, 0xff, 0xc9, 0x75, 0xed, 0xe6, 0x80, 0x48, 0x89, 0xc2, 0x48,
            0xc1, 0xe2, 0x0d, 0x48, 0x31, 0xd0, 0x48,
        0x89, 0xc2, 0x48, 0xc1, 0xea, 0x07, 0x48, 0x31, 0xd0, 0x48, 0x89, 0xc2, 0x48, 0xc1, 0xe2, 0x11, 0x48, 0x31, 0xd0, 0x48, 0x89, 0xc2, 0x48, 0x21, 0xf2,
            0x48, 0x01, 0xfa, 0xb9, 0x40, 0x00, 0x00,
        0x00, 0x48, 0xff, 0x02, 0x48, 0x83, 0xc2, 0x40, 0xff, 0xc9, 0x75, 0xf5, 0x48, 0x89, 0xc2, 0x48, 0xc1, 0xea, 0x28, 0xf6, 0xc2, 0x1f, 0x75, 0x0e, 0x48,
            0x89, 0xc2, 0x48, 0xc1, 0xea, 0x14, 0x4c,
        0x21, 0xca, 0x48, 0xff, 0x04, 0x13, 0x49, 0xff, 0xc0, 0x4c, 0x89, 0x45, 0x00, 0xeb, 0xa6,
    ];

    // SAFETY: mapped until Dispose.
    private readonly byte* _alias = HostMemory.Map((nuint)Alias), _window = HostMemory.Map((nuint)(WindowPages * Page)), _control = HostMemory.Map(1 << 20);
    private readonly Vm _vm = Vm.Create();
    private readonly Vcpu[] _vcpus = new Vcpu[Cpus];
    private readonly Thread[] _threads = new Thread[Cpus];
    private readonly SafeFileHandle?[] _times = new SafeFileHandle?[Cpus];
    private volatile bool _stop;

    internal AgeGuest()
    {
        _vm.Mmu.MaxLevel = PgLevel.Level4K;
        for (uint i = 0; i < 16 * Gib / Alias; i++)
            Map(i, i * Alias, Alias, _alias);
        Map(300, Control, 1 << 20, _control);
        Map(301, Window, WindowPages * Page, _window);
        _vm.Memory.Write(Code, Program);
        _vm.Memory.TryWrite(Pml4, Pdpt | 3);
        for (ulong i = 0; i < 32; i++)
            _vm.Memory.TryWrite(Pdpt + i * 8, i * Gib | 0x83);
        for (uint i = 0; i < Cpus; i++)
            _vcpus[i] = _vm.CreateVcpu(i);
        OnAll(Populate);
    }

    internal TdpMmu Mmu => _vm.Mmu;
    internal MmuLock Lock => _vm.Slots.MmuLock;

    private void Map(uint slot, ulong gpa, ulong bytes, byte* host) => Check(_vm.SetUserMemoryRegion(slot, 0, gpa, bytes, (ulong)host));

    private static void Check(int result)
    {
        if (result < 0)
            throw new InvalidOperationException($"error {-result}");
    }

    private static void OnAll(Action<int> body)
    {
        Thread[] threads = [.. Enumerable.Range(0, Cpus).Select(i => new Thread(() => body(i)))];
        Array.ForEach(threads, t => t.Start());
        Array.ForEach(threads, t => t.Join());
    }

    /// <summary>The guest touches all pages of its half, once.</summary>
    private void Populate(int cpu)
    {
        Vcpu vcpu = _vcpus[cpu];
        vcpu.GetSregs(out kvm_sregs s);
        s.cs = new kvm_segment { limit = uint.MaxValue, selector = 8, type = 11, present = 1, s = 1, l = 1, g = 1 };
        s.ds = s.es = s.fs = s.gs = s.ss = new kvm_segment { limit = uint.MaxValue, selector = 16, type = 3, present = 1, s = 1, db = 1, g = 1 };
        (s.cr0, s.cr3, s.cr4, s.efer) = (Cr0.PE | Cr0.PG | Cr0.ET, Pml4, Cr4.PAE, Efer.LME | Efer.LMA);
        Check(vcpu.SetSregs(s));
        vcpu.SetMpState(new kvm_mp_state { mp_state = 0 });
        ulong half = Pages / Cpus;
        vcpu.SetRegs(new kvm_regs { rip = Code, rdi = (ulong)cpu * half * Page, rcx = half, rflags = Rflags.Fixed1 });
        int e;
        do
            e = vcpu.Run();
        while (e == -Errno.EINTR);
        if (e != 0 || vcpu.KvmRun->exit_reason != KVM_EXIT_IO)
            throw new InvalidOperationException($"unexpected exit {vcpu.KvmRun->exit_reason}, {e}");
    }

    /// <summary>The vCPUs begin their endless work.</summary>
    internal void Start()
    {
        using var ready = new CountdownEvent(Cpus);
        for (int i = 0; i < Cpus; i++)
        {
            int cpu = i;
            _threads[i] = new Thread(() =>
            {
                _times[cpu] = File.OpenHandle("/proc/thread-self/schedstat");
                ready.Signal();
                Work(cpu);
            });
            _threads[i].Start();
        }
        ready.Wait();
    }

    private void Work(int cpu)
    {
        Vcpu vcpu = _vcpus[cpu];
        ulong half = Pages / Cpus;
        vcpu.SetRegs(new kvm_regs
        {
            rip = Code + RunOffset, rflags = Rflags.Fixed1, rax = 0x9e37_79b9_7f4a_7c15 + (ulong)cpu, rdi = (ulong)cpu * half * Page, rsi = (half - 1) * Page,
                rbx = Window, r9 = (WindowPages - 1) * Page, rbp = Counters + (ulong)cpu * Page,
        });
        while (!_stop)
        {
            int e = vcpu.Run();
            if (e != 0 && e != -Errno.EINTR)
                throw new InvalidOperationException($"vCPU {cpu}: {e}");
        }
    }

    /// <summary>Rounds that a vCPU has done.</summary>
    internal ulong Rounds(int cpu) => Volatile.Read(ref *(ulong*)(_control + 0x10000 + cpu * (int)Page));

    /// <summary>Nanoseconds of processor time that a vCPU's thread has used.</summary>
    internal long CpuTimeNs(int cpu)
    {
        Span<byte> text = stackalloc byte[96];
        int n = RandomAccess.Read(_times[cpu]!, text, 0);
        return Utf8Parser.TryParse(text[..n], out long ns, out _) ? ns : 0;
    }

    public void Dispose()
    {
        _stop = true;
        foreach (Vcpu vcpu in _vcpus)
            vcpu.Kick();
        foreach (Thread thread in _threads)
            thread?.Join();
        foreach (SafeFileHandle? file in _times)
            file?.Dispose();
        _vm.Dispose();
        HostMemory.Unmap(_alias, (nuint)Alias);
        HostMemory.Unmap(_window, (nuint)(WindowPages * Page));
        HostMemory.Unmap(_control, 1 << 20);
    }
}
