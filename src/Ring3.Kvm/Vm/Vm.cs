using System.Runtime.ExceptionServices;
using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Memory;
using Ring3.Mmu;
using Ring3.Sync;

// SAFETY: pointers are to locals, or to blocks that live as long as their VM.
namespace Ring3.Kvm;

/// <summary>
/// A virtual machine: memory slots, interrupt controllers, clock and virtual processors. Members return 0 or a positive result, or the negated errno that api.rst documents; they may be called from any thread.
/// </summary>
public sealed unsafe partial class Vm : IDisposable
{
    /// <summary>KVM_CAP_MAX_VCPUS; also the bound of vCPU ids plus one (KVM_CAP_MAX_VCPU_ID).</summary>
    public const int MaxVcpus = 1024;

    private readonly Lock _lock = new();
    private Vcpu[] _vcpus = [];
    private VcpuRequests[] _requests = [];
    private readonly WorkQueue _work;
    private NxRecovery? _nxRecovery;
    private int _dead;
    private bool _disposed;

    /// <summary>KVM_CREATE_VM.</summary>
    /// <exception cref="OutOfMemoryException">The host has no memory for the VM's own tables.</exception>
    public static Vm Create(VmOptions? options = null) => new(options ?? new());

    private Vm(VmOptions options)
    {
        Options = options;
        Machine = new Machine(options.Processor) { TranslationThreshold = options.TranslationThreshold };
        Machine.ExternalWriters = options.ExternalWriters;
        bool isProtected = options.Type == Abi.KvmApi.KVM_X86_SW_PROTECTED_VM;
        Slots = new MemorySlots { CodeWriteSink = new CodeSink(Machine), AllowPrivateMemory = isProtected, DirtyTracking = options.DirtyTracking };
        Memory = new GuestMemory(Slots);
        _work = new WorkQueue("ring3-vm") { Failed = e => BugOn(true, e.Message) };
        _work.Share.Percent = options.ZapSharePercent;
        Mmu = new TdpMmu(Slots, this, _work) { ZapPolicy = options.ZapPolicy, Journal = NewJournal(options), SlotZapAll = !isProtected, EagerSplit = options.EagerPageSplit, NxHugePages = options.NxHugePages, AccessedBits = options.AccessedBits };
        if (Mmu.Journal is { } journal)
            _tlbJudge = new TlbJudge(this, journal);
        Clock = new VmClock(this, options.TscKhz != 0 ? options.TscKhz : HostTsc.Khz);
        _irqfds = new Irqfds(this);
        _ioeventfds = new Ioeventfds(Ports, Mmio);
        _zones = new CoalescedZones(this);
    }

    public VmOptions Options { get; }

    /// <summary>Which processor the vCPUs are.</summary>
    public ProcessorModel Processor => Machine.Model;

    /// <summary>Counters; each call brings the gauges up to date.</summary>
    public VmStats Stats
    {
        get
        {
            CollectStats();
            return _stats;
        }
    }

    private readonly VmStats _stats = new();

    /// <summary>The counters as the last reader of <see cref="Stats"/> left them.</summary>
    internal VmStats RawStats => _stats;
    internal RequestCounters RawCounters { get; private set; }

    private void CollectStats()
    {
        VmStats s = _stats;
        RequestCounters c = default;
        foreach (VcpuRequests r in AllRequests)
            c += r.Counters;
        RawCounters = c;
        (s.requests, s.kicks, s.kicks_elided, s.request_waits, s.request_sleeps, s.wakeups) = (c.Requests, c.Kicks, c.KicksElided, c.Waits, c.Sleeps, c.Wakeups);
        s.WorkingSet = Resident?.Measure();
        MmuStats m = Mmu.GetStats();
        (s.pages_4k, s.pages_2m, s.pages_1g) = ((long)m.Pages4K, (long)m.Pages2M, (long)m.Pages1G);
        s.tlb_flush_elided = (long)m.TlbFlushesElided;
        (s.nx_lpage_splits, s.huge_splits) = ((long)m.NxSplits, (long)m.HugeSplits);
        (s.mmu_table_pages, s.mmu_roots_zapped) = ((long)m.TablePages, (long)m.RootsZapped);
        (s.roots_zapped_inline, s.roots_zapped_sync, s.roots_zapped_worker) = Options.ZapPolicy switch
        {
            RootZapPolicy.Inline => (s.mmu_roots_zapped, 0L, 0L),
            RootZapPolicy.Sync => (0L, s.mmu_roots_zapped, 0L),
            _ => (0L, 0L, s.mmu_roots_zapped),
        };
        (s.zap_share_percent, s.zap_worker_ns, s.zap_worker_pauses) = (_work.Share.Percent, _work.Share.UsedNs, _work.Share.Pauses);
        (s.zap_worker_yields, s.zap_lock_breaks) = (_work.Yields, (long)m.ZapLockBreaks);
    }

    /// <summary>Guest memory by guest-physical address, for the client's devices.</summary>
    public GuestMemory Memory { get; }
    public MemorySlots Slots { get; }
    public TdpMmu Mmu { get; }
    public VmClock Clock { get; }

    /// <summary>In-kernel controllers, or null until <see cref="CreateIrqchip"/> (or the split irqchip) made them.</summary>
    public VmIrqchip? Irqchip { get; private set; }

    internal Machine Machine { get; }
    internal ApicBus ApicBus => Irqchip!.Bus;

    /// <summary>vCPUs in order of creation. The array behind the span is replaced, never changed.</summary>
    public ReadOnlySpan<Vcpu> Vcpus => Volatile.Read(ref _vcpus);
    internal VcpuRequests[] AllRequests => Volatile.Read(ref _requests);

    /// <summary>KVM_SET_BOOT_CPU_ID: the vCPU that starts without INIT and SIPI.</summary>
    public uint BootCpuId { get; private set; }

    /// <summary>Bound of vCPU ids that the client set with KVM_CAP_MAX_VCPU_ID, once; 0 when it did not.</summary>
    private uint _maxVcpuIds;

    /// <summary>KVM_SET_BOOT_CPU_ID: 0, -EBUSY when vCPUs exist, -EINVAL for an id out of range.</summary>
    public int SetBootCpuId(ulong id)
    {
        lock (_lock)
        {
            if (_vcpus.Length != 0)
                return -Errno.EBUSY;
            if (id > (_maxVcpuIds != 0 ? _maxVcpuIds : MaxVcpus))
                return -Errno.EINVAL;
            BootCpuId = (uint)id;
        }
        return 0;
    }

    /// <summary>KVM_CAP_MAX_VCPU_ID: 0, or -EINVAL beyond what is possible, below the boot processor's id, or for another value than before.</summary>
    private int SetMaxVcpuIds(ulong ids)
    {
        lock (_lock)
        {
            if (ids > MaxVcpus || BootCpuId > ids || _maxVcpuIds != 0 && _maxVcpuIds != ids)
                return -Errno.EINVAL;
            _maxVcpuIds = (uint)ids;
        }
        return 0;
    }

    /// <summary>KVM_CREATE_VCPU: 0, -EINVAL for an id out of range, -EEXIST.</summary>
    public int CreateVcpu(uint id, out Vcpu? vcpu) => CreateVcpu(id, null, out vcpu);

    /// <summary>KVM_CREATE_VCPU with the memory of kvm_run given: <see cref="Vcpu.RunAreaBytes"/> zeroed bytes that the caller keeps until the VM is disposed of.</summary>
    public int CreateVcpu(uint id, byte* runArea, out Vcpu? vcpu)
    {
        vcpu = null;
        if (id >= MaxVcpus || _disposed)
            return -Errno.EINVAL;
        lock (_lock)
        {
            if (IsDead)
                return -Errno.EIO;
            // KVM: the first vCPU fixes the bound.
            if (_maxVcpuIds == 0)
                _maxVcpuIds = MaxVcpus;
            if (id >= _maxVcpuIds)
                return -Errno.EINVAL;
            foreach (Vcpu v in _vcpus)
                if (v.Id == id)
                    return -Errno.EEXIST;
            if (_nxRecovery is null && Mmu.NxHugePages && Options.NxHugePagesRecoveryRatio != 0)
                _nxRecovery = new NxRecovery(this, _work, Options.NxHugePagesRecoveryRatio, Options.NxHugePagesRecoveryPeriodMs);
            vcpu = new Vcpu(this, id, _vcpus.Length, runArea);
            Volatile.Write(ref _requests, [.. _requests, vcpu.Requests]);
            Volatile.Write(ref _vcpus, [.. _vcpus, vcpu]);
        }
        // Before the first KVM_RUN would: a client that confines itself by seccomp may make no threads then.
        _work.Start();
        return 0;
    }

    /// <summary>Creates a vCPU; for callers to whom failure is a defect of their own.</summary>
    /// <exception cref="InvalidOperationException">The id is taken or out of range.</exception>
    public Vcpu CreateVcpu(uint id) => CreateVcpu(id, out Vcpu? vcpu) is 0 ? vcpu! : throw new InvalidOperationException($"vCPU id {id} is taken or out of range");

    internal Vcpu? FindByApicId(uint id)
    {
        foreach (Vcpu v in Vcpus)
            if (v.Id == id)
                return v;
        return null;
    }

    // ---- Death ------------------------------------------------------------------------------------------------------

    /// <summary>A host invariant was violated: KVM_RUN of every vCPU returns -EIO from now on.</summary>
    public bool IsDead => Volatile.Read(ref _dead) != 0;

    /// <summary>What was found broken, when <see cref="IsDead"/>.</summary>
    public string? BugMessage => _bugMessage;

    private string? _bugMessage;

    /// <summary>KVM_BUG_ON: marks this VM dead and gets its vCPUs out of the guest. Nothing of other VMs is touched.</summary>
    public bool BugOn(bool condition, string what)
    {
        if (!condition)
            return false;
        Interlocked.CompareExchange(ref _bugMessage, what, null);
        if (Interlocked.Exchange(ref _dead, 1) != 0)
            return true;
        MakeAllRequest(VcpuRequest.VmDead);
        foreach (VcpuRequests r in AllRequests)
            r.WakeUp();
        return true;
    }

    /// <summary>Gets every vCPU out of <see cref="Vcpu.Run"/>; the VM is dead, so none goes in again.</summary>
    private void StopVcpus()
    {
        // PAIRS-WITH: Vcpu.TryClaim (says that it runs, then looks whether the VM is dead).
        Interlocked.MemoryBarrier();
        MakeAllRequest(VcpuRequest.VmDead);
        foreach (VcpuRequests r in AllRequests)
            r.WakeUp();
        foreach (Vcpu v in Vcpus)
            v.WaitUntilStopped();
    }

    // ---- Memory -----------------------------------------------------------------------------------------------------

    /// <summary>KVM_SET_USER_MEMORY_REGION. Flags: KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY. A size of 0 deletes the slot.</summary>
    /// <param name="slot">Slot number, address space in bits 31:16.</param>
    /// <param name="hva">Host address of the memory; it must stay mapped while the slot exists, or be invalidated through <see cref="MemorySlots.Notifier"/>.</param>
    public int SetUserMemoryRegion(uint slot, uint flags, ulong gpa, ulong size, ulong hva)
    {
        if (IsDead)
            return -Errno.EIO;
        return Slots.SetRegion(slot, flags, gpa, size, hva);
    }

    // ---- Requests ---------------------------------------------------------------------------------------------------

    /// <summary>Makes a request to every vCPU. Returns whether any was kicked.</summary>
    public bool MakeAllRequest(VcpuRequest request) => VcpuRequests.MakeAll(AllRequests, request);

    /// <summary>Makes a request to some vCPUs: bit n of <paramref name="include"/> is the vCPU with index n. Returns whether any was kicked.</summary>
    public bool MakeRequest(VcpuRequest request, ReadOnlySpan<ulong> include) => !include.IsEmpty && VcpuRequests.MakeAll(AllRequests, request, include);

    /// <summary>Returns when every vCPU has been outside guest mode at some time since the call. It may be in again: what the caller changed before the call is what it sees there.</summary>
    public void EnsureOutsideGuestMode() => MakeAllRequest(VcpuRequest.OutsideGuestMode);

    private sealed class CodeSink(Machine machine) : ICodeWriteSink
    {
        public void CodeWritten(nint hva, nuint length) => machine.CodeWritten((byte*)hva, length);
    }

    /// <summary>For owners that have something of their own to end before <see cref="Dispose"/>.</summary>
    /// <exception cref="InvalidOperationException">The calling thread is inside <see cref="Vcpu.Run"/> of this VM.</exception>
    public void RefuseIfInside()
    {
        foreach (Vcpu v in Vcpus)
            v.RefuseIfRunByThisThread();
    }

    /// <summary>
    /// Releases everything. A vCPU that runs in <see cref="Vcpu.Run"/> on another thread is made to return -EIO, and waited for; so is every later Run. No other member of the VM and its vCPUs may be in use, or used afterwards.
    /// </summary>
    /// <exception cref="InvalidOperationException">Called by a thread that is inside <see cref="Vcpu.Run"/> of this VM (an observer's callback): it would wait for itself. Nothing was released.</exception>
    public void Dispose()
    {
        RefuseIfInside();
        lock (_lock)
        {
            if (_disposed)
                return;
            _disposed = true;
            // A vCPU that is run by mistake afterwards is refused like that of a broken VM.
            Volatile.Write(ref _dead, 1);
        }
        StopVcpus();
        Slots.Residency = null;
        List<Action> steps = [() => Resident?.Stop(), () => _nxRecovery?.Dispose(), CloseEventfds, () => Irqchip?.Stop()];
        foreach (Vcpu v in Vcpus)
            steps.Add(v.Detach);
        steps.AddRange([() => _xen?.Dispose(), Mmu.Dispose, _work.Dispose, Mmu.FreeTables]);
        foreach (Vcpu v in Vcpus)
            steps.Add(v.Free);
        steps.AddRange([Machine.Dispose, Slots.Release]);
        Exception? first = RunAll(steps);
        // A broken VM may be broken here, too; who had it has been told.
        if (first is not null && _bugMessage is null)
            ExceptionDispatchInfo.Throw(first);
    }

    /// <summary>Makes every step, whatever the others do: what one part has lost must not keep the rest (host ranges, threads) for ever. Returns the first exception.</summary>
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
