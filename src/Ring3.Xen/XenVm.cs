using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Xen;

/// <summary>
/// The Xen side of a virtual machine: shared info, event channels, what the client has configured. Lock order: <see cref="Lock"/>, then a cache's refresh lock,
/// then a cache's lock; delivery takes caches' locks only.
/// See docs/xen.md.
/// </summary>
public sealed partial class XenVm
{
    private readonly IXenMachine _machine;
    private readonly PortTable _ports = new();
    private readonly ulong[] _pollMask = new ulong[1024 / 64];
    private readonly RankedLock _deferredLock = new(LockRank.XenDeferred);
    private readonly HashSet<EventTarget> _deferred = [];
    private kvm_xen_hvm_config _config;
    private bool _longMode, _runstateUpdateFlag;
    private byte _upcallVector;
    private uint _xenVersion;

    public XenVm(MemorySlots slots, IXenMachine machine)
    {
        _machine = machine;
        Slots = slots;
        SharedInfo = new GfnToPfnCache(slots);
    }

    internal MemorySlots Slots { get; }

    /// <summary>KVM's xen_lock: serialises attributes.</summary>
    internal FutexMutex Lock { get; } = new(LockRank.XenLock);
    internal GfnToPfnCache SharedInfo { get; }
    internal FifoChannels? Fifo => Volatile.Read(ref _fifo);
    private FifoChannels? _fifo;

    /// <summary>The guest uses 64-bit layouts.</summary>
    public bool LongMode => Volatile.Read(ref _longMode);
    /// <summary>Vector of the upcall that is injected like an external interrupt while a vCPU has events; 0: none.</summary>
    public byte UpcallVector => Volatile.Read(ref _upcallVector);
    public uint XenVersion => Volatile.Read(ref _xenVersion);
    internal bool RunstateUpdateFlag => Volatile.Read(ref _runstateUpdateFlag);

    /// <summary>MSR that installs the hypercall page; 0: not configured, and the VM is not a Xen guest's.</summary>
    public uint HypercallMsr => Volatile.Read(ref _config.msr);
    public bool IsEnabled => HypercallMsr != 0;
    /// <summary>VMCALL and VMMCALL are Xen's hypercalls.</summary>
    public bool InterceptsHypercalls => IsEnabled && (Volatile.Read(ref _config.flags) & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL) != 0;
    internal bool SendsAllEvents => (Volatile.Read(ref _config.flags) & KVM_XEN_HVM_CONFIG_EVTCHN_SEND) != 0;
    /// <summary>Clock pages do not claim a stable TSC.</summary>
    public bool PvclockTscUnstable => (Volatile.Read(ref _config.flags) & KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE) != 0;
    public kvm_xen_hvm_config Config
    {
        get
        {
            using var _ = Lock.Enter();
            return _config;
        }
    }

    internal ulong ClockNs => (ulong)_machine.ClockNs;

    /// <summary>First port that does not exist.</summary>
    internal uint MaxPorts => Fifo is not null ? XenAbi.Fifo.Ports : LongMode ? XenAbi.TwoLevelPorts64 : XenAbi.TwoLevelPorts32;

    /// <summary>KVM_XEN_HVM_CONFIG: 0 or -EINVAL.</summary>
    public int Configure(in kvm_xen_hvm_config config)
    {
        const uint Permitted = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND | KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE;
        if ((config.flags & ~Permitted) != 0)
            return -Errno.EINVAL;
        if ((config.flags & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL) != 0
            && (config.blob_addr_32 | config.blob_addr_64 | config.blob_size_32 | config.blob_size_64) != 0)
            return -Errno.EINVAL;
        uint old;
        using (Lock.Enter())
        {
            old = _config.flags;
            _config = config;
        }
        if (((old ^ config.flags) & KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE) != 0)
            _machine.RequestClockUpdate();
        return 0;
    }

    /// <summary>The guest wrote the hypercall MSR in a mode: layouts follow it. False: the shared info page cannot be written.</summary>
    public bool LatchMode(bool longMode)
    {
        using var _ = Lock.Enter();
        if (_longMode == longMode)
            return true;
        Volatile.Write(ref _longMode, longMode);
        return !SharedInfo.IsActive || InitializeSharedInfo() == 0;
    }

    /// <summary>Stops everything. No thread uses the VM any more.</summary>
    public void Dispose()
    {
        SharedInfo.Deactivate();
        foreach (PortBinding b in _ports.Clear())
            Release(b);
        _fifo?.Dispose();
    }
}
