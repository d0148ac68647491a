using System.Runtime.CompilerServices;

namespace Ring3.Irqchip;

// Acceptance, priority, acknowledge and EOI. SPEC: SDM volume 3, "Handling Interrupts".
public sealed partial class Lapic
{
    /// <summary>The vector that would be delivered now, or -1: the highest in IRR if its class is above the processor priority. Costs one load when nothing is
    /// pending.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int HighestDeliverable() => Volatile.Read(ref _irrPending) ? ScanDeliverable() : -1;

    /// <summary>Whether <see cref="HighestDeliverable"/> finds a vector.</summary>
    public bool HasInterrupt() => HighestDeliverable() >= 0;

    /// <summary>Whether any vector waits in IRR, deliverable or not.</summary>
    public bool IrrPending => Volatile.Read(ref _irrPending) && _irr.Highest() >= 0;

    /// <summary>The highest vector in IRR whatever the priority, or -1. With <see cref="Tpr"/> it gives the TPR threshold.</summary>
    public int HighestIrr => Volatile.Read(ref _irrPending) ? _irr.Highest() : -1;

    /// <summary>The highest vector in service, or -1.</summary>
    public int HighestIsr => _highestIsr;

    /// <summary>Processor priority register.</summary>
    public uint Ppr => _ppr;

    /// <summary>Task priority register, bits 7:0. Setting it may make interrupts deliverable.</summary>
    public uint Tpr
    {
        get => Reg(ApicRegister.TPR);
        set
        {
            Reg(ApicRegister.TPR) = value & 0xff;
            UpdatePpr();
        }
    }

    /// <summary>CR8: the task priority class.</summary>
    public ulong Cr8 { get => Reg(ApicRegister.TPR) >> 4; set => Tpr = (uint)(value & 15) << 4; }

    private int ScanDeliverable()
    {
        int irr = HardwareEnabled ? _irr.Highest() : -1;
        return irr >= 0 && (irr & 0xf0) > (int)(_ppr & 0xf0) ? irr : -1;
    }

    /// <summary>Moves the highest deliverable vector from IRR to ISR and returns it; -1 if there is none. Owner only.</summary>
    public int AckInterrupt()
    {
        int vector = HighestDeliverable();
        if (vector < 0)
            return -1;
        Volatile.Write(ref _irrPending, false);
        // Full barrier: a deliverer that sets a bit after the scan below also sets _irrPending after the store above. PAIRS-WITH: Lapic.SetIrr
        _irr.ClearAtomic(vector);
        if (_irr.Highest() >= 0)
            Volatile.Write(ref _irrPending, true);
        _isr.Set(vector);
        _highestIsr = vector;
        UpdatePpr();
        return vector;
    }

    /// <summary>End of interrupt for the highest vector in service: the EOI register, or a PV EOI that the guest made by clearing its flag. Owner
    /// only.</summary>
    public void SetEoi()
    {
        int vector = _highestIsr;
        if (vector < 0)
            return;
        // Asked while the vector is still in service: a handler that has moved its pin to another CPU leaves nothing else that ties the vector to this APIC.
        bool handled = _bus.HandlesEoi(this, (byte)vector);
        _isr.Clear(vector);
        _highestIsr = _isr.Highest();
        UpdatePpr();
        bool suppressed = (Reg(ApicRegister.SVR) & ApicBits.SvrSuppressEoiBroadcast) != 0;
        if (handled)
            _bus.BroadcastEoi(this, (byte)vector, _tmr.Test(vector), suppressed);
    }

    /// <summary>
    /// The interrupt in service may be ended by the guest through the PV EOI flag: nothing else is pending and no IOAPIC waits for its EOI. The hypervisor sets
    /// the flag on entry if this holds; when the guest has cleared it, the hypervisor calls <see cref="SetEoi"/>.
    /// </summary>
    public bool CanUsePvEoi => !Volatile.Read(ref _irrPending) && _highestIsr >= 0 && !_tmr.Test(_highestIsr) && !_bus.HandlesEoi(this, (byte)_highestIsr);

    private void UpdatePpr()
    {
        uint tpr = Reg(ApicRegister.TPR), isr = _highestIsr < 0 ? 0 : (uint)_highestIsr & 0xf0;
        uint ppr = (tpr & 0xf0) >= isr ? tpr : isr, old = _ppr;
        _ppr = ppr;
        if (ppr < old && HighestDeliverable() >= 0)
            _sink.InterruptPending();
    }

    /// <summary>Delivers a message to this APIC. Any thread. Returns whether it was accepted.</summary>
    internal bool Accept(Lapic? source, in LapicInterrupt irq, DeliveryMap? map)
    {
        switch (irq.Mode)
        {
            case DeliveryMode.Fixed or DeliveryMode.LowestPriority:
                if (irq.Level && !irq.Assert || !Enabled)
                    return false;
                if (irq.Vector < 16)
                {
                    RaiseError(ApicBits.EsrReceiveIllegal);
                    return false;
                }
                if (irq.Mode == DeliveryMode.LowestPriority || irq.RedirectionHint)
                    Interlocked.Increment(ref _arbitration);
                map?.Set(Index, irq.Vector);
                SetIrr(irq.Vector, irq.Level);
                return true;
            case DeliveryMode.Smi:
                _sink.RaiseSmi();
                return true;
            case DeliveryMode.Nmi:
                _sink.RaiseNmi();
                return true;
            case DeliveryMode.RemoteRead:
                source?.CompleteRemoteRead(this, irq.Vector);
                return true;
            case DeliveryMode.Init:
                if (irq.Level && !irq.Assert)
                    return false;
                _sink.RaiseInit();
                return true;
            case DeliveryMode.Startup:
                _sink.RaiseSipi(irq.Vector);
                return true;
            default:
                // ExtINT messages carry no vector: the acknowledge cycle asks the PIC, whose output the vCPU looks at by itself.
                _sink.InterruptPending();
                return false;
        }
    }

    private int _arbitration;

    /// <summary>How many lowest-priority messages this APIC has accepted: the round-robin key when vector hashing is off.</summary>
    internal int Arbitration => Volatile.Read(ref _arbitration);

    private void SetIrr(int vector, bool level)
    {
        if (_tmr.Test(vector) != level)
        {
            if (level)
                _ = _tmr.SetAtomic(vector);
            else
                _tmr.ClearAtomic(vector);
        }
        // A bit that is already set belongs to a deliverer that notifies: one notification covers both. PAIRS-WITH: Lapic.AckInterrupt
        if (!_irr.SetAtomic(vector))
            return;
        Volatile.Write(ref _irrPending, true);
        // PAIRS-WITH: VcpuRequests.BeginBlock (says that it blocks, then the vCPU looks for an interrupt).
        Interlocked.MemoryBarrier();
        _sink.InterruptPending();
    }

    /// <summary>Raises a local interrupt source: LVT entry at register offset <paramref name="lvt"/> (<see cref="ApicRegister"/>). Any thread. Returns whether
    /// something was delivered.</summary>
    public bool LocalDeliver(int lvt)
    {
        uint entry = Volatile.Read(ref Reg(lvt));
        if (!HardwareEnabled || (entry & ApicBits.LvtMasked) != 0)
            return false;
        // Timer and error entries have no mode field: it reads zero, which is Fixed.
        var mode = (DeliveryMode)(entry >> 8 & 7);
        bool done = Accept(null, new LapicInterrupt { Vector = (byte)entry, Mode = mode, Assert = true, Level = (entry & ApicBits.LvtLevel) != 0
            && mode == DeliveryMode.Fixed }, null);
        if (done && lvt == ApicRegister.LVT_PMC)
            Reg(lvt) |= ApicBits.LvtMasked;
        return done;
    }

    /// <summary>LINT0 passes the PIC's output: the APIC is globally disabled, or LVT LINT0 is unmasked in ExtINT mode.</summary>
    public bool AcceptsPicInterrupt
    {
        get
        {
            uint lint0 = Volatile.Read(ref Reg(ApicRegister.LVT_LINT0));
            return !HardwareEnabled || (lint0 & (ApicBits.LvtMasked | ApicBits.LvtMode)) == (uint)DeliveryMode.ExtInt << 8;
        }
    }

    /// <summary>LINT0 is programmed as an NMI: the PIT's watchdog wiring of old Linux kernels.</summary>
    internal bool Lint0IsNmi => (Volatile.Read(ref Reg(ApicRegister.LVT_LINT0)) & (ApicBits.LvtMasked | ApicBits.LvtMode)) == (uint)DeliveryMode.Nmi << 8;

    /// <summary>The PIC's output rose: tell the vCPU to look at it.</summary>
    internal void NotifyPicOutput() => _sink.InterruptPending();

    /// <summary>Split irqchip: forwards the EOI to the client.</summary>
    internal void NotifyClientEoi(byte vector) => _sink.IoapicEoi(vector);

    private void RaiseError(uint bit)
    {
        if ((Interlocked.Or(ref _pendingErrors, bit) & bit) == 0)
            _ = LocalDeliver(ApicRegister.LVT_ERROR);
    }
}
