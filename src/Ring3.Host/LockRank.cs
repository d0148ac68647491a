namespace Ring3.Host;

/// <summary>
/// Every lock of the house, outermost first: who has one waits only for those behind it. docs/locking.md says what each is for; the architecture tests compare
/// the two with the sources.
/// </summary>
public enum LockRank
{
    /// <summary>No lock: what a lock has that was not given a rank.</summary>
    None,

    // A grace period may be waited for under these, so nobody waits for one of them in a read section.

    VcpuMutex,
    VmObject,
    StatsObject,
    VfioDevice,
    XenPlatform,
    FwCfg,
    CmosRtc,
    KeyboardController,
    AcpiPm,
    SerialPort,
    VirtioPlacing,
    PciFunction,
    VirtioTransport,
    VirtQueue,
    VirtioInterrupts,
    SharedLine,
    OutputPump,
    TailSink,
    Shaping,
    ReclaimLock,
    NxRecovery,
    Irqfds,
    Ioeventfds,
    CoalescedZones,
    IoapicMmio,
    IoBus,
    XenLock,
    GpcRefresh,
    PowerSetup,
    SlotsLock,

    /// <summary>The place of RCU's read sections.</summary>
    ReadSection,

    XenMachine,
    ClientMemory,
    ObjectTable,
    IrqfdDelivery,
    IrqfdWrites,
    IrqNotifiers,
    MmuLock,
    PowerMmuLock,
    Gpc,
    XenTimer,
    FifoChannels,
    XenDeferred,
    Ioapic,
    Pit,
    PicPair,
    LapicTimer,
    ApicBus,
    EoiExitBitmaps,
    VmClock,
    CoalescedRing,
    MmuRoots,
    MmuVcpus,
    TablePageAllocator,
    TlbJournal,
    MmuNotifier,
    TlbRangeQueue,
    MachineBus,
    Decode,
    CodeMap,
    RegionArena,
    PerfMap,
    VectorForms,
    ThunkMemory,
    FaultGuard,
    WorkQueue,
    EventLoop,
}
