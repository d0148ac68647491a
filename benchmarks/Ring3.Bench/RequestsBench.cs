using System.Diagnostics;
using System.Globalization;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Kvm;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Bench;

/// <summary>
/// <c>bench requests</c>: how long a waiting request to all vCPUs takes while one runs guest code (from the call to its return; samples in which the
/// vCPU was kicked), for several kinds of guest code; how long a halted vCPU takes to run again;
/// and how many kicks a storm of requests without Wait sends for each exit of the guest.
/// </summary>
internal static class RequestsBench
{
    private const int Waits = 20_000, WaitsWarm = 2_000, Wakes = 1_000, DeadlineCount = 3_000, StormRequests = 1_000_000, StormParts = 10;
    private const uint Code = 0x1000, Handler = 0x1800, Gdt = 0x5000, Idt = 0x3000;
    private const ulong Progress = 0x8000;

    // The work of a kernel: calls, branches, loads, stores. again: mov ecx, 100; loop: add eax, [0x9000]; xor eax, ecx; mov [0x9040], eax; call f; dec
    // ecx; jnz loop; inc dword [0x8000]; jmp again; f: test eax, eax; js +1; nop; ret
    private static ReadOnlySpan<byte> Mixed =>
    [
        0xb9, 100, 0, 0, 0, 0x03, 0x05, 0x00, 0x90, 0, 0, 0x31, 0xc8, 0xa3, 0x40, 0x90, 0, 0, 0xe8, 0x0b, 0, 0, 0, 0x49, 0x75, 0xeb, 0xff, 0x05, 0x00, 0x80, 0,
            0, 0xeb, 0xde, 0x85, 0xc0, 0x78, 0x01, 0x90, 0xc3,
    ];

    // again: mov esi, 0x100000; mov edi, 0x200000; mov ecx, 0x20000; rep movsb; inc dword [0x8000]; jmp again
    private static ReadOnlySpan<byte> Copy => [0xbe, 0, 0, 0x10, 0, 0xbf, 0, 0, 0x20, 0, 0xb9, 0, 0, 2, 0, 0xf3, 0xa4, 0xff, 0x05, 0x00, 0x80, 0, 0, 0xeb,
        0xe7];

    // again: fldpi; fsin (x87, by thunk); fstp st0; inc dword [0x8000]; jmp again
    private static ReadOnlySpan<byte> Float => [0xd9, 0xeb, 0xd9, 0xfe, 0xdd, 0xd8, 0xff, 0x05, 0x00, 0x80, 0, 0, 0xeb, 0xf2];

    // sti; again: hlt; jmp again. The handler writes EOI and counts.
    private static ReadOnlySpan<byte> Halting => [0xfb, 0xf4, 0xeb, 0xfd];
    private static ReadOnlySpan<byte> CountHandler => [0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0, 0, 0, 0, 0xff, 0x05, 0x00, 0x80, 0, 0, 0xcf];

    internal static int Run()
    {
        var flush = VcpuRequest.TlbFlush;
        (double P50, double P99, long Sleeps, long Waits) mixed = Wait(Mixed, flush);
        Print("requests.wait_kick_p50_us", mixed.P50, "us");
        Print("requests.wait_kick_p99_us", mixed.P99, "us");
        Print("requests.wait_kick_slept_pct", 100.0 * mixed.Sleeps / Math.Max(1, mixed.Waits), "%");
        foreach (var (name, code) in (ReadOnlySpan<(string, byte[])>)[("copy", Copy.ToArray()), ("x87", Float.ToArray())])
        {
            var r = Wait(code, flush);
            Print($"requests.wait_kick_{name}_p50_us", r.P50, "us");
            Print($"requests.wait_kick_{name}_p99_us", r.P99, "us");
        }
        var outside = Wait(Mixed, VcpuRequest.OutsideGuestMode);
        Print("requests.wait_outside_p50_us", outside.P50, "us");
        Print("requests.wait_outside_p99_us", outside.P99, "us");
        foreach (var (name, pollNs) in (ReadOnlySpan<(string, long)>)[("poll", 200_000), ("sleep", 0)])
        {
            var wake = Wake(pollNs);
            Print($"requests.halt_wake_{name}_p50_us", wake.P50, "us");
            Print($"requests.halt_wake_{name}_p99_us", wake.P99, "us");
        }
        foreach (bool halts in (ReadOnlySpan<bool>)[false, true])
        {
            var late = Deadlines(halts);
            Print($"requests.deadline_late_{(halts ? "halted" : "running")}_p50_us", late.P50, "us");
            Print($"requests.deadline_late_{(halts ? "halted" : "running")}_p99_us", late.P99, "us");
            Print($"requests.deadline_late_{(halts ? "halted" : "running")}_max_us", late.Max, "us");
        }
        Storm();
        return 0;
    }

    /// <summary>Microseconds of a waiting request to a vCPU that runs <paramref name="code"/>.</summary>
    private static (double P50, double P99, long Sleeps, long Waits) Wait(ReadOnlySpan<byte> code, VcpuRequest request)
    {
        using Guest guest = new(code, irqchip: false);
        guest.Start();
        double[] us = new double[Waits];
        Random random = new(1);
        RequestCounters before = default;
        for (int n = -WaitsWarm; n < Waits;)
        {
            if (n == 0)
                before = guest.Cpu.Requests.Counters;
            // The guest is in again, and somewhere: the request does not meet the same instruction each time.
            guest.WaitUntilInGuest();
            for (int spin = random.Next(200); spin > 0; spin--)
                Thread.SpinWait(1);
            long start = Stopwatch.GetTimestamp();
            bool kicked = guest.Vm.MakeAllRequest(request);
            double time = Stopwatch.GetElapsedTime(start).TotalMicroseconds;
            if (!kicked)
                continue;
            if (n >= 0)
                us[n] = time;
            n++;
        }
        RequestCounters after = guest.Cpu.Requests.Counters;
        return (Percentile(us, 0.5), Percentile(us, 0.99), after.Sleeps - before.Sleeps, after.Waits - before.Waits);
    }

    /// <summary>Microseconds from an interrupt to a halted vCPU until its handler has counted.</summary>
    private static (double P50, double P99) Wake(long pollNs)
    {
        using Guest guest = new(Halting, irqchip: true, pollNs);
        guest.Start();
        double[] us = new double[Wakes];
        for (int n = 0; n < Wakes; n++)
        {
            while (guest.Cpu.Requests.Mode != VcpuMode.OutsideGuestMode)
                Thread.SpinWait(1);
            for (int spin = 0; spin < 500; spin++)
                Thread.SpinWait(1);
            guest.Vm.Memory.TryRead(Progress, out uint old);
            long start = Stopwatch.GetTimestamp();
            guest.Vm.SignalMsi(new kvm_msi { address_lo = 0xfee00000, data = 0x40 });
            uint now;
            do
                guest.Vm.Memory.TryRead(Progress, out now);
            while (now == old);
            us[n] = Stopwatch.GetElapsedTime(start).TotalMicroseconds;
        }
        return (Percentile(us, 0.5), Percentile(us, 0.99));
    }

    /// <summary>
    /// Microseconds between a TSC deadline, 300 us away when it is set, and the first instruction of the interrupt's handler, by the guest's own clock;
    /// the guest spins or halts meanwhile. To be run beside other load as well.
    /// </summary>
    private static (double P50, double P99, double Max) Deadlines(bool halts)
    {
        const uint Late = 0x100000, DelayUs = 300;
        using Guest guest = new([], irqchip: true);
        // spins: cmp [0x8000], edi; je spins. halts: cli; cmp [0x8000], edi; jne done; sti; hlt; jmp halts
        ReadOnlySpan<byte> wait = halts ? [0xfa, 0x39, 0x3d, 0x00, 0x80, 0, 0, 0x75, 0x04, 0xfb, 0xf4, 0xeb, 0xf3] : [0xfb, 0x39, 0x3d, 0x00, 0x80, 0, 0, 0x74,
            0xf8];
        guest.Vm.Memory.Write(Code,
        [
            0xc7, 0x05, 0x20, 0x03, 0xe0, 0xfe, 0x40, 0x00, 0x04, 0x00, 0x31, 0xf6, // LVT timer: TSC deadline, vector 0x40; xor esi, esi
            0x8b, 0x3d, 0x00, 0x80, 0, 0, 0x0f, 0x31, 0x05, .. BitConverter.GetBytes(guest.Cpu.TscKhz / 1000 * DelayUs), 0x83, 0xd2, 0,
                // again: mov edi, [0x8000]; rdtsc; add eax, ticks; adc edx, 0
            0x89, 0xc3, 0xb9, 0xe0, 0x06, 0, 0, 0x0f, 0x30, .. wait, // mov ebx, eax; wrmsr; wait
            0x29, 0xdd, 0x89, 0x2c, 0xb5, .. BitConverter.GetBytes(Late), 0x46, 0x81, 0xfe, .. BitConverter.GetBytes(DeadlineCount),
                // sub ebp, ebx; mov [late + 4 * esi], ebp; inc esi; cmp esi, count
            0x72, (byte)-(25 + wait.Length + 18), 0xe6, 0xf4, // jb again; out 0xf4, al
        ]);
        // rdtsc; mov ebp, eax; EOI; inc dword [0x8000]; iret
        guest.Vm.Memory.Write(Handler, [0x0f, 0x31, 0x89, 0xc5, .. CountHandler]);
        if (guest.Cpu.Run() != 0)
            throw new InvalidOperationException("the guest did not finish");
        double[] us = new double[DeadlineCount];
        for (uint n = 0; n < DeadlineCount; n++)
        {
            guest.Vm.Memory.TryRead(Late + 4 * n, out int ticks);
            us[n] = ticks * 1000.0 / guest.Cpu.TscKhz;
        }
        return (Percentile(us, 0.5), Percentile(us, 0.99), us[^1]);
    }

    /// <summary>
    /// Two threads make requests without Wait, one to the vCPU and one to all. The vCPU is stopped between the parts, so that kicks and exits are
    /// counted exactly.
    /// </summary>
    private static void Storm()
    {
        using Guest guest = new(Mixed, irqchip: false);
        double worst = 0;
        RequestCounters total = default;
        long exits = 0;
        double seconds = 0;
        for (int part = 0; part < StormParts; part++)
        {
            guest.Start();
            guest.WaitUntilInGuest();
            RequestCounters before = guest.Cpu.Requests.Counters;
            uint exitsBefore = guest.Cpu.Requests.Exits;
            long start = Stopwatch.GetTimestamp();
            Thread other = new(() => Post(guest, all: true));
            other.Start();
            Post(guest, all: false);
            other.Join();
            seconds += Stopwatch.GetElapsedTime(start).TotalSeconds;
            guest.Stop();
            RequestCounters after = guest.Cpu.Requests.Counters;
            long kicks = after.Kicks - before.Kicks, left = guest.Cpu.Requests.Exits - exitsBefore;
            worst = Math.Max(worst, (double)kicks / left);
            exits += left;
            total.Kicks += kicks;
            total.KicksElided += after.KicksElided - before.KicksElided;
            total.Wakeups += after.Wakeups - before.Wakeups;
        }
        // Unrounded: a hair above 1 would be a kick too many.
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"requests.kicks_per_exit_max\t{worst}\tkicks"));
        Print("requests.storm_requests", total.Requests, "requests");
        Print("requests.storm_kicks", total.Kicks, "kicks");
        Print("requests.storm_elided", total.KicksElided, "requests");
        Print("requests.storm_exits", exits, "exits");
        Print("requests.storm_ns_per_request", seconds * 1e9 * 2 / total.Requests, "ns");
    }

    private static void Post(Guest guest, bool all)
    {
        ReadOnlySpan<VcpuRequest> kinds = [VcpuRequest.Event, VcpuRequest.ClockUpdate, VcpuRequest.Unblock, VcpuRequest.ScanIoapic];
        for (int n = 0; n < StormRequests / StormParts / 2; n++)
        {
            if (all)
                guest.Vm.MakeAllRequest(kinds[n & 3]);
            else
                guest.Cpu.Requests.Make(kinds[n & 3]);
        }
    }

    private static double Percentile(double[] values, double part)
    {
        Array.Sort(values);
        return values[(int)(values.Length * part)];
    }

    private static void Print(string name, double value, string unit) =>
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name}\t{value:0.###}\t{unit}"));

    /// <summary>One vCPU in flat 32-bit mode on a thread of its own.</summary>
    private sealed unsafe class Guest : IDisposable
    {
        private const ulong MemorySize = 16 << 20;
        private readonly GuestRam _ram = new(MemorySize);
        private Thread? _thread;
        private int _stop;

        internal Guest(ReadOnlySpan<byte> code, bool irqchip, long haltPollNs = 0)
        {
            Vm = Vm.Create(new VmOptions { HaltPollNs = haltPollNs });
            if (irqchip)
                Check(Vm.CreateIrqchip());
            Check(Vm.SetUserMemoryRegion(0, 0, 0, MemorySize, _ram.Hva));
            Vm.Memory.Write(Code, code);
            Vm.Memory.Write(Handler, CountHandler);
            Vm.Memory.TryWrite(Gdt + 8, 0x00cf_9b00_0000_ffffUL);
            Vm.Memory.TryWrite(Gdt + 16, 0x00cf_9300_0000_ffffUL);
            Vm.Memory.TryWrite(Idt + 8 * 0x40UL, Handler | 8UL << 16 | 0x8e00UL << 32);
            Cpu = Vm.CreateVcpu(0);
            Cpu.GetSregs(out kvm_sregs s);
            kvm_segment cs = new() { limit = uint.MaxValue, selector = 8, type = 11, present = 1, s = 1, db = 1, g = 1 },
                data = new() { limit = uint.MaxValue, selector = 16, type = 3, present = 1, s = 1, db = 1, g = 1 };
            (s.cs, s.ds, s.es, s.fs, s.gs, s.ss) = (cs, data, data, data, data, data);
            (s.gdt.@base, s.gdt.limit, s.idt.@base, s.idt.limit) = (Gdt, 0x17, Idt, 0x7ff);
            s.cr0 = Cr0.PE | Cr0.ET;
            Check(Cpu.SetSregs(s));
            Cpu.SetRegs(new kvm_regs { rip = Code, rsp = 0xf000, rflags = Rflags.Fixed1 });
            if (irqchip)
            {
                // Software-enables the local APIC: spurious-interrupt vector register.
                Check(Cpu.GetLapic(out kvm_lapic_state lapic));
                *(uint*)((byte*)&lapic + 0xf0) = 0x1ff;
                Check(Cpu.SetLapic(lapic));
            }
        }

        internal Vm Vm { get; }
        internal Vcpu Cpu { get; }

        internal void Start()
        {
            Volatile.Write(ref _stop, 0);
            _thread = new Thread(() =>
            {
                while (Volatile.Read(ref _stop) == 0)
                    if (Cpu.Run() is var r && r != -Errno.EINTR)
                        throw new InvalidOperationException($"KVM_RUN gave {r}, exit {Cpu.KvmRun->exit_reason}");
            });
            _thread.Start();
        }

        internal void Stop()
        {
            if (_thread is null)
                return;
            Volatile.Write(ref _stop, 1);
            Cpu.Kick();
            _thread.Join();
            _thread = null;
        }

        internal void WaitUntilInGuest()
        {
            while (Cpu.Requests.Mode != VcpuMode.InGuestMode)
                Thread.SpinWait(1);
        }

        private static void Check(int r)
        {
            if (r < 0)
                throw new InvalidOperationException($"error {r}");
        }

        public void Dispose()
        {
            Stop();
            Vm.Dispose();
            _ram.Dispose();
        }
    }
}
