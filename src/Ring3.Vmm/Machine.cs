using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>How a machine ended. <see cref="Value"/>: exit status, debug-exit value, or 128 + signal, by <see cref="End"/>.</summary>
public readonly record struct MachineResult(MachineEnd End, int Value, string? Detail);

/// <summary>
/// A PC with one virtual machine of Ring3.Kvm: RAM, processors on threads of their own, and the devices of the VMM. It is a client of the hypervisor like any
/// other: it sees exits through kvm_run and uses nothing behind the public interface.
/// </summary>
public sealed partial class Machine : IMachineControl, IDisposable
{
    private readonly BootOptions _options;
    private readonly Vm _vm;
    private readonly Vcpu[] _vcpus;
    private readonly ManualResetEventSlim _ended = new(false), _mayRun = new(false);
    private readonly CountdownEvent _prepared;
    private BootException? _refused;
    private readonly MachineTrace? _trace;
    private readonly XenPlatform? _xen;
    private MachineResult _result;
    private int _endClaimed;
    private volatile bool _stopping;
    private long _startNs, _stopNs, _startMs;

    public MachineRam Ram { get; }
    public IoBus Ports { get; } = IoBus.OfPorts();
    public IoBus Mmio { get; } = new();

    /// <summary>Set when the machine has ended and its processors are on their way out.</summary>
    public WaitHandle Ended => _ended.WaitHandle;

    /// <summary>How the kernel was loaded, after <see cref="Load"/>.</summary>
    public string EntryProtocol { get; private set; } = "";

    /// <summary>Begins, on a thread of its own, what the first machine of the process would wait for.</summary>
    public static void PrepareFirst() => new Thread(KvmSystem.Prepare) { IsBackground = true, Name = "ring3-prepare" }.Start();

    /// <exception cref="BootException">Memory or another resource of the host is short.</exception>
    /// <param name="options">What machine.</param>
    /// <param name="memory">A snapshot whose memory it has: <see cref="Restore"/> is next.</param>
    public Machine(BootOptions options, SnapshotFile? memory = null)
    {
        _options = options;
        _prepared = new CountdownEvent(options.Cpus);
        _trace = options.Trace == TraceCategories.None ? null : new MachineTrace(options.Trace, options.Messages);
        Ram = new MachineRam(options.MemoryBytes);
        memory?.Map(Ram);
        VmOptions vm = new()
        {
            Processor = options.Processor, TranslationThreshold = options.TranslationThreshold, CheckTlb = options.CheckTlb, ZapPolicy = options.Zap,
            ZapSharePercent = options.ZapShare,
        };
        _vm = Vm.Create(_trace?.Regions is { } observer ? vm with { RegionObserver = observer } : vm);
        _hostTscKhz = _vm.Clock.DefaultTscKhz;
        Check(_vm.CreateIrqchip(), "create the interrupt controllers");
        Check(_vm.CreatePit2(KvmApi.KVM_PIT_SPEAKER_DUMMY), "create the interval timer");
        Check(_vm.SetGsiRouting(Irqchip.IrqRouting.PcWiring()), "wire the interrupt controllers");
        MapRam();
        AddDevices();
        _vcpus = new Vcpu[options.Cpus];
        for (int i = 0; i < options.Cpus; i++)
            _vcpus[i] = CreateVcpu(i);
        LimitResident();
        AddVirtioDevices();
        if (options.Xen)
        {
            Ports.Add(XenPlatformDevice.UnplugPorts.Base, XenPlatformDevice.UnplugPorts.Ports, new XenPlatformDevice.UnplugPorts());
            Pci.Add(2, 0, XenPlatformDevice.Create());
            _xen = new XenPlatform(_vm, _vcpus, this, Ram.Bytes, options.XenFifo);
        }
    }

    private unsafe void MapRam()
    {
        // SAFETY: the regions' host memory lives as long as the machine, which disposes the virtual machine first.
        uint slot = 0;
        foreach (RamRegion r in Ram.Regions)
        {
            if (r.Bytes != 0)
                Check(_vm.SetUserMemoryRegion(slot++, 0, r.Gpa, r.Bytes, (ulong)r.Hva), "map guest memory");
        }
    }

    private Vcpu CreateVcpu(int id)
    {
        Check(_vm.CreateVcpu((uint)id, out Vcpu? vcpu), $"create processor {id}");
        kvm_cpuid_entry2[] cpuid = SupportedCpuid.WithTiming(vcpu!.TscKhz, vcpu.Lapic is not null, _vm.Processor);
        CpuidTopology.Apply(cpuid, (uint)id, (uint)_options.Cpus);
        if (_options.Xen)
            cpuid = XenCpuid.Apply(cpuid, (uint)id, vcpu.TscKhz);
        Check(vcpu.SetCpuid2(cpuid), "set CPUID");
        ProcessorSetup.WireLocalInterrupts(vcpu);
        ProcessorSetup.SetFirmwareMsrs(vcpu);
        _trace?.Attach(vcpu);
        return vcpu;
    }

    /// <summary>Puts firmware tables and the kernel into RAM and sets the first processor to enter it.</summary>
    /// <exception cref="BootException">The image is not valid or does not fit.</exception>
    public void Load(GuestPlan plan)
    {
        ulong rsdp = FirmwareTables.Write(Ram, _options.Cpus, _options.Acpi);
        EntryState entry = KernelLoader.Load(plan.Kernel, plan.KernelName, Ram, plan.Request with { Rsdp = rsdp });
        EntryProtocol = entry.Protocol;
        _hasDisk = entry.IsBootDisk;
        _bios = CreateBios(entry.IsBootDisk ? plan.Kernel : []);
        if (entry.IsBootDisk)
            BiosArea.SetHardDisks(Ram, 1);
        if (entry.Mode == EntryMode.Real16)
            StartBiosTick();
        ProcessorSetup.Enter(_vcpus[0], entry);
    }

    /// <summary>Runs the machine on one thread per processor until it ends.</summary>
    /// <param name="confine">Is called when all is open that the machine needs, and before the guest runs; null: nothing.</param>
    public MachineResult Run(Action? confine = null)
    {
        if (IsClone)
            ReleaseDevices();
        // The loader has written through pointers.
        _resident?.CatchUp();
        _startNs = HostClock.MonotonicNs();
        _startMs = _options.Stats ? HostProcess.AgeMs() : 0;
        var threads = new Thread[_vcpus.Length];
        for (int i = 0; i < threads.Length; i++)
        {
            Vcpu vcpu = _vcpus[i];
            threads[i] = new Thread(() => RunVcpu(vcpu)) { IsBackground = true, Name = $"ring3-vcpu{i}" };
            threads[i].Start();
        }
        _prepared.Wait();
        if (confine is not null)
            Confine(confine);
        _mayRun.Set();
        if (_trace is { Samples: true })
            SampleUntilEnd();
        _ended.Wait();
        foreach (Thread t in threads)
            t.Join();
        _stopNs = HostClock.MonotonicNs();
        return _refused is null ? _result : throw _refused;
    }

    /// <summary>Confines the process; when that cannot be, the machine ends, and <see cref="Run"/> says why.</summary>
    public bool Confine(Action confine)
    {
        try
        {
            confine();
            return true;
        }
        catch (BootException e)
        {
            _refused = e;
            End(MachineEnd.Failure);
            return false;
        }
    }

    /// <summary>Kicks the processors now and then; each prints where it was.</summary>
    private void SampleUntilEnd()
    {
        while (!_ended.Wait(MachineTrace.SampleMs))
        {
            foreach (Vcpu v in _vcpus)
                v.Kick();
        }
    }

    private volatile bool _commandEnded;

    /// <summary>The command's status is known, and the machine's end with it follows: that the guest powers off meanwhile ends nothing. Any thread.</summary>
    public void CommandEnded() => _commandEnded = true;

    public void End(MachineEnd end, int value = 0, string? detail = null)
    {
        if (end == MachineEnd.PowerOff && _commandEnded)
            return;
        if (Interlocked.Exchange(ref _endClaimed, 1) != 0)
            return;
        _result = new MachineResult(end, value, detail);
        _stopping = true;
        _ended.Set();
        foreach (Vcpu v in _vcpus)
            v.Kick();
        _goOn.Set();
        _allParked.Set();
    }

    private static void Check(int result, string what)
    {
        if (result < 0)
            throw new BootException(ExitStatus.Resources, $"cannot {what}: error {-result}");
    }

    public void Dispose()
    {
        StopVirtio();
        _heatmap?.Dispose();
        _vm.Dispose();
        _xen?.Dispose();
        Ram.Dispose();
        _goOn.Dispose();
        _allParked.Dispose();
    }
}
