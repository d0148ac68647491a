using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

namespace Ring3.Fuzz;

/// <summary>
/// A hostile Xen guest and a careless client: random hypercalls, attributes, sends, routes, slot changes and contents of every page that is shared.
/// <see cref="CasesPerRun"/> cases a run.
/// </summary>
/// <remarks>SAFETY: guest memory is one allocation with a guard area on each side, written through spans of its length.</remarks>
internal sealed unsafe class XenRun : IHostileRun
{
    public const int CasesPerRun = 50;
    private const int MemoryBytes = 1 << 20, GuardBytes = 1 << 16, SharedPages = 16;
    private const byte Guard = 0xa5;
    private const ulong Pml4 = 0x1000, Pdpt = 0x2000, Directory = 0x3000, Code = 0x10000, Shared = 0x20000, Arguments = 0x40000, OtherSlot = 0x200000;
    private static readonly uint[] s_calls = [XenAbi.event_channel_op, XenAbi.sched_op, XenAbi.vcpu_op, XenAbi.set_timer_op, XenAbi.xen_version, XenAbi.hvm_op];

    private readonly byte* _all = (byte*)NativeMemory.AlignedAlloc(MemoryBytes + 2 * GuardBytes, 1 << 16);
    private readonly byte* _memory;
    private readonly Lock _alive = new();
    private readonly Vcpu?[] _vcpus = new Vcpu?[2];
    private Vm? _vm;

    public XenRun()
    {
        _memory = _all + GuardBytes;
        new Span<byte>(_all, GuardBytes).Fill(Guard);
        new Span<byte>(_memory + MemoryBytes, GuardBytes).Fill(Guard);
    }

    public void Kick()
    {
        lock (_alive)
            _vcpus[0]?.Kick();
    }

    public void Recycle()
    {
        lock (_alive)
        {
            _vm?.Dispose();
            _vm = null;
            _vcpus[0] = _vcpus[1] = null;
        }
    }

    public void Dispose()
    {
        Recycle();
        NativeMemory.AlignedFree(_all);
    }

    public string Once(Random random)
    {
        if (_vm is null || random.Next(40) == 0)
            Create(random);
        ulong before = Hypercalls;
        for (int i = 0; i < CasesPerRun; i++)
            Case(random);
        if (_vm!.IsDead)
            throw new InvalidOperationException($"a host invariant is broken: {_vm.BugMessage}");
        if (new Span<byte>(_all, GuardBytes).IndexOfAnyExcept(Guard) >= 0 || new Span<byte>(_memory + MemoryBytes, GuardBytes).IndexOfAnyExcept(Guard) >= 0)
            throw new InvalidOperationException("a byte outside the guest's memory was written");
        return Hypercalls > before ? "with hypercalls" : "without";
    }

    private ulong Hypercalls => (ulong)_vcpus[0]!.Stats.hypercalls;

    private void Create(Random random)
    {
        Recycle();
        Vm vm = Vm.Create();
        Expect(vm.CreateIrqchip(), "CreateIrqchip");
        Span<byte> memory = new(_memory, MemoryBytes);
        memory.Clear();
        Span<ulong> words = MemoryMarshal.Cast<byte, ulong>(memory);
        (words[(int)Pml4 / 8], words[(int)Pdpt / 8], words[(int)Directory / 8]) = (Pdpt | 7, Directory | 7, 0x87);
        // vmmcall; out 0x80, al
        ((ReadOnlySpan<byte>)[0x0f, 0x01, 0xd9, 0xe6, 0x80]).CopyTo(memory[(int)Code..]);
        Expect(vm.SetUserMemoryRegion(0, random.Next(4) == 0 ? KVM_MEM_LOG_DIRTY_PAGES : 0, 0, MemoryBytes, (ulong)_memory), "SetUserMemoryRegion");
        lock (_alive)
        {
            _vm = vm;
            for (uint i = 0; i < 2; i++)
                _vcpus[i] = vm.CreateVcpu(i);
        }
        Expect(vm.XenHvmConfig(new() { flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND, msr = 0x4000_0000 }), "XenHvmConfig");
        _ = vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_LONG_MODE, long_mode = (byte)random.Next(2) });
        _ = vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn = Shared >> 12 });
        for (uint i = 0; i < 2; i++)
            _ = _vcpus[i]!.XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa = Shared + 64 * i });
    }

    private static void Expect(int result, string what)
    {
        if (result < 0)
            throw new InvalidOperationException($"{what}: {result}");
    }

    private void Case(Random random)
    {
        switch (random.Next(12))
        {
            case <= 3: Hypercall(random); break;
            case 4: SetVmAttribute(random); break;
            case <= 6: SetVcpuAttribute(random); break;
            case 7: Send(random); break;
            case 8: GetAttributes(random); break;
            case <= 10: Scribble(random); break;
            default: ChangeMemory(random); break;
        }
    }

    private static ulong AnyGpa(Random random) => random.Next(8) switch
    {
        0 => (ulong)random.NextInt64(),
        1 => ulong.MaxValue - (ulong)random.Next(64),
        2 => MemoryBytes - (ulong)random.Next(128),
        3 => OtherSlot + (ulong)random.Next(8192),
        4 => Shared + (ulong)random.Next(SharedPages) * 4096 + 4096 - (ulong)random.Next(64),
        _ => Shared + (ulong)random.Next(SharedPages * 4096 / 8) * 8,
    };

    private static uint AnyPort(Random random) => random.Next(6) switch { 0 => (uint)random.NextInt64(), 1 => (uint)random.Next(140_000), 2 =>
        (uint)random.Next(5000), _ => (uint)random.Next(64) };

    private static uint AnyPirq(Random random) => random.Next(6) == 0 ? (uint)random.NextInt64() : (uint)random.Next(64);

    private static uint AnyPriority(Random random) => random.Next(3) == 0 ? (uint)random.Next(20) : KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL;

    /// <summary>A host address the client may name: guest memory, or nothing at all. Anything else would be the client's own harm.</summary>
    private ulong AnyHva(Random random) => random.Next(3) == 0 ? (ulong)random.Next(1, 15) * 4096 : (ulong)_memory + Shared
        + (ulong)random.Next(SharedPages) * 4096 + (random.Next(3) == 0 ? (ulong)random.Next(4096) : 0);

    private void SetVmAttribute(Random random)
    {
        kvm_xen_hvm_attr a = new() { type = random.Next(8) switch { 0 => RING3_XEN_ATTR_TYPE_FIFO, 1 => RING3_XEN_ATTR_TYPE_PIRQ, _ => (ushort)random.Next(9) },
            gfn = (ulong)random.NextInt64() };
        switch (a.type)
        {
            case KVM_XEN_ATTR_TYPE_SHARED_INFO: a.gfn = random.Next(6) == 0 ? (ulong)random.NextInt64() : (Shared >> 12) + (ulong)random.Next(SharedPages);
                break;
            case KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA: a.hva = random.Next(6) == 0 ? 0 : AnyHva(random); break;
            case KVM_XEN_ATTR_TYPE_EVTCHN:
                uint port = AnyPort(random);
                a.evtchn = new() { send_port = port, type = (uint)random.Next(7), flags = random.Next(3) == 0 ? (uint)random.Next(6) : 0,
                    port = random.Next(2) == 0 ? port : AnyPort(random), vcpu = (uint)random.Next(4), priority = AnyPriority(random) };
                break;
            case RING3_XEN_ATTR_TYPE_PIRQ: a.pirq = new() { pirq = AnyPirq(random), port = AnyPort(random), vcpu = (uint)random.Next(4),
                priority = AnyPriority(random) }; break;
            case RING3_XEN_ATTR_TYPE_FIFO: a.fifo = new() { command = (uint)random.Next(4), gfn = random.Next(8) == 0 ? (ulong)random.NextInt64()
                : (Shared >> 12) + (ulong)random.Next(SharedPages) }; break;
        }
        _ = _vm!.XenSetAttr(a);
    }

    private void SetVcpuAttribute(Random random)
    {
        kvm_xen_vcpu_attr a = new() { type = random.Next(8) switch { 0 => RING3_XEN_VCPU_ATTR_TYPE_FIFO_CONTROL, 1 => RING3_XEN_VCPU_ATTR_TYPE_FIFO_TAILS,
            _ => (ushort)random.Next(12) }, gpa = AnyGpa(random) };
        switch (a.type)
        {
            case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA: a.hva = AnyHva(random); break;
            case KVM_XEN_VCPU_ATTR_TYPE_TIMER: a.timer = new() { port = AnyPort(random), priority = AnyPriority(random), expires_ns = random.Next(2) == 0
                ? (ulong)_vm!.Clock.NowNs + (ulong)random.Next(2_000_000) : (ulong)random.NextInt64() }; break;
            case RING3_XEN_VCPU_ATTR_TYPE_FIFO_TAILS: a.fifo_tails[random.Next((int)XenAbi.Fifo.Queues)] = AnyPort(random); break;
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT: a.runstate.state = (ulong)random.Next(6); break;
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA or KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
                ulong t = (ulong)random.NextInt64() >> random.Next(64);
                a.runstate = new() { state = random.Next(4) == 0 ? ulong.MaxValue : (ulong)random.Next(5), state_entry_time = random.Next(2) == 0 ? t : 0,
                    time_blocked = t };
                break;
        }
        _ = _vcpus[random.Next(2)]!.XenSetAttr(a);
    }

    private void GetAttributes(Random random)
    {
        kvm_xen_hvm_attr a = new() { type = (ushort)random.Next(9) };
        _ = _vm!.XenGetAttr(ref a);
        kvm_xen_vcpu_attr v = new() { type = (ushort)random.Next(12) };
        _ = _vcpus[random.Next(2)]!.XenGetAttr(ref v);
    }

    private void Send(Random random)
    {
        kvm_irq_routing_xen_evtchn e = new() { port = AnyPort(random), vcpu = (uint)random.Next(3), priority = AnyPriority(random) };
        int how = random.Next(5);
        if (how <= 2)
        {
            _ = _vm!.XenEvtchnSend(e);
            return;
        }
        if (how == 3)
        {
            // A message that names a PIRQ, more or less.
            uint pirq = AnyPirq(random);
            _ = _vm!.SignalMsi(0xfee0_0000 | (pirq & 0xff) << 12 | (ulong)(pirq >> 8) << 40, 7 << 8 | (random.Next(8) == 0 ? (uint)random.Next(1 << 16) : 0));
            return;
        }
        _ = _vm!.SetGsiRouting([new() { gsi = 30, type = KVM_IRQ_ROUTING_XEN_EVTCHN, xen_evtchn = e }]);
        _ = _vm.IrqLine(30, random.Next(4) != 0);
    }

    /// <summary>What another processor of the guest might write at any time.</summary>
    private void Scribble(Random random)
    {
        Span<ulong> words = new(_memory + Shared, SharedPages * 512);
        for (int i = random.Next(64); i >= 0; i--)
            words[random.Next(words.Length)] = random.Next(3) switch { 0 => 0, 1 => ulong.MaxValue, _ => (ulong)random.NextInt64() };
    }

    private void ChangeMemory(Random random)
    {
        if (random.Next(2) == 0)
        {
            _ = _vm!.SetUserMemoryRegion(1, 0, OtherSlot, random.Next(2) == 0 ? 0 : 8192u, (ulong)_memory + 0x80000);
            return;
        }
        ulong start = (ulong)_memory + Shared + (ulong)random.Next(SharedPages) * 4096;
        if (_vm!.Slots.Notifier.InvalidateRangeStart(start, start + 4096))
            _vm.Slots.Notifier.InvalidateRangeEnd(start, start + 4096);
    }

    private void Hypercall(Random random)
    {
        Vcpu vcpu = _vcpus[0]!;
        bool wide = random.Next(2) == 0;
        SetState(vcpu, wide);
        ulong argument = random.Next(5) == 0 ? AnyGpa(random) : Arguments + (ulong)random.Next(4096);
        FillArgument(random, argument);
        uint number = random.Next(12) == 0 ? (uint)random.NextInt64() : s_calls[random.Next(s_calls.Length)];
        ulong command = number == XenAbi.event_channel_op ? XenAbi.EVTCHNOP_send : number == XenAbi.sched_op && random.Next(20) == 0 ? XenAbi.SCHEDOP_poll
            : (ulong)random.Next(16);
        if (number == XenAbi.sched_op && command == XenAbi.SCHEDOP_poll && random.Next(20) != 0)
            command = XenAbi.SCHEDOP_yield;
        ulong third = number == XenAbi.vcpu_op ? argument : (ulong)random.NextInt64();
        ulong second = number == XenAbi.vcpu_op ? (ulong)random.Next(3) : argument;
        if (number == XenAbi.set_timer_op)
            command = (ulong)random.NextInt64() >> random.Next(64);
        kvm_regs r = new() { rip = Code, rsp = 0x9000, rflags = Rflags.Fixed1, rax = number };
        if (wide)
            (r.rdi, r.rsi, r.rdx, r.r10) = (command, second, third, argument);
        else
            (r.rbx, r.rcx, r.rdx, r.rsi) = (command, second, third, argument);
        vcpu.SetRegs(r);
        for (int i = 0; i < 4; i++)
        {
            int e = vcpu.Run();
            if (e < 0 || vcpu.KvmRun->exit_reason != KVM_EXIT_XEN)
                return;
            vcpu.KvmRun->xen.result = (ulong)random.NextInt64();
        }
    }

    private void FillArgument(Random random, ulong gva)
    {
        if (gva > MemoryBytes - 64)
            return;
        Span<uint> words = new(_memory + (gva & ~3UL), 8);
        if (random.Next(2) == 0)
        {
            foreach (ref uint w in words)
                w = AnyPort(random);
            return;
        }
        // A plausible poll: ports, count, timeout in the nanoseconds.
        (words[0], words[1], words[2], words[3], words[4], words[5]) = ((uint)Arguments, random.Next(2) == 0 ? 0 : (uint)random.Next(130),
            (uint)random.Next(130), 0, (uint)random.Next(1_000_000), 0);
    }

    private static void SetState(Vcpu vcpu, bool wide)
    {
        vcpu.GetSregs(out kvm_sregs s);
        s.cs = new kvm_segment { limit = uint.MaxValue, selector = 8, type = 11, present = 1, s = 1, g = 1, l = wide ? (byte)1 : (byte)0, db = wide ? (byte)0
            : (byte)1 };
        s.ds = s.es = s.fs = s.gs = s.ss = new kvm_segment { limit = uint.MaxValue, selector = 16, type = 3, present = 1, s = 1, g = 1, db = 1 };
        s.cr3 = Pml4;
        s.cr4 = wide ? Cr4.PAE : 0;
        s.cr0 = wide ? Cr0.PE | Cr0.PG | Cr0.ET : Cr0.PE | Cr0.ET;
        s.efer = wide ? Efer.LME | Efer.LMA : 0;
        Expect(vcpu.SetSregs(s), "SetSregs");
        vcpu.SetMpState(new kvm_mp_state { mp_state = 0 });
    }
}
