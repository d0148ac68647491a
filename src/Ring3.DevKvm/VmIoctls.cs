using Ring3.Abi;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

// SAFETY: the client's structures are copied in and out by UserCopy; the routing table is pinned while it is copied.
namespace Ring3.DevKvm;

// The ioctls of a VM. SPEC: api.rst, type "vm ioctl". Errors come in the order in which KVM finds them.
internal sealed partial class VmObject
{
    public override long Ioctl(uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        if (!TryGet())
            return -Errno.EBADF;
        try
        {
            return Vm.IsDead ? -Errno.EIO : Dispatch(command, argument, out fd);
        }
        finally { Put(); }
    }

    private long Dispatch(uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        switch (command)
        {
            case KVM_CREATE_VCPU:
                return CreateVcpu(argument, out fd);
            case KVM_CHECK_EXTENSION:
                return argument <= int.MaxValue ? Vm.CheckExtension((int)argument) : 0;
            case KVM_ENABLE_CAP:
                return UserCopy.TryRead(argument, out kvm_enable_cap cap) ? Vm.EnableCap(cap) : -Errno.EFAULT;
            case KVM_CREATE_DEVICE:
                return CreateDevice(argument, out fd);
            case KVM_GET_STATS_FD:
                return StatsObject.ForVm(this, out fd);
            case KVM_SET_USER_MEMORY_REGION or KVM_SET_USER_MEMORY_REGION2 or KVM_GET_DIRTY_LOG or KVM_CLEAR_DIRTY_LOG or KVM_REGISTER_COALESCED_MMIO
                or KVM_UNREGISTER_COALESCED_MMIO or KVM_SET_NR_MMU_PAGES
                or KVM_SET_TSS_ADDR or KVM_SET_IDENTITY_MAP_ADDR or KVM_SET_MEMORY_ATTRIBUTES or KVM_CREATE_GUEST_MEMFD or KVM_RESET_DIRTY_RINGS:
                return MemoryIoctl(command, argument, out fd);
            case KVM_SET_CLOCK:
                return UserCopy.TryRead(argument, out kvm_clock_data set) ? Vm.Clock.Set(set) : -Errno.EFAULT;
            case KVM_GET_CLOCK:
                return UserCopy.TryWrite(argument, Vm.Clock.Get()) ? 0 : -Errno.EFAULT;
            case KVM_SET_TSC_KHZ:
                return Vm.Clock.SetTscKhz((uint)argument);
            case KVM_GET_TSC_KHZ:
                return Vm.Clock.DefaultTscKhz;
            case KVM_SET_BOOT_CPU_ID:
                return Vm.SetBootCpuId(argument);
            case KVM_X86_SET_MSR_FILTER:
                return UserCopy.TryRead(argument, out kvm_msr_filter filter) ? Vm.SetMsrFilter(filter) : -Errno.EFAULT;
            case KVM_MEMORY_ENCRYPT_REG_REGION or KVM_MEMORY_ENCRYPT_UNREG_REGION:
                return UserCopy.TryRead(argument, out kvm_enc_region _) ? -Errno.ENOTTY : -Errno.EFAULT;
            default:
                return InterruptIoctl(command, argument);
        }
    }

    private long InterruptIoctl(uint command, ulong argument)
    {
        switch (command)
        {
            case KVM_CREATE_IRQCHIP:
                return Vm.CreateIrqchip();
            case KVM_CREATE_PIT:
                return Vm.CreatePit2(KVM_PIT_SPEAKER_DUMMY);
            case KVM_CREATE_PIT2:
                return UserCopy.TryRead(argument, out kvm_pit_config config) ? Vm.CreatePit2(config.flags) : -Errno.EFAULT;
            case KVM_GET_IRQCHIP:
                if (!UserCopy.TryRead(argument, out kvm_irqchip get))
                    return -Errno.EFAULT;
                return Vm.GetIrqchip(ref get) is not 0 and var e ? e : UserCopy.TryWrite(argument, get) ? 0 : -Errno.EFAULT;
            case KVM_SET_IRQCHIP:
                return UserCopy.TryRead(argument, out kvm_irqchip chip) ? Vm.SetIrqchip(chip) : -Errno.EFAULT;
            case KVM_GET_PIT:
                return GetPit(argument);
            case KVM_SET_PIT:
                return SetPit(argument);
            case KVM_GET_PIT2:
                return Vm.GetPit2(out kvm_pit_state2 pit) is not 0 and var r ? r : UserCopy.TryWrite(argument, pit) ? 0 : -Errno.EFAULT;
            case KVM_SET_PIT2:
                return UserCopy.TryRead(argument, out kvm_pit_state2 state) ? Vm.SetPit2(state) : -Errno.EFAULT;
            case KVM_REINJECT_CONTROL:
                return ReinjectControl(argument);
            case KVM_IRQ_LINE or KVM_IRQ_LINE_STATUS:
                return IrqLine(argument, command == KVM_IRQ_LINE_STATUS);
            case KVM_SIGNAL_MSI:
                return UserCopy.TryRead(argument, out kvm_msi msi) ? Vm.SignalMsi(msi) : -Errno.EFAULT;
            case KVM_SET_GSI_ROUTING:
                return SetGsiRouting(argument);
            case KVM_IRQFD:
                return UserCopy.TryRead(argument, out kvm_irqfd irqfd) ? Vm.RegisterIrqfd(irqfd) : -Errno.EFAULT;
            case KVM_IOEVENTFD:
                return UserCopy.TryRead(argument, out kvm_ioeventfd ioeventfd) ? Vm.RegisterIoeventfd(ioeventfd) : -Errno.EFAULT;
            case KVM_XEN_HVM_CONFIG:
                return UserCopy.TryRead(argument, out kvm_xen_hvm_config xen) ? Vm.XenHvmConfig(xen) : -Errno.EFAULT;
            case KVM_XEN_HVM_SET_ATTR:
                return UserCopy.TryRead(argument, out kvm_xen_hvm_attr attr) ? XenSetAttr(attr) : -Errno.EFAULT;
            case KVM_XEN_HVM_GET_ATTR:
                if (!UserCopy.TryRead(argument, out attr))
                    return -Errno.EFAULT;
                return Vm.XenGetAttr(ref attr) is not 0 and var error ? error : UserCopy.TryWrite(argument, attr) ? 0 : -Errno.EFAULT;
            case KVM_XEN_HVM_EVTCHN_SEND:
                return UserCopy.TryRead(argument, out kvm_irq_routing_xen_evtchn send) ? Vm.XenEvtchnSend(send) : -Errno.EFAULT;
            default:
                return -Errno.ENOTTY;
        }
    }

    private int XenSetAttr(in kvm_xen_hvm_attr attr)
    {
        if (attr.type == KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA)
            WatchPageOf(attr.hva);
        return Vm.XenSetAttr(attr);
    }

    /// <summary>The client names a page of its own that need not be in a slot: its changes have to be seen as well.</summary>
    internal static void WatchPageOf(ulong hva)
    {
        const ulong PageMask = 4095, UserEnd = 0x0000_7fff_ffff_f000;
        if (hva != 0 && hva < UserEnd)
            ClientMemory.Extend(hva & ~PageMask, (hva & ~PageMask) + PageMask + 1);
    }

    private int IrqLine(ulong argument, bool status)
    {
        if (!UserCopy.TryRead(argument, out kvm_irq_level line))
            return -Errno.EFAULT;
        if (Vm.Irqchip is null)
            return -Errno.ENXIO;
        line.irq = (uint)Vm.IrqLine(line.irq, line.level != 0, status);
        return !status || UserCopy.TryWrite(argument, line) ? 0 : -Errno.EFAULT;
    }

    private unsafe int SetGsiRouting(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_irq_routing header))
            return -Errno.EFAULT;
        if (Vm.Irqchip is null || header.nr > IrqRouting.MaxRoutes || header.flags != 0)
            return -Errno.EINVAL;
        var entries = new kvm_irq_routing_entry[header.nr];
        fixed (kvm_irq_routing_entry* e = entries)
        {
            if (entries.Length != 0 && !UserCopy.TryRead(argument + (ulong)sizeof(kvm_irq_routing), e,
                (nuint)entries.Length * (nuint)sizeof(kvm_irq_routing_entry)))
                return -Errno.EFAULT;
        }
        return Vm.SetGsiRouting(entries);
    }

    private int GetPit(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_pit_state _))
            return -Errno.EFAULT;
        int r = Vm.GetPit2(out kvm_pit_state2 state);
        return r != 0 ? r : UserCopy.TryWrite(argument, new kvm_pit_state { channels = state.channels }) ? 0 : -Errno.EFAULT;
    }

    private int SetPit(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_pit_state state))
            return -Errno.EFAULT;
        int r = Vm.GetPit2(out kvm_pit_state2 both);
        if (r != 0)
            return r;
        both.channels = state.channels;
        return Vm.SetPit2(both);
    }

    private int ReinjectControl(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_reinject_control control))
            return -Errno.EFAULT;
        if (Vm.Irqchip?.Pit is not { } pit)
            return -Errno.ENXIO;
        pit.SetReinject(control.pit_reinject != 0);
        return 0;
    }

    /// <summary>KVM_CREATE_DEVICE. The only type of x86 is VFIO's.</summary>
    private long CreateDevice(ulong argument, out NewFd fd)
    {
        fd = default;
        if (!UserCopy.TryRead(argument, out kvm_create_device create))
            return -Errno.EFAULT;
        if (create.type != KVM_DEV_TYPE_VFIO)
            return -Errno.ENODEV;
        if ((create.flags & KVM_CREATE_DEVICE_TEST) == 0)
        {
            int r = VfioDevice.Create(this, out fd);
            if (r < 0)
                return r;
            create.fd = (uint)fd.Fd;
        }
        return UserCopy.TryWrite(argument, create) ? 0 : -Errno.EFAULT;
    }
}
