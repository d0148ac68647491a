using System.Buffers.Binary;
using Ring3.Sync;

namespace Ring3.Irqchip.Tests;

internal sealed class FakeVcpu(FakeTimers timers) : IVcpuInterruptSink
{
    internal int Notified, Nmis, Smis, Inits;
    internal List<byte> Sipis = [], ClientEois = [];
    internal long TscOffset;

    public void InterruptPending() => Interlocked.Increment(ref Notified);
    public void RaiseNmi() => Nmis++;
    public void RaiseSmi() => Smis++;
    public void RaiseInit() => Inits++;
    public void RaiseSipi(byte vector) => Sipis.Add(vector);
    public void IoapicEoi(byte vector) => ClientEois.Add(vector);
    public ulong GuestTsc() => (ulong)(timers.NowNs * 2 + TscOffset);
    public uint GuestTscKhz => 2_000_000;
}

/// <summary>A VM of <c>n</c> vCPUs with software-enabled local APICs and all controllers.</summary>
internal sealed class Rig
{
    internal readonly FakeTimers Timers = new();
    internal readonly VmIrqchip Chip;
    internal readonly FakeVcpu[] Vcpus;
    internal readonly Lapic[] Apics;

    internal Rig(int vcpus = 1, bool split = false, bool enable = true, byte ioapicVersion = 0x11, Func<int, uint>? id = null)
    {
        Chip = new VmIrqchip(Timers, split, ioapicVersion: ioapicVersion);
        Vcpus = new FakeVcpu[vcpus];
        Apics = new Lapic[vcpus];
        for (int i = 0; i < vcpus; i++)
        {
            int index = i;
            Vcpus[i] = new FakeVcpu(Timers);
            Apics[i] = Chip.CreateLapic(Vcpus[i], id?.Invoke(i) ?? (uint)i, i, i == 0);
            Timers.Watch(() => Apics[index].TimerDeadlineNs, now => Apics[index].PollTimer(now));
            Apics[i].DirectedEoiSupported = ioapicVersion >= 0x20;
            if (enable)
                Write(i, ApicRegister.SVR, 0x1ff);
        }
    }

    internal Rig UseX2Apic()
    {
        foreach (Lapic apic in Apics)
            Assert.True(apic.SetBase(apic.Base | ApicBase.EXTD, hostInitiated: false));
        return this;
    }

    internal void Write(int vcpu, int offset, uint value)
    {
        Span<byte> data = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(data, value);
        Apics[vcpu].MmioWrite(offset, data);
    }

    internal uint Read(int vcpu, int offset)
    {
        Span<byte> data = stackalloc byte[4];
        Apics[vcpu].MmioRead(offset, data);
        return BinaryPrimitives.ReadUInt32LittleEndian(data);
    }

    /// <summary>Sends an IPI in xAPIC mode.</summary>
    internal void Ipi(int vcpu, uint icr, uint dest = 0)
    {
        Write(vcpu, ApicRegister.ICR2, dest << 24);
        Write(vcpu, ApicRegister.ICR, icr);
    }

    internal void WriteIoapic(int index, uint value)
    {
        Span<byte> data = stackalloc byte[4];
        BinaryPrimitives.WriteInt32LittleEndian(data, index);
        Chip.Ioapic!.MmioWrite(0, data);
        BinaryPrimitives.WriteUInt32LittleEndian(data, value);
        Chip.Ioapic.MmioWrite(0x10, data);
    }

    internal uint ReadIoapic(int index)
    {
        Span<byte> data = stackalloc byte[4];
        BinaryPrimitives.WriteInt32LittleEndian(data, index);
        Chip.Ioapic!.MmioWrite(0, data);
        Chip.Ioapic.MmioRead(0x10, data);
        return BinaryPrimitives.ReadUInt32LittleEndian(data);
    }

    /// <summary>Programs a redirection entry, high half first.</summary>
    internal void Redirect(int pin, uint low, uint dest = 0)
    {
        WriteIoapic(0x11 + 2 * pin, dest << 24);
        WriteIoapic(0x10 + 2 * pin, low);
    }

    /// <summary>Which vCPUs have the vector in IRR, as a bit mask.</summary>
    internal uint Requested(int vector)
    {
        uint mask = 0;
        for (int i = 0; i < Apics.Length; i++)
            if ((Apics[i].ReadRegister(ApicRegister.IRR + (vector >> 5) * 16) >> (vector & 31) & 1) != 0)
                mask |= 1u << i;
        return mask;
    }
}
