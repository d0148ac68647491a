using System.Runtime.InteropServices;
using Ring3.Abi;

namespace Ring3.Xen;

/// <summary>A hypercall as the guest made it: number, privilege, width and six arguments (zero-extended in 32-bit mode).</summary>
public readonly record struct Hypercall(ulong Number, byte Cpl, bool LongMode, ulong A0, ulong A1, ulong A2, ulong A3, ulong A4, ulong A5);

// The hypercalls that never reach the client.
public sealed partial class XenVcpu
{
    private const long EFAULT = -Errno.EFAULT, EINVAL = -Errno.EINVAL;
    private readonly uint[] _pollPorts = new uint[XenAbi.MaxPollPorts];
    private int _pollCount;
    private Func<bool>? _pollReady;

    /// <summary>Handles a hypercall here if it is one of ours and configured. False: it is the client's. Owner thread, outside the guest; may sleep
    /// (poll).</summary>
    public bool TryHypercall(in Hypercall call, out long result)
    {
        result = -Errno.ENOSYS;
        // The few calls that user mode may make are the client's business.
        if (call.Cpl != 0)
            return false;
        switch (call.Number)
        {
            case XenAbi.xen_version:
                result = _vm.XenVersion;
                return call.A0 == XenAbi.XENVER_version && result != 0;
            case XenAbi.event_channel_op:
                return (uint)call.A0 == XenAbi.EVTCHNOP_send && SendEvent(call.A1, out result);
            case XenAbi.sched_op:
                return SchedOp((uint)call.A0, call.A1, call.LongMode, out result);
            case XenAbi.vcpu_op:
                return VcpuOp((uint)call.A0, (uint)call.A1, call.A2, call.LongMode, out result);
            case XenAbi.set_timer_op:
                return SetTimerOp(call.LongMode ? call.A0 : call.A0 | call.A1 << 32, out result);
            default:
                return false;
        }
    }

    private bool SendEvent(ulong gva, out long result)
    {
        Span<byte> port = stackalloc byte[4];
        result = EFAULT;
        if (!Processor.ReadVirtual(gva, port))
            return true;
        result = 0;
        return _vm.TrySendFromGuest(MemoryMarshal.Read<uint>(port));
    }

    private bool SchedOp(uint command, ulong gva, bool longMode, out long result)
    {
        result = 0;
        if (command == XenAbi.SCHEDOP_poll && Processor.HasLapic && _vm.SendsAllEvents)
        {
            result = Poll(gva, longMode);
            return true;
        }
        if (command is not (XenAbi.SCHEDOP_yield or XenAbi.SCHEDOP_poll))
            return false;
        // A poll that is not ours to do may return at any time: it yields.
        Processor.Yield();
        return true;
    }

    private long Poll(ulong gva, bool longMode)
    {
        // ports (a pointer), nr_ports, (padding,) timeout in nanoseconds of kvmclock as Xen has it, relative here as KVM has it.
        Span<byte> args = stackalloc byte[24];
        if (!Processor.ReadVirtual(gva, longMode ? args : args[..16]))
            return EFAULT;
        ulong portsGva = longMode ? MemoryMarshal.Read<ulong>(args) : MemoryMarshal.Read<uint>(args);
        uint count = MemoryMarshal.Read<uint>(args[(longMode ? 8 : 4)..]);
        ulong timeout = MemoryMarshal.Read<ulong>(args[(longMode ? 16 : 8)..]);
        if (count > XenAbi.MaxPollPorts)
            return EINVAL;
        Span<uint> ports = _pollPorts.AsSpan(0, (int)count);
        if (count != 0 && !Processor.ReadVirtual(portsGva, MemoryMarshal.AsBytes(ports)))
            return EFAULT;
        foreach (uint port in ports)
            if (port >= _vm.MaxPorts)
                return EINVAL;
        Volatile.Write(ref _pollCount, (int)count);
        _vm.BeginPoll(this);
        _pollReady ??= HasPolledEvent;
        if (!_pollReady())
            Processor.WaitForEvent(_pollReady, timeout == 0 ? -1 : (long)Math.Min(timeout, long.MaxValue / 2));
        Volatile.Write(ref _pollCount, 0);
        _vm.EndPoll(this);
        return 0;
    }

    /// <summary>Whether a port that the vCPU polls for is pending. Any thread: while the vCPU begins another poll, perhaps for ports of both.</summary>
    internal bool HasPolledEvent() => _vm.AnyPending(_pollPorts.AsSpan(0, Volatile.Read(ref _pollCount)));

    /// <summary>Whether this vCPU may be polling for a port; with several ports, for any. Any thread: the poll mask decides.</summary>
    internal bool PollsFor(uint port)
    {
        int count = Volatile.Read(ref _pollCount);
        return count > 1 || count == 1 && _pollPorts[0] == port;
    }

    private bool VcpuOp(uint command, uint xenId, ulong gva, bool longMode, out long result)
    {
        result = 0;
        if (!TimerEnabled || command is not (XenAbi.VCPUOP_set_singleshot_timer or XenAbi.VCPUOP_stop_singleshot_timer))
            return false;
        if (xenId != XenId)
        {
            result = EINVAL;
            return true;
        }
        if (command == XenAbi.VCPUOP_stop_singleshot_timer)
        {
            StopTimer();
            return true;
        }
        // timeout_abs_ns, flags; the 64-bit structure ends with padding, which has to be readable too.
        Span<byte> args = stackalloc byte[16];
        if (!Processor.ReadVirtual(gva, longMode ? args : args[..12]))
            result = EFAULT;
        else
            StartTimer(MemoryMarshal.Read<ulong>(args), false);
        return true;
    }

    private bool SetTimerOp(ulong timeout, out long result)
    {
        result = 0;
        if (!TimerEnabled)
            return false;
        if (timeout != 0)
            StartTimer(timeout, true);
        else
            StopTimer();
        return true;
    }
}
