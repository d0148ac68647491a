using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Mmu;
using static Ring3.Abi.KvmPara;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// Steal time, PV EOI, and hypercalls. KVM: Documentation/virt/kvm/x86/{msr,hypercalls}.rst.
public sealed unsafe partial class Vcpu
{
    private ulong _asyncFaultMsr, _pollControl = 1;

    /// <summary>The feature that a paravirtual MSR belongs to, or -1.</summary>
    private static int PvFeatureOf(uint msr) => msr switch
    {
        Msr.KVM_WALL_CLOCK or Msr.KVM_SYSTEM_TIME => KVM_FEATURE_CLOCKSOURCE,
        Msr.KVM_WALL_CLOCK_NEW or Msr.KVM_SYSTEM_TIME_NEW => KVM_FEATURE_CLOCKSOURCE2,
        Msr.KVM_ASYNC_PF_EN => KVM_FEATURE_ASYNC_PF,
        Msr.KVM_STEAL_TIME => KVM_FEATURE_STEAL_TIME,
        Msr.KVM_PV_EOI_EN => KVM_FEATURE_PV_EOI,
        Msr.KVM_POLL_CONTROL => KVM_FEATURE_POLL_CONTROL,
        _ => -1,
    };

    private static bool IsPvMsr(uint msr) => PvFeatureOf(msr) >= 0;

    private bool TryReadPvMsr(uint msr, bool host, out ulong value)
    {
        value = 0;
        if (!_cpuid.HasPvFeature(PvFeatureOf(msr)))
            return host;
        (bool known, value) = msr switch
        {
            Msr.KVM_WALL_CLOCK or Msr.KVM_WALL_CLOCK_NEW => (true, _clock.WallClockMsr),
            Msr.KVM_SYSTEM_TIME or Msr.KVM_SYSTEM_TIME_NEW => (true, _clock.SystemTimeMsr),
            Msr.KVM_ASYNC_PF_EN => (true, _asyncFaultMsr),
            Msr.KVM_STEAL_TIME => (true, _steal.StealTimeMsr),
            Msr.KVM_PV_EOI_EN => (true, _apicPages.PvEoiMsr),
            Msr.KVM_POLL_CONTROL => (true, _pollControl),
            _ => (false, 0UL),
        };
        return known;
    }

    private bool TryWritePvMsr(uint msr, ulong value, bool host)
    {
        // A client may still write back the 0 that it reads.
        if (!_cpuid.HasPvFeature(PvFeatureOf(msr)))
            return host && value == 0;
        switch (msr)
        {
            case Msr.KVM_WALL_CLOCK or Msr.KVM_WALL_CLOCK_NEW:
                _clock.WriteWallClock(value);
                return true;
            case Msr.KVM_SYSTEM_TIME or Msr.KVM_SYSTEM_TIME_NEW:
                _clock.WriteSystemTimeMsr(value);
                return true;
            case Msr.KVM_ASYNC_PF_EN:
                return WriteAsyncFaultMsr(value);
            case Msr.KVM_STEAL_TIME:
                return _steal.TryWriteMsr(value);
            case Msr.KVM_PV_EOI_EN:
                return _apicPages.TryWritePvEoiMsr(value);
            case Msr.KVM_POLL_CONTROL:
                if ((value & ~1UL) != 0)
                    return false;
                _pollControl = value;
                _pollDisabled = (value & 1) == 0;
                return true;
            default:
                return false;
        }
    }

    // ---- Asynchronous page faults ----

    private const ulong AsyncFaultEnabled = 1 << 0, AsyncFaultByInterrupt = 1 << 3, AsyncFaultReserved = 0x30;

    /// <summary>
    /// The guest offers to be told of pages that the host has to fetch. KVM: since Linux 5.8 it is told by interrupts only, and KVM_FEATURE_ASYNC_PF_INT is not offered here, so that the register keeps what is written and pages are waited for.
    /// </summary>
    private bool WriteAsyncFaultMsr(ulong value)
    {
        if ((value & (AsyncFaultReserved | AsyncFaultByInterrupt)) != 0)
            return false;
        if (Lapic is null)
            return value == 0;
        if ((value & AsyncFaultEnabled) != 0 && !Vm.Memory.TryRead(value & ~0x3fUL, out uint _))
            return false;
        _asyncFaultMsr = value;
        return true;
    }

    // ---- Hypercalls ----

    private long Hypercall(ulong nr, ulong a0, ulong a1, ulong a2, ulong a3, bool is64)
    {
        switch (nr)
        {
            case KVM_HC_VAPIC_POLL_IRQ:
                return 0;
            case KVM_HC_KICK_CPU when _cpuid.HasPvFeature(KVM_FEATURE_PV_UNHALT):
                Vm.FindByApicId((uint)a1)?.PvUnhalt();
                return 0;
            case KVM_HC_SEND_IPI when _cpuid.HasPvFeature(KVM_FEATURE_PV_SEND_IPI):
                return SendIpis(a0, a1, a2, a3, is64);
            case KVM_HC_SCHED_YIELD when _cpuid.HasPvFeature(KVM_FEATURE_PV_SCHED_YIELD):
                Stats.directed_yield_attempted++;
                Thread.Yield();
                return 0;
            case KVM_HC_CLOCK_PAIRING:
                return PairClocks(a0, a1);
            default:
                return -KVM_ENOSYS;
        }
    }

    /// <summary>Delivers one interrupt to the APIC ids min + bit of a 128-bit mask (64-bit in 32-bit mode).</summary>
    private long SendIpis(ulong low, ulong high, ulong min, ulong icr, bool is64)
    {
        if (Lapic is null)
            return -KVM_ENOSYS;
        var mode = (DeliveryMode)(icr >> 8 & 7);
        if (mode is not (DeliveryMode.Fixed or DeliveryMode.Nmi) || (icr & 0xffff_f800 & ~0x4000UL) != 0)
            return -KVM_EINVAL;
        long count = 0;
        int width = is64 ? 64 : 32;
        for (int word = 0; word < 2; word++)
        {
            for (ulong bits = word == 0 ? low : high; bits != 0; bits &= bits - 1)
            {
                uint id = (uint)min + (uint)(word * width + System.Numerics.BitOperations.TrailingZeroCount(bits));
                if (Vm.FindByApicId(id)?.Lapic is { } target && ApicBus.DeliverTo(target, new LapicInterrupt { Vector = (byte)icr, Mode = mode, Assert = true, Dest = id }))
                    count++;
            }
        }
        return count;
    }

    private long PairClocks(ulong gpa, ulong type)
    {
        if (type != KVM_CLOCK_PAIRING_WALLCLOCK || !VmClock.IsStable)
            return -KVM_EOPNOTSUPP;
        long real = HostClock.RealtimeNs();
        kvm_clock_pairing pair = new() { sec = real / 1_000_000_000, nsec = real % 1_000_000_000, tsc = _tsc.Now() };
        return Vm.Memory.TryWrite(gpa, pair) ? 0 : -KVM_EFAULT;
    }
}
