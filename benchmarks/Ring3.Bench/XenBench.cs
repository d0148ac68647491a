using System.Diagnostics;
using System.Globalization;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

namespace Ring3.Bench;

/// <summary>
/// <c>bench xen</c>: from EVTCHNOP_send on one vCPU until the other vCPU's handler has run, in the hypervisor and bounced through the client (KVM_EXIT_XEN, then KVM_XEN_HVM_EVTCHN_SEND); and from a write to an eventfd until the
/// handler has run. Both vCPUs spin in the guest. With two levels (xen.*) and FIFO channels (fifo.*).
/// </summary>
internal static class XenBench
{
    private const int Events = 20_000, HostEvents = 5_000;
    private const uint Port = 5;
    private const ulong Counter = 0x8000, Argument = 0x8020, Shared = 0x20000, Control = 0x21000, EventArray = 0x22000, Times = 0x40000, Idt = 0x3000, Gdt = 0x5000;
    private const uint Sender = 0x1000, Target = 0x1100, TwoLevelHandler = 0x1200, FifoHandler = 0x1280;
    private const byte UpcallVector = 0xf3;

    // Each event: read the counter, RDTSC, EVTCHNOP_send by VMMCALL, PAUSE until the counter moves, RDTSC, store the difference. At the end OUT 0x80.
    private static ReadOnlySpan<byte> SenderCode =>
    [
        0xbf, 0x00, 0x00, 0x04, 0x00, 0x8b, 0x2d, 0x00, 0x80, 0x00, 0x00, 0x0f, 0x31, 0xa3, 0x10, 0x80, 0x00, 0x00, 0xb8, 0x20, 0x00, 0x00, 0x00, 0xbb, 0x04, 0x00, 0x00, 0x00, 0xb9, 0x20, 0x80, 0x00,
        0x00, 0x0f, 0x01, 0xd9, 0xf3, 0x90, 0x39, 0x2d, 0x00, 0x80, 0x00, 0x00, 0x74, 0xf6, 0x0f, 0x31, 0x2b, 0x05, 0x10, 0x80, 0x00, 0x00, 0x89, 0x07, 0x83, 0xc7, 0x04, 0x4e, 0x75, 0xc7, 0xe6, 0x80,
    ];

    // sti; again: pause; jmp again
    private static ReadOnlySpan<byte> TargetCode => [0xfb, 0xf3, 0x90, 0xeb, 0xfc];

    // Clears upcall_pending, takes the selector, clears the pending bit, counts.
    private static ReadOnlySpan<byte> TwoLevelCode =>
        [0x50, 0xc6, 0x05, 0x40, 0x00, 0x02, 0x00, 0x00, 0x31, 0xc0, 0x87, 0x05, 0x44, 0x00, 0x02, 0x00, 0xf0, 0x83, 0x25, 0x00, 0x08, 0x02, 0x00, 0xdf, 0xff, 0x05, 0x00, 0x80, 0x00, 0x00, 0x58, 0xcf];

    // Clears upcall_pending, unlinks and clears the only event, clears the ready word, counts.
    private static ReadOnlySpan<byte> FifoCode =>
        [0x50, 0xc6, 0x05, 0x40, 0x00, 0x02, 0x00, 0x00, 0xf0, 0x81, 0x25, 0x14, 0x20, 0x02, 0x00, 0x00, 0x00, 0xfe, 0x5f, 0xf0, 0x83, 0x25, 0x00, 0x10, 0x02, 0x00, 0x00, 0xff, 0x05, 0x00, 0x80, 0x00, 0x00, 0x58, 0xcf];

    internal static int Run()
    {
        foreach (string abi in (string[])["xen", "fifo"])
        {
            bool fifo = abi == "fifo";
            var (p50, p99) = Ipi(fifo, inside: true);
            var (bounce50, bounce99) = Ipi(fifo, inside: false);
            var (event50, event99) = Eventfd(fifo);
            Print($"{abi}.ipi_p50_us", p50, "us");
            Print($"{abi}.ipi_p99_us", p99, "us");
            Print($"{abi}.ipi_bounce_p50_us", bounce50, "us");
            Print($"{abi}.ipi_bounce_p99_us", bounce99, "us");
            Print($"{abi}.ipi_gain", bounce50 / p50, "x");
            Print($"{abi}.eventfd_p50_us", event50, "us");
            Print($"{abi}.eventfd_p99_us", event99, "us");
        }
        return 0;
    }

    private static (double P50, double P99) Ipi(bool fifo, bool inside)
    {
        using Guest guest = new(fifo, inside);
        guest.Start();
        guest.RunSender(Events);
        double[] us = new double[Events];
        for (int i = 0; i < Events; i++)
        {
            guest.Vm.Memory.TryRead(Times + 4 * (ulong)i, out uint ticks);
            us[i] = ticks * 1e3 / guest.TscKhz;
        }
        return Percentiles(us);
    }

    private static (double P50, double P99) Eventfd(bool fifo)
    {
        using Guest guest = new(fifo, inside: true);
        guest.Start();
        int fd = EventFd.Create();
        guest.RouteEventfd(fd);
        double[] us = new double[HostEvents];
        for (int i = 0; i < HostEvents; i++)
        {
            guest.Vm.Memory.TryRead(Counter, out uint before);
            long start = Stopwatch.GetTimestamp();
            EventFd.Signal(fd);
            uint now;
            do
                guest.Vm.Memory.TryRead(Counter, out now);
            while (now == before);
            us[i] = Stopwatch.GetElapsedTime(start).TotalMicroseconds;
        }
        return Percentiles(us);
    }

    private static (double P50, double P99) Percentiles(double[] values)
    {
        Array.Sort(values);
        return (values[values.Length / 2], values[values.Length * 99 / 100]);
    }

    private static void Print(string name, double value, string unit) => Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name}\t{value:0.###}\t{unit}"));

    /// <summary>Two vCPUs in 32-bit protected mode without paging.</summary>
    private sealed class Guest : IDisposable
    {
        private readonly VirtualMemoryBlock _memory = new(1 << 20);
        private readonly Vcpu _sender, _target;
        private readonly Thread _thread;
        private volatile bool _stop;

        public Vm Vm { get; } = Vm.Create();
        public uint TscKhz => _sender.TscKhz;

        public Guest(bool fifo, bool inside)
        {
            Check(Vm.CreateIrqchip());
            Check(Vm.SetUserMemoryRegion(0, 0, 0, _memory.Bytes, _memory.Address));
            _sender = Vm.CreateVcpu(0);
            _target = Vm.CreateVcpu(1);
            Place();
            Check(Vm.XenHvmConfig(new() { flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND, msr = 0x4000_0000 }));
            Check(Vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn = Shared >> 12 }));
            Check(Vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector = UpcallVector }));
            Check(_target.XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa = Shared + XenAbi.VcpuInfo.Size }));
            if (fifo)
            {
                Check(Vm.XenSetAttr(new kvm_xen_hvm_attr { type = RING3_XEN_ATTR_TYPE_FIFO, fifo = new() { command = RING3_XEN_FIFO_ON } }));
                Check(Vm.XenSetAttr(new kvm_xen_hvm_attr { type = RING3_XEN_ATTR_TYPE_FIFO, fifo = new() { command = RING3_XEN_FIFO_EXPAND, gfn = EventArray >> 12 } }));
                Check(_target.XenSetAttr(new() { type = RING3_XEN_VCPU_ATTR_TYPE_FIFO_CONTROL, gpa = Control }));
            }
            if (inside)
                Check(Vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_EVTCHN, evtchn = new() { send_port = Port, type = XenAbi.EVTCHNSTAT_ipi, port = Port, vcpu = 1, priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL } }));
            Gate(fifo ? FifoHandler : TwoLevelHandler);
            Enter(_sender, Sender, 0x7000);
            Enter(_target, Target, 0x6000);
            _thread = new Thread(() =>
            {
                while (!_stop)
                    _target.Run();
            }) { IsBackground = true };
        }

        private static void Check(int result)
        {
            if (result < 0)
                throw new InvalidOperationException($"error {-result}");
        }

        private void Place()
        {
            foreach (var (at, code) in new[] { (Sender, SenderCode.ToArray()), (Target, TargetCode.ToArray()), (TwoLevelHandler, TwoLevelCode.ToArray()), (FifoHandler, FifoCode.ToArray()) })
                Vm.Memory.Write(at, code);
            Vm.Memory.TryWrite(Argument, Port);
            Vm.Memory.TryWrite(Gdt + 8, 0x00cf9b000000ffffUL);
            Vm.Memory.TryWrite(Gdt + 16, 0x00cf93000000ffffUL);
        }

        private void Gate(uint handler) => Vm.Memory.TryWrite(Idt + UpcallVector * 8UL, handler & 0xffff | 8UL << 16 | 0x8e00UL << 32 | (ulong)(handler >> 16) << 48);

        private static void Enter(Vcpu vcpu, uint rip, uint rsp)
        {
            vcpu.GetSregs(out kvm_sregs s);
            s.cs = new kvm_segment { limit = uint.MaxValue, selector = 8, type = 11, present = 1, s = 1, g = 1, db = 1 };
            s.ds = s.es = s.fs = s.gs = s.ss = new kvm_segment { limit = uint.MaxValue, selector = 16, type = 3, present = 1, s = 1, g = 1, db = 1 };
            (s.gdt.@base, s.gdt.limit, s.idt.@base, s.idt.limit) = (Gdt, 23, Idt, 0x7ff);
            s.cr0 = Cr0.PE | Cr0.ET;
            Check(vcpu.SetSregs(s));
            vcpu.SetRegs(new kvm_regs { rip = rip, rsp = rsp, rsi = Events, rflags = Rflags.Fixed1 });
            vcpu.SetMpState(new kvm_mp_state { mp_state = 0 });
        }

        public void Start() => _thread.Start();

        public unsafe void RunSender(int events)
        {
            _sender.GetRegs(out kvm_regs r);
            r.rsi = (ulong)events;
            _sender.SetRegs(r);
            while (true)
            {
                int e = _sender.Run();
                // SAFETY: kvm_run lives as long as the vCPU.
                kvm_run* run = _sender.KvmRun;
                if (e == 0 && run->exit_reason == KVM_EXIT_IO)
                    return;
                if (e != 0 || run->exit_reason != KVM_EXIT_XEN)
                    throw new InvalidOperationException($"unexpected exit {run->exit_reason}, {e}");
                run->xen.result = (ulong)(long)Vm.XenEvtchnSend(new() { port = Port, vcpu = 1, priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL });
            }
        }

        public void RouteEventfd(int fd)
        {
            const uint Gsi = 30;
            Check(Vm.SetGsiRouting([new() { gsi = Gsi, type = KVM_IRQ_ROUTING_XEN_EVTCHN, xen_evtchn = new() { port = Port, vcpu = 1, priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL } }]));
            Check(Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)fd, gsi = Gsi }));
        }

        public void Dispose()
        {
            _stop = true;
            _target.Kick();
            if (_thread.IsAlive)
                _thread.Join();
            Vm.Dispose();
            _memory.Dispose();
        }
    }

    /// <summary>Host memory for the guest.</summary>
    private sealed unsafe class VirtualMemoryBlock(int bytes) : IDisposable
    {
        // SAFETY: mapped until Dispose.
        private readonly byte* _p = HostMemory.Map((nuint)bytes);
        public ulong Address => (ulong)_p;
        public ulong Bytes => (ulong)bytes;
        public void Dispose() => HostMemory.Unmap(_p, (nuint)bytes);
    }
}
