using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using static Ring3.Abi.KvmPara;

// SAFETY: the address is of a local.
namespace Ring3.Kvm;

/// <summary>kvmclock: the pages in which a vCPU shows its time to the guest. KVM: Documentation/virt/kvm/x86/msr.rst.</summary>
internal sealed class PvClock(VcpuCore core, VcpuTsc tsc) : VcpuPart(core)
{
    private bool _guestStopped;

    /// <summary>MSR_KVM_SYSTEM_TIME_NEW, or its older number: address of the clock page, and whether it is written.</summary>
    public ulong SystemTimeMsr { get; private set; }

    /// <summary>MSR_KVM_WALL_CLOCK_NEW, or its older number: where the time of kvmclock's zero was written.</summary>
    public ulong WallClockMsr { get; private set; }

    /// <summary>KVM_KVMCLOCK_CTRL: tells the guest that it was stopped, so that its watchdogs do not bark. 0 or -EINVAL without a clock page.</summary>
    public int NoteStopped()
    {
        if (!HasPage)
            return -Errno.EINVAL;
        _guestStopped = true;
        Requests.MakeSelf(VcpuRequest.ClockUpdate);
        return 0;
    }

    public void WriteSystemTimeMsr(ulong value)
    {
        SystemTimeMsr = value;
        if (HasPage)
            Requests.MakeSelf(VcpuRequest.ClockUpdate);
    }

    /// <summary>INIT.</summary>
    public void Reset() => (SystemTimeMsr, _guestStopped) = (0, false);

    /// <summary>The guest has enabled its clock, at an address from which all of it lies in one page: KVM takes no other.</summary>
    private unsafe bool HasPage =>
        (SystemTimeMsr & KVM_MSR_ENABLED) != 0 && (SystemTimeMsr & ~KVM_MSR_ENABLED & Page.OffsetMask) + (ulong)sizeof(pvclock_vcpu_time_info) <= Page.Size;

    /// <summary>The vCPU's time as a guest computes it: version 0, no flag but PVCLOCK_TSC_STABLE_BIT.</summary>
    public pvclock_vcpu_time_info Sample()
    {
        var (hostTsc, ns) = Vm.Clock.Master;
        var (mul, shift) = PvClockScale.ForTscKhz(tsc.Khz);
        return new()
        {
            tsc_timestamp = tsc.At(hostTsc), system_time = (ulong)ns, tsc_to_system_mul = mul, tsc_shift = shift,
            flags = VmClock.IsStable ? PVCLOCK_TSC_STABLE_BIT : (byte)0,
        };
    }

    /// <summary>Writes the clock page, if there is one: version odd, contents, version even. The guest reads the version before and after.</summary>
    public unsafe void WritePage()
    {
        if (!HasPage)
            return;
        ulong gpa = SystemTimeMsr & ~KVM_MSR_ENABLED;
        if (!Vm.Memory.TryRead(gpa, out uint version))
            return;
        pvclock_vcpu_time_info page = Sample();
        if (_guestStopped)
            page.flags |= PVCLOCK_GUEST_STOPPED;
        _guestStopped = false;
        // A version left odd by somebody else's crash becomes even at the end all the same.
        version += 1 + (version & 1);
        page.version = version;
        Vm.Memory.TryWrite(gpa, version);
        // PAIRS-WITH: the guest's read of version, contents, version (pvclock ABI).
        Interlocked.MemoryBarrier();
        Vm.Memory.Write(gpa + 4, (byte*)&page + 4, (nuint)sizeof(pvclock_vcpu_time_info) - 4);
        Interlocked.MemoryBarrier();
        Vm.Memory.TryWrite(gpa, version + 1);
    }

    /// <summary>Writes the wall-clock time of kvmclock's zero to the guest.</summary>
    public void WriteWallClock(ulong gpa)
    {
        WallClockMsr = gpa;
        if (gpa == 0 || !Vm.Memory.TryRead(gpa, out uint version))
            return;
        version += 1 + (version & 1);
        long boot = HostClock.RealtimeNs() - Vm.Clock.NowNs;
        Vm.Memory.TryWrite(gpa, version);
        // PAIRS-WITH: the guest's read of version, contents, version (pvclock ABI).
        Interlocked.MemoryBarrier();
        Vm.Memory.TryWrite(gpa + 4, (uint)(boot / 1_000_000_000));
        Vm.Memory.TryWrite(gpa + 8, (uint)(boot % 1_000_000_000));
        Interlocked.MemoryBarrier();
        Vm.Memory.TryWrite(gpa, version + 1);
    }
}
