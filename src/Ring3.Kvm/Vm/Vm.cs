using System.Runtime.ExceptionServices;
using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Memory;
using Ring3.Mmu;
using Ring3.Reclaim;

// SAFETY: a run area is the caller's, as large as AreaBytes says and mapped as long as the vCPU; it is only passed on here.
namespace Ring3.Kvm;

/// <summary>
/// A virtual machine: what it is made of, its vCPUs, its end. Members return 0 or a positive result, or the negated errno that api.rst documents; they may be
/// called from any thread.
/// </summary>
public sealed partial class Vm : IDisposable
{
    /// <summary>KVM_CAP_MAX_VCPUS; also the bound of vCPU ids plus one (KVM_CAP_MAX_VCPU_ID).</summary>
    public const int MaxVcpus = 1024;

    // The core, and parts in the order in which they are made: a part knows only those before it. README.md has the picture.
    private readonly VmCore _core;
    private readonly VmMemory _memory;
    private readonly ResidentMemory _resident;
    private readonly VmBuses _buses;
    private readonly VmInterrupts _interrupts;
    private bool _disposed;

    /// <summary>KVM_CREATE_VM.</summary>
    /// <exception cref="OutOfMemoryException">The host has no memory for the VM's own tables.</exception>
    /// <exception cref="PlatformNotSupportedException">The host's processor does not have AVX2, BMI2 and FMA.</exception>
    public static Vm Create(VmOptions? options = null)
    {
        HostUnits.ThrowIfMissing();
        return new(options ?? new());
    }

    private Vm(VmOptions options)
    {
        _core = new VmCore(options);
        _memory = new VmMemory(_core);
        (Slots, Memory, Mmu) = (_memory.Slots, _memory.Guest, _memory.Mmu);
        _resident = new ResidentMemory(_core.Vcpus, _memory);
        Clock = new VmClock(_core.Vcpus, options.TscKhz != 0 ? options.TscKhz : HostTsc.Khz);
        Xen = new XenMachine(_core, _memory, Clock);
        _buses = new VmBuses(_core.Vcpus);
        _interrupts = new VmInterrupts(_core, _buses, new XenRoutes(Xen));
        Msrs = new MsrPolicy(_core);
        Settings = new VmSettings(_core, _memory, _interrupts, Msrs);
    }

    /// <summary>What the VM was created with.</summary>
    public VmOptions Options => _core.Options;

    /// <summary>Which processor the vCPUs are.</summary>
    public ProcessorModel Processor => _core.Machine.Model;

    /// <summary>Guest memory by guest-physical address, for the client's devices.</summary>
    public GuestMemory Memory { get; }
    /// <summary>Guest memory: what KVM_SET_USER_MEMORY_REGION2 has given it.</summary>
    public MemorySlots Slots { get; }
    internal TdpMmu Mmu { get; }
    /// <summary>The guest's clock, kvmclock's and that of KVM_GET_CLOCK.</summary>
    public VmClock Clock { get; }

    /// <summary>In-kernel controllers, or null until <see cref="CreateIrqchip"/> (or the split irqchip) made them.</summary>
    public VmIrqchip? Irqchip => _interrupts.Chip;

    /// <summary>What has been translated so far, with so many of the hottest regions. Any thread.</summary>
    public TranslationSummary SummarizeTranslation(int hottest) => _core.Machine.SummarizeTranslation(hottest);

    /// <summary>Counters; each call brings the gauges up to date.</summary>
    public VmStats Stats
    {
        get
        {
            RawStats.Update(_core, Mmu, Resident);
            return RawStats;
        }
    }

    // ---- For vCPUs ----

    internal Machine Machine => _core.Machine;
    internal VmHealth Health => _core.Health;

    /// <inheritdoc cref="VmMemory.TlbReference"/>
    internal TlbReference? TlbReference => _memory.TlbReference;

    /// <inheritdoc cref="VmMemory.DirtyRingBytes"/>
    internal int DirtyRingBytes => _memory.DirtyRingBytes;
    internal IoBus Ports => _buses.Ports;
    internal IoBus Mmio => _buses.Mmio;
    internal ApicBus ApicBus => Irqchip!.Bus;
    internal XenMachine Xen { get; }
    internal HypervMachine Hyperv { get; } = new();
    internal MsrPolicy Msrs { get; }
    internal VmSettings Settings { get; }

    /// <summary>The counters as the last reader of <see cref="Stats"/> left them.</summary>
    internal VmStats RawStats => _core.Stats;

    // ---- vCPUs ----

    /// <summary>vCPUs in order of creation. The array behind the span is replaced, never changed.</summary>
    public ReadOnlySpan<Vcpu> Vcpus => _core.Vcpus.All;

    /// <summary>KVM_SET_BOOT_CPU_ID: the vCPU that starts without INIT and SIPI.</summary>
    internal uint BootCpuId => _core.Vcpus.BootId;

    /// <summary>KVM_CREATE_VCPU: 0, -EINVAL for an id out of range, -EEXIST.</summary>
    public unsafe int CreateVcpu(uint id, out Vcpu? vcpu) => CreateVcpu(id, null, out vcpu);

    /// <summary>Creates a vCPU; for callers to whom failure is a defect of their own.</summary>
    /// <exception cref="InvalidOperationException">The id is taken or out of range.</exception>
    public Vcpu CreateVcpu(uint id) =>
        CreateVcpu(id, out Vcpu? vcpu) is 0 ? vcpu! : throw new InvalidOperationException($"vCPU id {id} is taken or out of range");

    /// <summary>
    /// KVM_CREATE_VCPU with the memory of kvm_run given: <see cref="KvmSystem.VcpuMmapSize"/> zeroed bytes that the caller keeps until the VM is disposed of.
    /// </summary>
    public unsafe int CreateVcpu(uint id, byte* runArea, out Vcpu? vcpu)
    {
        vcpu = null;
        if (id >= MaxVcpus || _disposed)
            return -Errno.EINVAL;
        using (_core.Shaping.Enter())
        {
            int r = IsDead ? -Errno.EIO : _core.Vcpus.Admit(id);
            if (r != 0)
                return r;
            _memory.VcpuComes();
            vcpu = new Vcpu(this, id, _core.Vcpus.Count, runArea);
            _core.Vcpus.Add(vcpu);
        }
        // Before the first KVM_RUN would: a client that confines itself by seccomp may make no threads then.
        _core.Work.Start();
        return 0;
    }

    /// <summary>The vCPU with an id, which is its APIC id, or null.</summary>
    internal Vcpu? FindByApicId(uint id) => _core.Vcpus.Find(id);

    /// <summary>Makes a request to every vCPU. Returns whether any was kicked.</summary>
    internal bool MakeAllRequest(VcpuRequest request) => _core.Vcpus.Make(request);

    /// <summary>Makes a request to some vCPUs: bit n of <paramref name="include"/> is the vCPU with index n. Returns whether any was kicked.</summary>
    internal bool MakeRequest(VcpuRequest request, ReadOnlySpan<ulong> include) => _core.Vcpus.Make(request, include);

    /// <summary>
    /// Returns when every vCPU has been outside guest mode at some time since the call. It may be in again: what the caller changed before the call is what it
    /// sees there.
    /// </summary>
    internal void EnsureOutsideGuestMode() => MakeAllRequest(VcpuRequest.OutsideGuestMode);

    /// <summary>Uses of cached translations that were checked, with <see cref="VmOptions.CheckTlb"/>.</summary>
    internal ulong TranslationChecks
    {
        get
        {
            ulong sum = 0;
            foreach (Vcpu v in Vcpus)
                sum += v.Cpu.TranslationChecks;
            return sum;
        }
    }

    // ---- The resident limit ----

    /// <summary>What limits or watches this VM's resident memory; null when nothing does.</summary>
    public ResidentLimit? Resident => _resident.Limit;

    /// <summary>Keeps guest memory inside a resident limit; see <see cref="ResidentLimit.Start"/>.</summary>
    public ResidentLimit LimitResident(ulong bytes, IEnumerable<HvaRange> memory, ResidentOptions? options = null) =>
        ResidentLimit.Start(_resident, memory, bytes, options);

    // ---- Death and the end ----

    /// <summary>A host invariant was violated: KVM_RUN of every vCPU returns -EIO from now on.</summary>
    public bool IsDead => _core.Health.IsDead;

    /// <summary>What was found broken, when <see cref="IsDead"/>.</summary>
    public string? BugMessage => _core.Health.BugMessage;

    /// <summary>KVM_BUG_ON: marks this VM dead and gets its vCPUs out of the guest. Nothing of other VMs is touched.</summary>
    public bool BugOn(bool condition, string what)
    {
        if (condition)
            _core.Health.Bug(what);
        return condition;
    }

    /// <summary>For owners that have something of their own to end before <see cref="Dispose"/>.</summary>
    /// <exception cref="InvalidOperationException">The calling thread is inside <see cref="Vcpu.Run"/> of this VM.</exception>
    public void RefuseIfInside() => _core.Vcpus.RefuseIfInside();

    /// <summary>
    /// Releases everything. A vCPU that runs in <see cref="Vcpu.Run"/> on another thread is made to return -EIO, and waited for; so is every later Run. No
    /// other member of the VM and its vCPUs may be in use, or used afterwards.
    /// </summary>
    /// <exception cref="InvalidOperationException">
    /// Called by a thread that is inside <see cref="Vcpu.Run"/> of this VM (an observer's callback): it would wait for itself. Nothing was released.
    /// </exception>
    public void Dispose()
    {
        RefuseIfInside();
        using (_core.Shaping.Enter())
        {
            if (_disposed)
                return;
            _disposed = true;
            _core.Health.End();
        }
        _core.Vcpus.Stop();
        Slots.Residency = null;
        List<Action> steps = [() => Resident?.Stop(), _memory.StopRecovery, _buses.Close, _interrupts.CloseIrqfds, _interrupts.Stop];
        foreach (Vcpu v in Vcpus)
            steps.Add(v.Detach);
        steps.AddRange([Xen.Dispose, Mmu.Dispose, _core.Work.Dispose, Mmu.FreeTables]);
        foreach (Vcpu v in Vcpus)
            steps.Add(v.Free);
        steps.AddRange([Machine.Dispose, Slots.Release]);
        Exception? first = RunAll(steps);
        // A broken VM may be broken here, too; who had it has been told.
        if (first is not null && BugMessage is null)
            ExceptionDispatchInfo.Throw(first);
    }

    /// <summary>
    /// Makes every step, whatever the others do: what one part has lost must not keep the rest (host ranges, threads) for ever. Returns the first exception.
    /// </summary>
    internal static Exception? RunAll(List<Action> steps)
    {
        Exception? first = null;
        foreach (Action step in steps)
        {
            try
            {
                step();
            }
            catch (Exception e)
            {
                first ??= e;
            }
        }
        return first;
    }
}
