using Ring3.Abi;
using Ring3.Host;

namespace Ring3.Irqchip;

/// <summary>The two cascaded 8259A of a PC, with edge/level control registers. SPEC: 8259A data sheet; ELCR from the PIIX data sheet.</summary>
/// <remarks>Under <c>_lock</c>, but <see cref="Output"/> is read without it: it is the wire to LINT0.</remarks>
public sealed class PicPair
{
    private const int Cascade = 2, SpuriousIrq = 7;

    private readonly RankedLock _lock = new(LockRank.PicPair);
    private readonly ApicBus _bus;
    private readonly IPinObserver _observer;
    private readonly PicChip _master = new(isMaster: true), _slave = new(isMaster: false);
    private readonly ulong[] _lines = new ulong[16];
    private bool _output;

    /// <summary>Acknowledged pins whose observers are told after the lock is released.</summary>
    private uint _acked;

    internal PicPair(ApicBus bus, IPinObserver observer) => (_bus, _observer) = (bus, observer);

    /// <summary>The INT output of the master.</summary>
    public bool Output => Volatile.Read(ref _output);

    /// <summary>Power-on state. Line levels driven by devices stay.</summary>
    public void Reset()
    {
        using (_lock.Enter())
        {
            _master.PowerOn();
            _slave.PowerOn();
            Update();
        }
    }

    /// <summary>Drives line <paramref name="irq"/> (0-15) for one source; the pin sees the OR of all sources.</summary>
    /// <returns>1: requested (or lowered); 0: coalesced; -1: masked.</returns>
    public int SetIrq(int irq, int sourceId, bool level)
    {
        int result;
        bool raised;
        using (_lock.Enter())
        {
            ref ulong sources = ref _lines[irq];
            sources = level ? sources | 1UL << sourceId : sources & ~(1UL << sourceId);
            result = (irq < 8 ? _master : _slave).SetLine(irq & 7, sources != 0);
            raised = Update();
        }
        if (raised)
            NotifyOutput();
        return result;
    }

    internal void ClearSource(int sourceId)
    {
        for (int irq = 0; irq < 16; irq++)
            if ((_lines[irq] >> sourceId & 1) != 0)
                _ = SetIrq(irq, sourceId, false);
    }

    /// <summary>The processor's interrupt acknowledge cycle: the vector to take. With no request left it is a spurious IRQ 7 (or 15).</summary>
    public int Acknowledge()
    {
        int vector;
        using (_lock.Enter())
        {
            int irq = _master.HighestRequest();
            if (irq < 0)
            {
                vector = _master.VectorBase + SpuriousIrq;
            }
            else
            {
                Ack(_master, irq);
                vector = _master.VectorBase + irq;
                if (irq == Cascade)
                {
                    int second = _slave.HighestRequest();
                    if (second >= 0)
                        Ack(_slave, second);
                    vector = _slave.VectorBase + (second < 0 ? SpuriousIrq : second);
                }
            }
            _ = Update();
        }
        NotifyAcked();
        return vector;
    }

    private void Ack(PicChip chip, int irq)
    {
        if (chip.Acknowledge(irq))
            Ended(chip, 1u << irq);
    }

    private void Ended(PicChip chip, uint pins) => _acked |= chip.IsMaster ? pins : pins << 8;

    /// <summary>Guest read of port 0x20, 0x21, 0xa0, 0xa1, 0x4d0 or 0x4d1.</summary>
    public byte Read(ushort port)
    {
        byte value;
        bool raised;
        using (_lock.Enter())
        {
            PicChip chip = ChipOf(port);
            value = port >= 0x4d0 ? chip.Elcr : chip.TakePoll() ? Poll(chip) : (port & 1) != 0 ? chip.Mask : chip.ReadStatus();
            raised = Update();
        }
        NotifyAcked();
        if (raised)
            NotifyOutput();
        return value;
    }

    private byte Poll(PicChip chip)
    {
        int irq = chip.HighestRequest();
        if (irq < 0)
            return 0;
        Ack(chip, irq);
        return (byte)(0x80 | irq);
    }

    /// <summary>Guest write to one of the ports of <see cref="Read"/>.</summary>
    public void Write(ushort port, byte value)
    {
        bool raised;
        uint maskChanged = 0;
        PicChip chip = ChipOf(port);
        using (_lock.Enter())
        {
            if (port >= 0x4d0)
                chip.Elcr = value;
            else if ((port & 1) == 0)
                Ended(chip, chip.WriteCommand(value));
            else
                maskChanged = chip.WriteData(value);
            raised = Update();
        }
        NotifyAcked();
        for (int pin = 0; maskChanged != 0; pin++, maskChanged >>= 1)
            if ((maskChanged & 1) != 0)
                _observer.PinMaskChanged(chip.IsMaster ? KvmApi.KVM_IRQCHIP_PIC_MASTER : KvmApi.KVM_IRQCHIP_PIC_SLAVE, (uint)pin, (chip.Mask >> pin & 1) != 0);
        if (raised)
            NotifyOutput();
    }

    private PicChip ChipOf(ushort port) => port is 0x20 or 0x21 or 0x4d0 ? _master : _slave;

    /// <summary>Propagates slave to master to output; true if the output is high and somebody must look.</summary>
    private bool Update()
    {
        if (_slave.HighestRequest() >= 0)
        {
            // The slave's INT is a new edge on the cascade input for each evaluation: the master may have consumed the last one.
            _ = _master.SetLine(Cascade, true);
            _ = _master.SetLine(Cascade, false);
        }
        bool output = _master.HighestRequest() >= 0;
        Volatile.Write(ref _output, output);
        return output;
    }

    /// <summary>Wakes every vCPU whose LINT0 passes the output.</summary>
    private void NotifyOutput()
    {
        // PAIRS-WITH: VcpuRequests.BeginBlock (says that it blocks, then the vCPU looks at the output).
        Interlocked.MemoryBarrier();
        foreach (Lapic apic in _bus.Members)
            if (apic.AcceptsPicInterrupt)
                apic.NotifyPicOutput();
    }

    private void NotifyAcked()
    {
        uint acked = Interlocked.Exchange(ref _acked, 0);
        for (int irq = 0; acked != 0; irq++, acked >>= 1)
            if ((acked & 1) != 0)
                _observer.PinAcked(irq < 8 ? KvmApi.KVM_IRQCHIP_PIC_MASTER : KvmApi.KVM_IRQCHIP_PIC_SLAVE, (uint)irq & 7);
    }

    /// <summary>KVM_GET_IRQCHIP.</summary>
    public kvm_pic_state GetState(bool master)
    {
        using (_lock.Enter())
            return (master ? _master : _slave).State;
    }

    /// <summary>KVM_SET_IRQCHIP.</summary>
    public void SetState(bool master, in kvm_pic_state state)
    {
        bool raised;
        using (_lock.Enter())
        {
            (master ? _master : _slave).Load(state);
            raised = Update();
        }
        if (raised)
            NotifyOutput();
    }
}
