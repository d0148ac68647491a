using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using static Ring3.Abi.KvmPara;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// The vCPU's time-stamp counter, and the clock pages it shows to the guest.
public sealed unsafe partial class Vcpu
{
    private ulong _systemTimeMsr, _wallClockMsr, _tscAdjust;
    private bool _guestStopped;

    /// <summary>TSC frequency that the guest sees, in kHz.</summary>
    public uint TscKhz { get; private set; }

    private void InitializeClock()
    {
        TscKhz = Vm.Clock.DefaultTscKhz;
        _s->TscMultiplier = PvClockScale.TscMultiplier(TscKhz, HostTsc.Khz);
        _s->TscOffset = Vm.Clock.SynchronizeTsc(null, TscKhz, _s->TscMultiplier);
    }

    /// <summary>KVM_SET_TSC_KHZ: 0 or -EINVAL. The offset stays: vCPUs that are in step stay in step when each is given the same frequency.</summary>
    public int SetTscKhz(uint khz)
    {
        if (khz == 0)
            khz = HostTsc.Khz;
        if (!VmClock.IsPossible(khz))
            return -Errno.EINVAL;
        Lapic?.PollTimer();
        TscKhz = khz;
        _s->TscMultiplier = PvClockScale.TscMultiplier(khz, HostTsc.Khz);
        TscChanged();
        return 0;
    }

    /// <summary>The guest's TSC now. Any thread.</summary>
    public ulong GuestTsc() => GuestTscAt(HostClock.Tsc());
    uint Irqchip.IVcpuInterruptSink.GuestTscKhz => TscKhz;

    internal ulong GuestTscAt(ulong hostTsc) => PvClockScale.Scale(hostTsc, _s->TscMultiplier) + Volatile.Read(ref _s->TscOffset);

    /// <summary>KVM_VCPU_TSC_OFFSET: guest TSC minus the (scaled) host TSC.</summary>
    public ulong TscOffset
    {
        get => _s->TscOffset;
        set
        {
            Vm.Clock.TscOffsetSet(value, TscKhz, _s->TscMultiplier);
            MoveTsc(value);
        }
    }

    private void MoveTsc(ulong offset)
    {
        Lapic?.PollTimer();
        Volatile.Write(ref _s->TscOffset, offset);
        TscChanged();
    }

    private void TscChanged()
    {
        Lapic?.RestartTscDeadline();
        Requests.MakeSelf(VcpuRequest.ClockUpdate);
    }

    private void WriteTsc(ulong value, bool host)
    {
        if (host)
        {
            MoveTsc(Vm.Clock.SynchronizeTsc(value, TscKhz, _s->TscMultiplier));
            return;
        }
        ulong delta = value - GuestTsc();
        _tscAdjust += delta;
        MoveTsc(_s->TscOffset + delta);
    }

    private void WriteTscAdjust(ulong value, bool host)
    {
        // The client restores the value beside the TSC itself; the guest moves its TSC with it.
        if (!host)
            MoveTsc(_s->TscOffset + (value - _tscAdjust));
        _tscAdjust = value;
    }

    private void HandleClockRequests()
    {
        if (Requests.Check(VcpuRequest.MasterClockUpdate))
            Vm.Clock.UpdateMaster();
        if (Requests.Check(VcpuRequest.ClockUpdate))
        {
            WriteClockPage();
            WriteXenClocks();
        }
        if (Requests.Check(VcpuRequest.StealUpdate) && _stealGpa != 0)
            RecordStealTime();
    }

    /// <summary>KVM_KVMCLOCK_CTRL: tells the guest that it was stopped, so that its watchdogs do not bark. 0 or -EINVAL without a clock page.</summary>
    public int KvmClockCtrl()
    {
        if (!HasClockPage)
            return -Errno.EINVAL;
        _guestStopped = true;
        Requests.MakeSelf(VcpuRequest.ClockUpdate);
        return 0;
    }

    private void WriteSystemTimeMsr(ulong value)
    {
        _systemTimeMsr = value;
        if (HasClockPage)
            Requests.MakeSelf(VcpuRequest.ClockUpdate);
    }

    /// <summary>The guest has enabled its clock, at an address from which all of it lies in one page: KVM takes no other.</summary>
    private bool HasClockPage => (_systemTimeMsr & KVM_MSR_ENABLED) != 0 && (_systemTimeMsr & ~KVM_MSR_ENABLED & Page.OffsetMask) + (ulong)sizeof(pvclock_vcpu_time_info) <= Page.Size;

    /// <summary>Writes the pvclock page: version odd, contents, version even. The guest reads the version before and after.</summary>
    private void WriteClockPage()
    {
        if (!HasClockPage)
            return;
        ulong gpa = _systemTimeMsr & ~KVM_MSR_ENABLED;
        var (hostTsc, ns) = Vm.Clock.Master;
        var (mul, shift) = PvClockScale.ForTscKhz(TscKhz);
        if (!Vm.Memory.TryRead(gpa, out uint version))
            return;
        byte flags = VmClock.IsStable ? PVCLOCK_TSC_STABLE_BIT : (byte)0;
        if (_guestStopped)
            flags |= PVCLOCK_GUEST_STOPPED;
        _guestStopped = false;
        // A version left odd by somebody else's crash becomes even at the end all the same.
        version += 1 + (version & 1);
        pvclock_vcpu_time_info page = new() { version = version, tsc_timestamp = GuestTscAt(hostTsc), system_time = (ulong)ns, tsc_to_system_mul = mul, tsc_shift = shift, flags = flags };
        Vm.Memory.TryWrite(gpa, version);
        // PAIRS-WITH: the guest's read of version, contents, version (pvclock ABI).
        Interlocked.MemoryBarrier();
        Vm.Memory.Write(gpa + 4, (byte*)&page + 4, (nuint)sizeof(pvclock_vcpu_time_info) - 4);
        Interlocked.MemoryBarrier();
        Vm.Memory.TryWrite(gpa, version + 1);
    }

    /// <summary>Writes the wall-clock time of kvmclock's zero to the guest.</summary>
    private void WriteWallClock(ulong gpa)
    {
        _wallClockMsr = gpa;
        if (gpa == 0 || !Vm.Memory.TryRead(gpa, out uint version))
            return;
        version += 1 + (version & 1);
        long boot = HostClock.RealtimeNs() - Vm.Clock.NowNs;
        Vm.Memory.TryWrite(gpa, version);
        Interlocked.MemoryBarrier();
        Vm.Memory.TryWrite(gpa + 4, (uint)(boot / 1_000_000_000));
        Vm.Memory.TryWrite(gpa + 8, (uint)(boot % 1_000_000_000));
        Interlocked.MemoryBarrier();
        Vm.Memory.TryWrite(gpa, version + 1);
    }
}
