using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Irqchip;
using Ring3.Mmu;

namespace Ring3.Kvm;

/// <summary>
/// A virtual processor: identity, KVM_RUN, requests and exits; everything else is a part. <see cref="Run"/> executes guest code on the calling thread until
/// something needs the client; see <see cref="kvm_run"/> for the exits. State members are for the thread that runs the vCPU, or for any thread while it is not
/// running; <see cref="Kick"/>, <see cref="InjectNmi"/> and the request members are for any thread.
/// </summary>
/// <remarks>SAFETY: _s, _exit and KvmRun are the core's (see VcpuCore); all live until the VM is disposed of.</remarks>
public sealed partial class Vcpu
{
    /// <summary>KVM_GET_VCPU_MMAP_SIZE: kvm_run, the port I/O data page, the ring of coalesced writes.</summary>
    internal const int RunAreaBytes = 3 * 4096;

    /// <summary>The VM that it belongs to.</summary>
    public Vm Vm { get; }

    /// <summary>The id given at creation: the APIC id.</summary>
    public uint Id => _core.Id;

    /// <summary>Position in <see cref="Vm.Vcpus"/>.</summary>
    internal int Index => _core.Index;
    internal bool IsBootProcessor => _core.IsBootProcessor;
    internal VcpuStats Stats { get; }
    internal VcpuMmuStats MmuStats => _mmu.Stats;

    /// <summary>Requests and kicks: the protocol of docs/requests.md.</summary>
    internal VcpuRequests Requests { get; }

    /// <summary>In-kernel local APIC, or null.</summary>
    public Lapic? Lapic { get; }

    /// <summary>The area shared with the client, <see cref="RunAreaBytes"/> bytes: kvm_run, then the data of port I/O exits, then the coalesced ring.</summary>
    public unsafe kvm_run* KvmRun { get; }

    /// <summary>Guest instructions retired since creation.</summary>
    public unsafe ulong InstructionsRetired => Volatile.Read(ref _s->InstructionsRetired);

    /// <summary>The vCPU's dirty ring, at page KVM_DIRTY_LOG_PAGE_OFFSET of the shared area; null when the VM has none.</summary>
    internal Memory.DirtyRing? DirtyRing { get; }

    /// <summary>Bytes of the shared area of a vCPU of this VM.</summary>
    internal static int AreaBytes(Vm vm) => vm.DirtyRingBytes == 0 ? RunAreaBytes : (int)KvmApi.KVM_DIRTY_LOG_PAGE_OFFSET * (int)Page.Size + vm.DirtyRingBytes;

    /// <summary>Ranges that the request TlbFlushRange is about. Any thread.</summary>
    internal TlbRangeQueue TlbRanges => _translations.Ranges;

    internal LogicalProcessor Cpu { get; }

    /// <summary>Where other threads leave NMIs, INIT and SIPI.</summary>
    internal InterruptInbox Inbox { get; }

    // The core, and what the run loop needs of it at every turn.
    private readonly VcpuCore _core;
    private readonly VmHealth _health;
    private readonly unsafe CpuState* _s;
    private readonly unsafe ExitInfo* _exit;
    private readonly VcpuMmu _mmu;

    // Parts, in the order in which they are made: a part knows only those before it. README.md has the picture.
    private readonly VcpuTsc _tsc;
    private readonly SignalWords _signal;
    private readonly ExtendedState _extended;
    private readonly GuestTables _tables;
    private readonly Translations _translations;
    private readonly DirtyLog _dirtyLog;
    private readonly EmulationFailures _failures;
    private readonly MemoryFaults _memoryFaults;
    private readonly PvClock _clock;
    private readonly RunDelay _runDelay = new();
    private readonly StealTime _steal;
    private readonly AsyncFaults _asyncFaults;
    private readonly XenPort _xen;
    private readonly VcpuTimers _timers;
    private readonly VcpuApic _apic;
    private readonly ApicPages _apicPages;
    private readonly ExitPolicies _policies;
    private readonly VcpuCpuid _cpuid;
    private readonly SystemManagement _smm;
    private readonly VcpuEvents _events;
    private readonly GuestDebug _debug;
    private readonly VcpuActivity _activity;
    private readonly Halting _halting;
    private readonly XenProcessor _xenProcessor;
    private readonly HypervPort _hyperv;
    private readonly Hypercalls _hypercalls;
    private readonly VcpuMsrs _msrs;
    private readonly MmioIo _mmio;
    private readonly PortIo _port;
    private readonly GeneralRegisters _registers;
    private readonly SystemRegisters _systemRegisters;
    private readonly SyncRegisters _syncRegisters;

    internal unsafe Vcpu(Vm vm, uint id, int index, byte* runArea)
    {
        _core = new VcpuCore(vm, id, index, runArea);
        _s = _core.State;
        _exit = _core.Exit;
        (Vm, Cpu, Requests, Stats, _health) = (vm, _core.Cpu, _core.Requests, _core.Stats, vm.Health);
        KvmRun = _core.Run;
        // The local APIC, which belongs to the core, needs somebody to tell of its interrupts, and the TSC.
        _tsc = new VcpuTsc(_core);
        Inbox = new InterruptInbox(_core, _tsc);
        Lapic = _core.Lapic = vm.Irqchip?.CreateLapic(Inbox, id, index, IsBootProcessor);
        Cpu.Reset(false);
        // Memory.
        _signal = new SignalWords(_core);
        Signal = _signal.Signal;
        _extended = new ExtendedState(_core);
        _tables = new GuestTables(_core);
        _translations = new Translations(_core);
        _mmu = _translations.Mmu;
        _dirtyLog = new DirtyLog(_core, _translations);
        DirtyRing = _dirtyLog.Ring;
        _failures = new EmulationFailures(_core, _translations);
        _memoryFaults = new MemoryFaults(_core, _translations, _signal, _failures);
        // Time.
        _clock = new PvClock(_core, _tsc);
        _steal = new StealTime(_core, _translations, _runDelay);
        _asyncFaults = new AsyncFaults(_core);
        _xen = new XenPort(_core, _runDelay);
        _timers = new VcpuTimers(_core, _xen);
        // The local APIC as the vCPU and its client see it, and CPUID.
        _apic = new VcpuApic(_core);
        _apicPages = new ApicPages(_core, _apic);
        _policies = new ExitPolicies(_core);
        _cpuid = new VcpuCpuid(_core, _apic, _tsc, _policies);
        _policies.Apply();
        // Events.
        _smm = new SystemManagement(_core, _cpuid, _tables, _translations);
        _events = new VcpuEvents(_core, Inbox, _smm, _apic, _xen);
        _debug = new GuestDebug(_core, _events, _policies, _tables, _failures);
        _activity = new VcpuActivity(_core, Inbox, _smm, _events, _apic, _debug, _clock, _steal, _asyncFaults, _apicPages);
        _halting = new Halting(_core, _activity, _events, Inbox, _smm, _signal, _timers, _steal, _xen);
        // Exits.
        _xenProcessor = new XenProcessor(_core, _xen, _timers, _runDelay, _tables, _halting);
        _hyperv = new HypervPort(_core, _cpuid, _events);
        _hypercalls = new Hypercalls(_core, _cpuid, _events, _tables, _tsc);
        _msrs = new VcpuMsrs(_core, _cpuid, _tsc, _clock, _steal, _asyncFaults, _apic, _apicPages, _smm, _events, _halting, _hyperv);
        _mmio = new MmioIo(_core, _apic, _translations, _events, _failures);
        _port = new PortIo(_core, _translations, _dirtyLog, _mmio);
        // State for the client.
        _registers = new GeneralRegisters(_core, _events);
        _systemRegisters = new SystemRegisters(_core, _cpuid, _apic, _tables, _translations, _events, _activity);
        _syncRegisters = new SyncRegisters(_core, _registers, _systemRegisters, _events, _activity);
    }

    /// <summary>Sees each exception and interrupt that the guest is given, on the vCPU's thread; for traces. Set it while the vCPU is not running.</summary>
    public Action<DeliveredEvent>? EventObserver { set => Cpu.EventObserver = value; }

    /// <summary>Makes the current or the next <see cref="Run"/> return -EINTR, once. Any thread.
    /// Unlike the signal that KVM needs, it cannot come too early.</summary>
    public void Kick() => Requests.Make(VcpuRequest.UserKick);

    /// <summary>Disconnects the vCPU. Its VM frees it.</summary>
    internal void Detach()
    {
        if (Lapic is not null)
            Vm.ApicBus.Remove(Lapic);
        _xen.Dispose();
        _mmu.Dispose();
        _runDelay.Dispose();
    }

    /// <summary>Second half of Dispose, after the last thread that could make a request is gone.</summary>
    internal void Free()
    {
        _signal.Free();
        _dirtyLog.Free();
        _core.Free();
    }
}
