using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

// SAFETY: MSR and CPUID entries are copied to stack arrays of the largest number allowed, which the count is compared with first.
namespace Ring3.DevKvm;

// The ioctls of a vCPU, called with its mutex held. SPEC: api.rst, type "vcpu ioctl". Errors come in the order in which KVM finds them.
internal sealed partial class VcpuObject
{
    private long Dispatch(uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        switch (command)
        {
            case KVM_GET_REGS:
                Vcpu.GetRegs(out kvm_regs regs);
                return Put(argument, regs);
            case KVM_SET_REGS:
                if (!UserCopy.TryRead(argument, out regs))
                    return -Errno.EFAULT;
                Vcpu.SetRegs(regs);
                return 0;
            case KVM_GET_SREGS:
                Vcpu.GetSregs(out kvm_sregs sregs);
                return Put(argument, sregs);
            case KVM_SET_SREGS:
                return UserCopy.TryRead(argument, out sregs) ? Vcpu.SetSregs(sregs) : -Errno.EFAULT;
            case KVM_GET_SREGS2:
                Vcpu.GetSregs2(out kvm_sregs2 sregs2);
                return Put(argument, sregs2);
            case KVM_SET_SREGS2:
                return UserCopy.TryRead(argument, out sregs2) ? Vcpu.SetSregs2(sregs2) : -Errno.EFAULT;
            case KVM_GET_MP_STATE:
                return Put(argument, Vcpu.GetMpState());
            case KVM_SET_MP_STATE:
                return UserCopy.TryRead(argument, out kvm_mp_state mp) ? Vcpu.SetMpState(mp) : -Errno.EFAULT;
            case KVM_TRANSLATE:
                return Translate(argument);
            case KVM_SET_GUEST_DEBUG:
                return UserCopy.TryRead(argument, out kvm_guest_debug debug) ? Vcpu.SetGuestDebug(debug) : -Errno.EFAULT;
            case KVM_SET_SIGNAL_MASK:
                return CheckSignalMask(argument);
            case KVM_GET_STATS_FD:
                return StatsObject.ForVcpu(vm, Vcpu, out fd);
            case KVM_INTERRUPT:
                return UserCopy.TryRead(argument, out kvm_interrupt irq) ? Vcpu.Interrupt(irq.irq) : -Errno.EFAULT;
            case KVM_NMI:
                Vcpu.InjectNmi();
                return 0;
            case KVM_SMI:
                Vcpu.InjectSmi();
                return 0;
            default:
                return StateIoctl(command, argument);
        }
    }

    private long StateIoctl(uint command, ulong argument)
    {
        switch (command)
        {
            case KVM_GET_FPU:
                Vcpu.GetFpu(out kvm_fpu fpu);
                return Put(argument, fpu);
            case KVM_SET_FPU:
                if (!UserCopy.TryRead(argument, out fpu))
                    return -Errno.EFAULT;
                Vcpu.SetFpu(fpu);
                return 0;
            case KVM_GET_XSAVE or KVM_GET_XSAVE2:
                Vcpu.GetXsave(out kvm_xsave xsave);
                return Put(argument, xsave);
            case KVM_SET_XSAVE:
                return UserCopy.TryRead(argument, out xsave) ? Vcpu.SetXsave(xsave) : -Errno.EFAULT;
            case KVM_GET_XCRS:
                Vcpu.GetXcrs(out kvm_xcrs xcrs);
                return Put(argument, xcrs);
            case KVM_SET_XCRS:
                return UserCopy.TryRead(argument, out xcrs) ? Vcpu.SetXcrs(xcrs) : -Errno.EFAULT;
            case KVM_GET_DEBUGREGS:
                Vcpu.GetDebugRegs(out kvm_debugregs debugRegs);
                return Put(argument, debugRegs);
            case KVM_SET_DEBUGREGS:
                return UserCopy.TryRead(argument, out debugRegs) ? Vcpu.SetDebugRegs(debugRegs) : -Errno.EFAULT;
            case KVM_GET_VCPU_EVENTS:
                Vcpu.GetVcpuEvents(out kvm_vcpu_events events);
                return Put(argument, events);
            case KVM_SET_VCPU_EVENTS:
                return UserCopy.TryRead(argument, out events) ? Vcpu.SetVcpuEvents(events) : -Errno.EFAULT;
            case KVM_GET_LAPIC:
                return Vcpu.GetLapic(out kvm_lapic_state lapic) is not 0 and var e ? e : Put(argument, lapic);
            case KVM_SET_LAPIC:
                return Vcpu.Lapic is null ? -Errno.EINVAL : UserCopy.TryRead(argument, out lapic) ? Vcpu.SetLapic(lapic) : -Errno.EFAULT;
            case KVM_GET_MSRS:
                return MsrIo(argument, get: true);
            case KVM_SET_MSRS:
                return MsrIo(argument, get: false);
            case KVM_SET_CPUID:
                return SetCpuid(argument);
            case KVM_SET_CPUID2:
                return SetCpuid2(argument);
            case KVM_GET_CPUID2:
                return GetCpuid2(argument);
            default:
                return FeatureIoctl(command, argument);
        }
    }

    private long FeatureIoctl(uint command, ulong argument)
    {
        switch (command)
        {
            case KVM_TPR_ACCESS_REPORTING:
                if (!UserCopy.TryRead(argument, out kvm_tpr_access_ctl tpr))
                    return -Errno.EFAULT;
                return Vcpu.SetTprAccessReporting(tpr) is not 0 and var refused ? refused : Put(argument, tpr);
            case KVM_SET_VAPIC_ADDR:
                return SetVapicAddress(argument);
            case KVM_X86_SETUP_MCE:
                return UserCopy.TryRead(argument, out ulong mcgCap) ? Vcpu.SetupMce(mcgCap) : -Errno.EFAULT;
            case KVM_X86_SET_MCE:
                return UserCopy.TryRead(argument, out kvm_x86_mce mce) ? Vcpu.SetMce(mce) : -Errno.EFAULT;
            case KVM_SET_TSC_KHZ:
                return Vcpu.SetTscKhz((uint)argument);
            case KVM_GET_TSC_KHZ:
                return Vcpu.TscKhz;
            case KVM_KVMCLOCK_CTRL:
                return Vcpu.KvmClockCtrl();
            case KVM_ENABLE_CAP:
                return UserCopy.TryRead(argument, out kvm_enable_cap cap) ? Vcpu.EnableCap(cap) : -Errno.EFAULT;
            case KVM_PRE_FAULT_MEMORY:
                return PreFault(argument);
            case KVM_HAS_DEVICE_ATTR or KVM_GET_DEVICE_ATTR or KVM_SET_DEVICE_ATTR:
                return TscAttribute(command, argument);
            case KVM_XEN_VCPU_SET_ATTR:
                if (!UserCopy.TryRead(argument, out kvm_xen_vcpu_attr attr))
                    return -Errno.EFAULT;
                if (attr.type == KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA)
                    VmObject.WatchPageOf(attr.hva);
                return Vcpu.XenSetAttr(attr);
            case KVM_XEN_VCPU_GET_ATTR:
                if (!UserCopy.TryRead(argument, out attr))
                    return -Errno.EFAULT;
                return Vcpu.XenGetAttr(ref attr) is not 0 and var e ? e : Put(argument, attr);
            default:
                return -Errno.EINVAL;
        }
    }

    private static int Put<T>(ulong argument, in T value) where T : unmanaged => UserCopy.TryWrite(argument, value) ? 0 : -Errno.EFAULT;

    private int PreFault(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_pre_fault_memory range))
            return -Errno.EFAULT;
        int r = Vcpu.PreFaultMemory(ref range);
        // The rest goes back in any case.
        return UserCopy.TryWrite(argument, range) ? r : -Errno.EFAULT;
    }

    private int Translate(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_translation tr))
            return -Errno.EFAULT;
        Vcpu.Translate(ref tr);
        return Put(argument, tr);
    }

    /// <summary>KVM_SET_SIGNAL_MASK. The mask itself is kept where signals arrive, in the interposer; what is left here are the checks.</summary>
    private static int CheckSignalMask(ulong argument)
    {
        if (argument == 0)
            return 0;
        if (!UserCopy.TryRead(argument, out kvm_signal_mask mask))
            return -Errno.EFAULT;
        if (mask.len != sizeof(ulong))
            return -Errno.EINVAL;
        return UserCopy.TryRead(argument + sizeof(uint), out ulong _) ? 0 : -Errno.EFAULT;
    }

    private int SetVapicAddress(ulong argument)
    {
        if (Vcpu.Lapic is null)
            return -Errno.EINVAL;
        if (!UserCopy.TryRead(argument, out kvm_vapic_addr address))
            return -Errno.EFAULT;
        return Vcpu.SetVapicAddress(address.vapic_addr);
    }

    private unsafe int MsrIo(ulong argument, bool get)
    {
        if (!UserCopy.TryRead(argument, out kvm_msrs header))
            return -Errno.EFAULT;
        if (header.nmsrs >= SystemObject.MaxIoMsrs)
            return -Errno.E2BIG;
        kvm_msr_entry* entries = stackalloc kvm_msr_entry[SystemObject.MaxIoMsrs];
        nuint bytes = header.nmsrs * (nuint)sizeof(kvm_msr_entry);
        ulong at = argument + (ulong)sizeof(kvm_msrs);
        if (!UserCopy.TryRead(at, entries, bytes))
            return -Errno.EFAULT;
        var span = new Span<kvm_msr_entry>(entries, (int)header.nmsrs);
        if (!get)
            return Vcpu.SetMsrs(span);
        int n = Vcpu.GetMsrs(span);
        return UserCopy.TryWrite(at, entries, bytes) ? n : -Errno.EFAULT;
    }

    private unsafe int SetCpuid(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_cpuid header))
            return -Errno.EFAULT;
        if (header.nent > Vcpu.MaxCpuidEntries)
            return -Errno.E2BIG;
        var entries = new kvm_cpuid_entry2[header.nent];
        for (int i = 0; i < entries.Length; i++)
        {
            if (!UserCopy.TryRead(argument + (ulong)sizeof(kvm_cpuid) + (ulong)(i * sizeof(kvm_cpuid_entry)), out kvm_cpuid_entry e))
                return -Errno.EFAULT;
            entries[i] = new() { function = e.function, eax = e.eax, ebx = e.ebx, ecx = e.ecx, edx = e.edx };
        }
        return Vcpu.SetCpuid2(entries);
    }

    private unsafe int SetCpuid2(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_cpuid2 header))
            return -Errno.EFAULT;
        if (header.nent > Vcpu.MaxCpuidEntries)
            return -Errno.E2BIG;
        kvm_cpuid_entry2* entries = stackalloc kvm_cpuid_entry2[Vcpu.MaxCpuidEntries];
        if (!UserCopy.TryRead(argument + (ulong)sizeof(kvm_cpuid2), entries, header.nent * (nuint)sizeof(kvm_cpuid_entry2)))
            return -Errno.EFAULT;
        return Vcpu.SetCpuid2(new ReadOnlySpan<kvm_cpuid_entry2>(entries, (int)header.nent));
    }

    private unsafe int GetCpuid2(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_cpuid2 header))
            return -Errno.EFAULT;
        kvm_cpuid_entry2* entries = stackalloc kvm_cpuid_entry2[Vcpu.MaxCpuidEntries];
        int n = Vcpu.GetCpuid2(new Span<kvm_cpuid_entry2>(entries, (int)Math.Min(header.nent, Vcpu.MaxCpuidEntries)));
        if (n < 0)
            return n;
        header.nent = (uint)n;
        return UserCopy.TryWrite(argument + (ulong)sizeof(kvm_cpuid2), entries, (nuint)n * (nuint)sizeof(kvm_cpuid_entry2)) ? Put(argument, header)
            : -Errno.EFAULT;
    }

    private int TscAttribute(uint command, ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_device_attr attr))
            return -Errno.EFAULT;
        if (attr.group != KVM_VCPU_TSC_CTRL || attr.attr != KVM_VCPU_TSC_OFFSET)
            return -Errno.ENXIO;
        switch (command)
        {
            case KVM_GET_DEVICE_ATTR:
                return Put(attr.addr, Vcpu.TscOffset);
            case KVM_SET_DEVICE_ATTR:
                if (!UserCopy.TryRead(attr.addr, out ulong offset))
                    return -Errno.EFAULT;
                Vcpu.TscOffset = offset;
                return 0;
            default:
                return 0;
        }
    }
}
