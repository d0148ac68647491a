using Ring3.Sync;

namespace Ring3.Irqchip;

/// <summary>
/// The local APIC of one vCPU. SPEC: SDM volume 3, "Advanced Programmable Interrupt Controller (APIC)".
/// </summary>
/// <remarks>
/// The owner is the vCPU's thread: register accesses, acknowledge and EOI are made by it (or while it is not running). Any thread may deliver: IRR and TMR are
/// set with atomic operations. INVARIANT: a bit in IRR implies that <c>_irrPending</c> is or will be set by the thread that set the bit.
/// </remarks>
public sealed partial class Lapic
{
    private readonly ApicBus _bus;
    private readonly IVcpuInterruptSink _sink;
    private readonly uint[] _regs = new uint[64];
    private Bits256 _irr, _tmr, _isr;
    private bool _irrPending;
    private int _highestIsr = -1;
    private uint _ppr;
    private volatile ApicMode _mode;
    private volatile bool _softwareEnabled;
    private uint _pendingErrors;

    /// <summary>Creates the local APIC of the vCPU with APIC id <paramref name="id"/> in its power-on state and connects it to the bus.</summary>
    /// <param name="index">The vCPU's index in the VM: dense, from 0.</param>
    public Lapic(ApicBus bus, IVcpuInterruptSink sink, ITimerService timers, uint id, int index, bool bootProcessor)
    {
        (_bus, _sink, Id, Index, IsBootProcessor) = (bus, sink, id, index, bootProcessor);
        BaseRegister = new ApicBase(bootProcessor);
        _timers = timers;
        Reset(init: false);
        bus.Add(this);
    }

    /// <summary>The APIC id given at creation (the x2APIC id; the xAPIC id may be changed by the guest).</summary>
    public uint Id { get; }
    public int Index { get; }
    public bool IsBootProcessor { get; }

    /// <summary>CPUID reports the TSC-deadline timer mode.</summary>
    public bool TscDeadlineSupported { get; set; } = true;

    /// <summary>The version register reports EOI-broadcast suppression (meaningful with an IOAPIC that has an EOI register).</summary>
    public bool DirectedEoiSupported { get; set; }

    /// <summary>The processor has a corrected-machine-check LVT entry (seven entries; else six).</summary>
    public bool CmciSupported
    {
        get;
        set
        {
            if (value && !field)
                Reg(ApicRegister.LVT_CMCI) = ApicBits.LvtMasked;
            field = value;
        }
    }

    public ApicMode Mode => _mode;
    public bool HardwareEnabled => _mode >= ApicMode.XApic;
    public bool SoftwareEnabled => _softwareEnabled;
    public bool X2ApicEnabled => _mode == ApicMode.X2Apic;

    /// <summary>Globally and software enabled: accepts fixed interrupts.</summary>
    public bool Enabled => HardwareEnabled && _softwareEnabled;

    /// <summary>IA32_APIC_BASE, and what may be in it. Written through <see cref="SetBase"/>.</summary>
    public ApicBase BaseRegister { get; }

    /// <summary>IA32_APIC_BASE.</summary>
    public ulong Base => BaseRegister.Value;

    /// <summary>Writes IA32_APIC_BASE. False means #GP(0) for the guest, EINVAL for the client.</summary>
    /// <param name="value">The new value.</param>
    /// <param name="hostInitiated">The client sets state: any valid mode may follow any other.</param>
    public bool SetBase(ulong value, bool hostInitiated)
    {
        if (!BaseRegister.TrySet(value, hostInitiated))
            return false;
        FollowBase(hostInitiated);
        return true;
    }

    private void FollowBase(bool hostInitiated)
    {
        ApicMode old = _mode, mode = BaseRegister.Mode;
        _mode = mode;
        if (old == mode)
            return;
        // SPEC: "Local APIC State After It Has Been Software Disabled" and "Enabling or Disabling the Local APIC": the global disable loses the register state.
        if (mode == ApicMode.Disabled && !hostInitiated)
            ResetRegisters(keepId: true);
        if (mode == ApicMode.X2Apic)
        {
            Reg(ApicRegister.ID) = Id;
            Reg(ApicRegister.LDR) = X2ApicLogicalId(Id);
            Reg(ApicRegister.ICR2) = 0;
        }
        else if (mode == ApicMode.XApic && old != ApicMode.XApic)
        {
            Reg(ApicRegister.ID) = Id << 24;
        }
        _bus.Recalculate();
    }

    /// <summary>
    /// The state after power-on or reset (<paramref name="init"/> false), or after INIT. INIT keeps IA32_APIC_BASE, thus x2APIC mode, and the APIC id.
    /// </summary>
    public void Reset(bool init)
    {
        if (!init)
        {
            BaseRegister.Reset();
            _mode = BaseRegister.Mode;
        }
        ResetRegisters(keepId: init);
        if (_bus.IsMember(this))
            _bus.Recalculate();
    }

    private void ResetRegisters(bool keepId)
    {
        StopTimer();
        uint id = Reg(ApicRegister.ID), ldr = Reg(ApicRegister.LDR);
        Array.Clear(_regs);
        Reg(ApicRegister.ID) = keepId ? id : Id << 24;
        Reg(ApicRegister.LDR) = keepId && _mode == ApicMode.X2Apic ? ldr : 0;
        Reg(ApicRegister.DFR) = ApicBits.DfrFlat;
        for (int i = 0; i <= LvtCount - 1; i++)
            Reg(LvtOffset(i)) = ApicBits.LvtMasked;
        // The wiring of a PC before firmware: the PIC reaches the boot processor ("virtual wire").
        if (IsBootProcessor)
            Reg(ApicRegister.LVT_LINT0) = (uint)DeliveryMode.ExtInt << 8;
        Reg(ApicRegister.SVR) = 0xff;
        _softwareEnabled = false;
        _irr.ClearAll();
        _isr.ClearAll();
        _tmr.ClearAll();
        _irrPending = false;
        _highestIsr = -1;
        _pendingErrors = 0;
        UpdateTimerMode();
        UpdateDivider();
        UpdatePpr();
    }

    /// <summary>Logical x2APIC id: cluster in the upper half, one bit of sixteen in the lower.</summary>
    internal static uint X2ApicLogicalId(uint id) => (id >> 4) << 16 | 1u << (int)(id & 15);

    internal uint XApicId => Reg(ApicRegister.ID) >> 24;
    internal uint LogicalId => Reg(ApicRegister.LDR);
    internal bool FlatModel => Reg(ApicRegister.DFR) >> 28 == 0xf;

    private int LvtCount => CmciSupported ? 7 : 6;

    private static int LvtOffset(int i) => i == 6 ? ApicRegister.LVT_CMCI : ApicRegister.LVT_TIMER + i * 16;

    private ref uint Reg(int offset) => ref _regs[offset >> 4];
}
