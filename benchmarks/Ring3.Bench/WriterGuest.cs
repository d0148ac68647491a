using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Kvm;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Bench;

/// <summary>
/// A VM without devices whose vCPUs write memory in 32-bit protected mode without paging: every miss is one nested walk. Code in slot 0, the memory
/// that is written in slot 1.
/// </summary>
internal sealed unsafe class WriterGuest : IDisposable
{
    /// <summary>Guest-physical address of slot 1.</summary>
    public const uint Base = 0x4000_0000;
    private const uint RandomAt = 0x1000, TouchAt = 0x1100, Gdt = 0x5000;

    // again: imul eax, eax, 0x19660d; add eax, 0x3c6ef35f; mov edx, eax; shr edx, 2; and edx, ~3; mov [esi+edx], eax; dec ecx; jnz again; out 0x80, al;
    // jmp again
    private static ReadOnlySpan<byte> RandomCode =>
        [0x69, 0xc0, 0x0d, 0x66, 0x19, 0, 0x05, 0x5f, 0xf3, 0x6e, 0x3c, 0x89, 0xc2, 0xc1, 0xea, 0x02, 0x83, 0xe2, 0xfc, 0x89, 0x04, 0x16, 0x49, 0x75, 0xe7,
            0xe6, 0x80, 0xeb, 0xe3];

    // again: mov [esi], eax; add esi, 4096; dec ecx; jnz again; out 0x80, al; jmp again
    private static ReadOnlySpan<byte> TouchCode => [0x89, 0x06, 0x81, 0xc6, 0, 0x10, 0, 0, 0x49, 0x75, 0xf5, 0xe6, 0x80, 0xeb, 0xf1];

    private readonly GuestRam _code = new(1 << 20);

    public WriterGuest(VmOptions options, int vcpus, ulong bytes, ulong hva, uint flags = 0, Action<Vm>? configure = null)
    {
        Vm = Vm.Create(options);
        configure?.Invoke(Vm);
        Check(Vm.SetUserMemoryRegion(0, 0, 0, _code.Size, _code.Hva));
        Check(Vm.SetUserMemoryRegion(1, flags, Base, bytes, hva));
        Vm.Memory.Write(RandomAt, RandomCode);
        Vm.Memory.Write(TouchAt, TouchCode);
        Vm.Memory.TryWrite(Gdt + 8, 0x00cf9b000000ffffUL);
        Vm.Memory.TryWrite(Gdt + 16, 0x00cf93000000ffffUL);
        for (uint i = 0; i < vcpus; i++)
            SetMode(Vm.CreateVcpu(i));
    }

    public Vm Vm { get; }

    public static void Check(int result)
    {
        if (result < 0)
            throw new InvalidOperationException($"error {-result}");
    }

    private static void SetMode(Vcpu vcpu)
    {
        vcpu.GetSregs(out kvm_sregs s);
        s.cs = new kvm_segment { limit = uint.MaxValue, selector = 8, type = 11, present = 1, s = 1, g = 1, db = 1 };
        s.ds = s.es = s.fs = s.gs = s.ss = new kvm_segment { limit = uint.MaxValue, selector = 16, type = 3, present = 1, s = 1, g = 1, db = 1 };
        (s.gdt.@base, s.gdt.limit) = (Gdt, 23);
        s.cr0 = Cr0.PE | Cr0.ET;
        Check(vcpu.SetSregs(s));
    }

    /// <summary>4-byte writes to random places of the first GiB of slot 1, on the calling thread.</summary>
    /// <param name="seed">Changed by the run, so that the next one goes on where this one stopped.</param>
    /// <param name="ringFull">The vCPU's dirty ring is full.</param>
    /// <returns>Processor time of the thread, nanoseconds.</returns>
    public long WriteAtRandom(int cpu, uint count, ref uint seed, Action? ringFull = null)
    {
        Vcpu v = Vm.Vcpus[cpu];
        v.SetRegs(new kvm_regs { rip = RandomAt, rax = seed, rcx = count, rsi = Base, rflags = Rflags.Fixed1 });
        long ns = RunToEnd(v, ringFull);
        v.GetRegs(out kvm_regs r);
        seed = (uint)r.rax;
        return ns;
    }

    /// <summary>One write to each of <paramref name="pages"/> pages from page <paramref name="first"/> of slot 1 on.</summary>
    /// <returns>As <see cref="WriteAtRandom"/>.</returns>
    public long Touch(int cpu, uint first, uint pages)
    {
        Vcpu v = Vm.Vcpus[cpu];
        v.SetRegs(new kvm_regs { rip = TouchAt, rcx = pages, rsi = Base + first * 4096, rflags = Rflags.Fixed1 });
        return RunToEnd(v, null);
    }

    private static long RunToEnd(Vcpu v, Action? ringFull)
    {
        long start = HostClock.ThreadCpuNs();
        while (true)
        {
            int e = v.Run();
            // SAFETY: kvm_run lives as long as the vCPU.
            uint reason = v.KvmRun->exit_reason;
            if (e == 0 && reason == KVM_EXIT_IO)
                return HostClock.ThreadCpuNs() - start;
            if (e != 0 || reason != KVM_EXIT_DIRTY_RING_FULL || ringFull is null)
                throw new InvalidOperationException($"unexpected exit {reason}, {e}");
            ringFull();
        }
    }

    public void Dispose()
    {
        Vm.Dispose();
        _code.Dispose();
    }
}
