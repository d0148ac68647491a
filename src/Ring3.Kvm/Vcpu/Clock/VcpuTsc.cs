using Ring3.Abi;
using Ring3.Host;

// SAFETY: multiplier and offset are fields of _s, which the vCPU's processor owns.
namespace Ring3.Kvm;

/// <summary>
/// The vCPU's time-stamp counter: a multiple of the host's and an offset, both of which the processor has; its frequency, and IA32_TSC_ADJUST.
/// </summary>
internal sealed class VcpuTsc : VcpuPart
{
    public unsafe VcpuTsc(VcpuCore core) : base(core)
    {
        Khz = Vm.Clock.DefaultTscKhz;
        _s->TscMultiplier = PvClockScale.TscMultiplier(Khz, HostTsc.Khz);
        _s->TscOffset = Vm.Clock.SynchronizeTsc(null, Khz, _s->TscMultiplier);
    }

    /// <summary>Frequency that the guest sees, in kHz.</summary>
    public uint Khz { get; private set; }

    /// <summary>IA32_TSC_ADJUST: by how much the guest has moved its counter.</summary>
    public ulong Adjust { get; private set; }

    /// <summary>KVM_SET_TSC_KHZ: 0 or -EINVAL. The offset stays: vCPUs that are in step stay in step when each is given the same frequency.</summary>
    public unsafe int SetKhz(uint khz)
    {
        if (khz == 0)
            khz = HostTsc.Khz;
        if (!VmClock.IsPossible(khz))
            return -Errno.EINVAL;
        _core.Lapic?.PollTimer();
        Khz = khz;
        _s->TscMultiplier = PvClockScale.TscMultiplier(khz, HostTsc.Khz);
        Changed();
        return 0;
    }

    /// <summary>The counter now. Any thread.</summary>
    public ulong Now() => At(HostClock.Tsc());

    /// <summary>The counter when the host's had a value. Any thread.</summary>
    public unsafe ulong At(ulong hostTsc) => PvClockScale.Scale(hostTsc, _s->TscMultiplier) + Volatile.Read(ref _s->TscOffset);

    /// <summary>KVM_VCPU_TSC_OFFSET: guest TSC minus the (scaled) host TSC.</summary>
    public unsafe ulong Offset
    {
        get => _s->TscOffset;
        set
        {
            Vm.Clock.TscOffsetSet(value, Khz, _s->TscMultiplier);
            Move(value);
        }
    }

    private unsafe void Move(ulong offset)
    {
        _core.Lapic?.PollTimer();
        Volatile.Write(ref _s->TscOffset, offset);
        Changed();
    }

    private void Changed()
    {
        _core.Lapic?.RestartTscDeadline();
        Requests.MakeSelf(VcpuRequest.ClockUpdate);
    }

    /// <summary>WRMSR of IA32_TIME_STAMP_COUNTER.</summary>
    /// <param name="host">The client sets it, in step with what it has set on other vCPUs; else the guest has moved it.</param>
    public unsafe void Write(ulong value, bool host)
    {
        if (host)
        {
            Move(Vm.Clock.SynchronizeTsc(value, Khz, _s->TscMultiplier));
            return;
        }
        ulong delta = value - Now();
        Adjust += delta;
        Move(_s->TscOffset + delta);
    }

    /// <summary>WRMSR of IA32_TSC_ADJUST. The client restores the value beside the TSC itself; the guest moves its TSC with it.</summary>
    public unsafe void WriteAdjust(ulong value, bool host)
    {
        if (!host)
            Move(_s->TscOffset + (value - Adjust));
        Adjust = value;
    }
}
