using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

// SAFETY: the special pages are mapped from the constructor to Dispose, which comes after the virtual machine's.
namespace Ring3.Vmm;

/// <summary>
/// What a Xen HVM guest expects of its hypervisor and its toolstack beyond what KVM handles itself: HVM parameters, event-channel ports, memory and vCPU
/// registrations, the console ring and the store.
/// A client of KVM's Xen interface; one lock, taken by vCPU threads in their exits.
/// </summary>
internal sealed partial class XenPlatform : IDisposable
{
    /// <summary>Frames of the store and console pages, where Xen's toolstack puts its special pages; not RAM.</summary>
    private const ulong StoreGfn = 0xfeffc, ConsoleGfn = 0xfeffd;
    private const uint StoreSlot = 30;
    private const int PageBytes = 4096;
    private const ushort DomidSelf = 0x7ff0, OwnDomid = 1;
    private const int ENODATA = 61;

    private readonly RankedLock _lock = new(LockRank.XenPlatform);
    private readonly Vm _vm;
    private readonly Vcpu[] _vcpus;
    private readonly IMachineControl _control;
    private readonly ulong _ramBytes;
    private readonly unsafe byte* _special;
    private readonly ulong[] _parameters = new ulong[64];

    public unsafe XenPlatform(Vm vm, Vcpu[] vcpus, IMachineControl control, ulong ramBytes, bool fifo)
    {
        (_vm, _vcpus, _control, _ramBytes, _fifoOffered) = (vm, vcpus, control, ramBytes, fifo);
        _special = HostMemory.Map(2 * PageBytes);
        Check(vm.SetUserMemoryRegion(StoreSlot, 0, StoreGfn * PageBytes, 2 * PageBytes, (ulong)_special), "map Xen's special pages");
        Check(vm.XenHvmConfig(new() { flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND, msr = XenCpuid.HypercallMsr }),
            "configure Xen");
        Check(vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_XEN_VERSION, xen_version = XenCpuid.Version }), "set Xen's version");
        Check(vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_LONG_MODE, long_mode = 1 }), "set the guest's mode");
        Check(vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG, runstate_update_flag = 1 }), "set the run state's flag");
        foreach (Vcpu v in vcpus)
            Check(v.XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, vcpu_id = v.Id }), "set Xen's vCPU number");
        _grants = HostMemory.Map(MaxGrantFrames * PageBytes);
        InitializeGrants();
        Console = new XenConsole((byte*)_special + PageBytes);
        Store = new XenStore(_special, vcpus.Length, ramBytes);
        InitializePorts();
    }

    public XenConsole Console { get; }
    public XenStore Store { get; }

    private static void Check(int result, string what)
    {
        if (result < 0)
            throw new BootException(ExitStatus.Resources, $"cannot {what}: error {-result}");
    }

    /// <summary>KVM_EXIT_XEN: answers a hypercall that the hypervisor left to its client.</summary>
    public unsafe void Serve(Vcpu vcpu)
    {
        ref kvm_run.xen_t x = ref vcpu.KvmRun->xen;
        long result = -Errno.ENOSYS;
        if (x.cpl != 0)
            result = -Errno.EPERM;
        else if (x.longmode != 0)
        {
            using (_lock.Enter())
                result = Dispatch(vcpu, (uint)x.input, (uint)x.@params[0], x.@params[1], x.@params[2]);
        }
        x.result = (ulong)result;
    }

    private long Dispatch(Vcpu vcpu, uint number, uint command, ulong a1, ulong a2)
    {
        var argument = new GuestArgument(_vm, vcpu, a1);
        return number switch
        {
            XenAbi.xen_version => Version(command, argument),
            XenAbi.event_channel_op => EventChannel(command, argument),
            XenAbi.sched_op => Schedule(command, argument),
            XenAbi.vcpu_op => VcpuOp(command, (uint)a1, new GuestArgument(_vm, vcpu, a2)),
            XenAbi.hvm_op => HvmOp(command, argument),
            XenAbi.memory_op => MemoryOp(command, argument),
            XenAbi.physdev_op => PhysdevOp(command, argument),
            XenAbi.grant_table_op => GrantTable(command, argument, (uint)a2),
            XenAbi.console_io => ConsoleIo(command, (int)(uint)a1, new GuestArgument(_vm, vcpu, a2)),
            _ => -Errno.ENOSYS,
        };
    }

    private static long Version(uint command, GuestArgument a)
    {
        const uint Features = 1 << 0 /* writable page tables */ | 1 << 2 /* auto-translated */ | 1 << 8 /* hvm callback vector */ | 1 << 9 /* safe pvclock */
            | 1 << 10 /* PIRQs */;
        switch (command)
        {
            case XenAbi.XENVER_version:
                return XenCpuid.Version;
            case XenAbi.XENVER_extraversion:
                return Text(a, ".0-ring3", 16);
            case XenAbi.XENVER_compile_info:
                return Text(a, "Roslyn", 64 + 16 + 32 + 32);
            case XenAbi.XENVER_capabilities:
                return Text(a, "hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ", 1024);
            case XenAbi.XENVER_changeset:
                return Text(a, "ring3", 64);
            case XenAbi.XENVER_platform_parameters:
                return a.TryWrite(0UL) ? 0 : -Errno.EFAULT;
            case XenAbi.XENVER_get_features:
                // { submap index in, submap out }
                if (!a.TryRead(out uint index))
                    return -Errno.EFAULT;
                return index > 1 ? -Errno.EINVAL : a.TryWrite(index == 0 ? Features : 0, 4) ? 0 : -Errno.EFAULT;
            case XenAbi.XENVER_pagesize:
                return PageBytes;
            case XenAbi.XENVER_guest_handle:
                return a.TryWrite(UInt128.One) ? 0 : -Errno.EFAULT;
            case XenAbi.XENVER_commandline:
                return -Errno.EPERM;
            case XenAbi.XENVER_build_id:
                return -ENODATA;
            default:
                return -Errno.ENOSYS;
        }
    }

    private static long Text(GuestArgument a, string text, int bytes)
    {
        byte[] buffer = new byte[bytes];
        System.Text.Encoding.ASCII.GetBytes(text, buffer);
        return a.TryWrite(buffer) ? 0 : -Errno.EFAULT;
    }

    private long Schedule(uint command, GuestArgument a)
    {
        switch (command)
        {
            case XenAbi.SCHEDOP_block:
                return 0;
            case XenAbi.SCHEDOP_shutdown:
                if (!a.TryRead(out uint reason))
                    return -Errno.EFAULT;
                if (reason == XenAbi.SHUTDOWN_poweroff)
                    _control.End(MachineEnd.PowerOff);
                else
                    _control.End(MachineEnd.Reset, detail: $"SCHEDOP_shutdown, reason {reason}");
                return 0;
            default:
                return -Errno.ENOSYS;
        }
    }

    private long ConsoleIo(uint command, int count, GuestArgument a)
    {
        const uint Write = 0;
        if (command != Write || count < 0)
            return command == Write ? -Errno.EINVAL : 0;
        byte[] text = new byte[Math.Min(count, 4096)];
        if (!a.TryRead(text))
            return -Errno.EFAULT;
        foreach (byte b in text)
            Console.Transmit(b);
        return 0;
    }

    // ---- Parameters and upcalls ----

    private long HvmOp(uint command, GuestArgument a)
    {
        const uint SetParam = 0, GetParam = 1, SetUpcallVector = 23;
        switch (command)
        {
            case SetParam or GetParam:
                // { domid, pad, index, value }
                if (!a.TryRead(out ushort domid) || !a.TryRead(out uint index, 4) || !a.TryRead(out ulong value, 8))
                    return -Errno.EFAULT;
                if (domid != DomidSelf || index >= _parameters.Length)
                    return -Errno.EINVAL;
                return command == SetParam ? SetParameter(index, value) : a.TryWrite(Parameter(index), 8) ? 0 : -Errno.EFAULT;
            case SetUpcallVector:
                // { vcpu, vector }
                if (!a.TryRead(out uint id) || !a.TryRead(out byte vector, 4))
                    return -Errno.EFAULT;
                return Find(id) is { } v ? v.XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector = vector }) : -Errno.ENOENT;
            default:
                return -Errno.ENOSYS;
        }
    }

    private const uint CallbackIrq = 0, StorePfn = 1, StoreEvtchn = 2, ConsolePfn = 17, ConsoleEvtchn = 18;

    private ulong Parameter(uint index) => index switch
    {
        StorePfn => StoreGfn,
        StoreEvtchn => _storePort,
        ConsolePfn => ConsoleGfn,
        ConsoleEvtchn => _consolePort,
        _ => _parameters[index],
    };

    private long SetParameter(uint index, ulong value)
    {
        if (index is StorePfn or StoreEvtchn or ConsolePfn or ConsoleEvtchn)
            return -Errno.EPERM;
        if (index == CallbackIrq)
        {
            // Type 2 is a vector. Type 0 is a line, which Linux names to say that it has vectors of its own for each vCPU; it is never raised here.
            if (value >> 56 is not (0 or 2))
                return -Errno.EINVAL;
            byte vector = value >> 56 == 2 ? (byte)value : (byte)0;
            int r = _vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector = vector });
            if (r != 0)
                return r;
        }
        _parameters[index] = value;
        return 0;
    }

    private Vcpu? Find(uint xenId) => xenId < (uint)_vcpus.Length ? _vcpus[xenId] : null;

    // ---- vCPU registrations ----

    private long VcpuOp(uint command, uint xenId, GuestArgument a)
    {
        if (Find(xenId) is not { } vcpu)
            return -Errno.ENOENT;
        switch (command)
        {
            case XenAbi.VCPUOP_is_up:
                return 1;
            case XenAbi.VCPUOP_stop_periodic_timer:
                return 0;
            case XenAbi.VCPUOP_register_vcpu_info:
                // { mfn, offset }
                if (!a.TryRead(out ulong gfn) || !a.TryRead(out uint offset, 8))
                    return -Errno.EFAULT;
                return offset > PageBytes - XenAbi.VcpuInfo.Size ? -Errno.EINVAL : MoveVcpuInfo(vcpu, gfn * PageBytes + offset);
            case XenAbi.VCPUOP_register_runstate_memory_area:
                return Register(vcpu, a, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR);
            case XenAbi.VCPUOP_register_vcpu_time_memory_area:
                return Register(vcpu, a, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO);
            default:
                return -Errno.ENOSYS;
        }
    }

    /// <summary>The argument holds the linear address of the area; 0 forgets it.</summary>
    private long Register(Vcpu vcpu, GuestArgument a, ushort type)
    {
        if (!a.TryRead(out ulong address))
            return -Errno.EFAULT;
        ulong gpa = KVM_XEN_INVALID_GPA;
        if (address != 0 && !new GuestArgument(_vm, vcpu, address).TryTranslate(out gpa))
            return -Errno.EFAULT;
        return vcpu.XenSetAttr(new() { type = type, gpa = gpa });
    }

    /// <summary>As Xen does: the old contents move along, and every selector is set, so that the guest looks at all events that were on their way.</summary>
    private int MoveVcpuInfo(Vcpu vcpu, ulong gpa)
    {
        kvm_xen_vcpu_attr old = new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO };
        Span<byte> info = stackalloc byte[XenAbi.VcpuInfo.Size];
        if (vcpu.XenGetAttr(ref old) == 0 && old.gpa != KVM_XEN_INVALID_GPA)
            _ = _vm.Memory.Read(old.gpa, info);
        info[XenAbi.VcpuInfo.UpcallPending] = 1;
        info.Slice(XenAbi.VcpuInfo.PendingSel64, 8).Fill(0xff);
        return _vm.Memory.Write(gpa, info) ? vcpu.XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa = gpa }) : -Errno.EFAULT;
    }

    // ---- Memory ----

    private long MemoryOp(uint command, GuestArgument a)
    {
        const uint MaximumRamPage = 2, CurrentReservation = 3, MaximumReservation = 4, AddToPhysmap = 7;
        switch (command & 0x3f)
        {
            case MaximumRamPage or CurrentReservation or MaximumReservation:
                return (long)(_ramBytes / PageBytes);
            case AddToPhysmap:
                // { domid, size, space, idx, gpfn }
                if (!a.TryRead(out ushort domid) || !a.TryRead(out uint space, 4) || !a.TryRead(out ulong index, 8) || !a.TryRead(out ulong gpfn, 16))
                    return -Errno.EFAULT;
                if (domid != DomidSelf)
                    return -Errno.EPERM;
                const uint SharedInfoSpace = 0, GrantTableSpace = 1;
                return space == SharedInfoSpace && index == 0 ? MapSharedInfo(gpfn) : space == GrantTableSpace ? MapGrantFrame(index, gpfn) : -Errno.EINVAL;
            default:
                return -Errno.ENOSYS;
        }
    }

    /// <summary>The guest gives a page of its RAM for the shared info. The first 32 vCPUs' vcpu_info begin there, until they are registered
    /// elsewhere.</summary>
    private int MapSharedInfo(ulong gpfn)
    {
        if (!_vm.Memory.Fill(gpfn * PageBytes, 0, PageBytes))
            return -Errno.EFAULT;
        int r = _vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn = gpfn });
        for (int i = 0; r == 0 && i < Math.Min(_vcpus.Length, 32); i++)
            r = _vcpus[i].XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa = gpfn * PageBytes + (ulong)i * XenAbi.VcpuInfo.Size });
        _sharedGfn = gpfn;
        return r;
    }

    public unsafe void Dispose()
    {
        HostMemory.Unmap(_special, 2 * PageBytes);
        HostMemory.Unmap(_grants, MaxGrantFrames * PageBytes);
    }
}
