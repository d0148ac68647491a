using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

// SAFETY: lists are pinned, or stack arrays whose length bounds what is taken from the client.
namespace Ring3.DevKvm;

// The ioctls of /dev/kvm. SPEC: api.rst, type "system ioctl".
internal sealed partial class SystemObject
{
    /// <summary>Entries of one KVM_GET_MSRS or KVM_SET_MSRS stay below this number.</summary>
    internal const int MaxIoMsrs = 256;

    public override long Ioctl(uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        switch (command)
        {
            case KVM_GET_API_VERSION:
                return argument == 0 ? KvmSystem.ApiVersion : -Errno.EINVAL;
            case KVM_CREATE_VM:
                return VmObject.Create(argument, out fd);
            case KVM_CHECK_EXTENSION:
                return argument <= int.MaxValue ? KvmSystem.CheckExtension((int)argument) : 0;
            case KVM_GET_VCPU_MMAP_SIZE:
                return argument == 0 ? KvmSystem.VcpuMmapSize : -Errno.EINVAL;
            case KVM_GET_MSR_INDEX_LIST:
                return GetMsrList(argument, KvmSystem.MsrIndexListOf(ModuleParameters.Processor));
            case KVM_GET_MSR_FEATURE_INDEX_LIST:
                return GetMsrList(argument, KvmSystem.MsrFeatureIndexListOf(ModuleParameters.Processor));
            case KVM_GET_SUPPORTED_CPUID:
                return GetCpuid(argument, emulated: false);
            case KVM_GET_EMULATED_CPUID:
                return GetCpuid(argument, emulated: true);
            case KVM_GET_SUPPORTED_HV_CPUID:
                return GetHyperVCpuid(argument);
            case KVM_GET_MSRS:
                return GetFeatureMsrs(argument);
            case KVM_X86_GET_MCE_CAP_SUPPORTED:
                return UserCopy.TryWrite(argument, KvmSystem.MceCapability) ? 0 : -Errno.EFAULT;
            case KVM_GET_DEVICE_ATTR or KVM_HAS_DEVICE_ATTR:
                return DeviceAttribute(argument, get: command == KVM_GET_DEVICE_ATTR);
            default:
                return -Errno.EINVAL;
        }
    }

    private static unsafe int GetMsrList(ulong argument, ReadOnlySpan<uint> list)
    {
        if (!UserCopy.TryRead(argument, out kvm_msr_list header))
            return -Errno.EFAULT;
        uint room = header.nmsrs;
        header.nmsrs = (uint)list.Length;
        if (!UserCopy.TryWrite(argument, header))
            return -Errno.EFAULT;
        if (room < (uint)list.Length)
            return -Errno.E2BIG;
        fixed (uint* indices = list)
            return UserCopy.TryWrite(argument + sizeof(uint), indices, (nuint)list.Length * sizeof(uint)) ? 0 : -Errno.EFAULT;
    }

    private static unsafe int GetHyperVCpuid(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_cpuid2 header))
            return -Errno.EFAULT;
        ReadOnlySpan<kvm_cpuid_entry2> leaves = KvmSystem.SupportedHvCpuid;
        if (header.nent < (uint)leaves.Length)
            return -Errno.E2BIG;
        header.nent = (uint)leaves.Length;
        fixed (kvm_cpuid_entry2* e = leaves)
            return UserCopy.TryWrite(argument + (ulong)sizeof(kvm_cpuid2), e, (nuint)leaves.Length * (nuint)sizeof(kvm_cpuid_entry2))
                && UserCopy.TryWrite(argument, header) ? 0 : -Errno.EFAULT;
    }

    private static unsafe int GetCpuid(ulong argument, bool emulated)
    {
        if (!UserCopy.TryRead(argument, out kvm_cpuid2 header))
            return -Errno.EFAULT;
        if (header.nent < 1)
            return -Errno.E2BIG;
        int room = (int)Math.Min(header.nent, Vcpu.MaxCpuidEntries);
        ulong at = argument + (ulong)sizeof(kvm_cpuid2);
        if (emulated && !PaddingIsZero(at, room))
            return -Errno.EINVAL;
        kvm_cpuid_entry2* entries = stackalloc kvm_cpuid_entry2[Vcpu.MaxCpuidEntries];
        var span = new Span<kvm_cpuid_entry2>(entries, room);
        int n = emulated ? GetEmulatedCpuid(span) : KvmSystem.GetSupportedCpuid(span, ModuleParameters.Processor);
        if (n < 0)
            return n;
        header.nent = (uint)n;
        return UserCopy.TryWrite(at, entries, (nuint)n * (nuint)sizeof(kvm_cpuid_entry2)) && UserCopy.TryWrite(argument, header) ? 0 : -Errno.EFAULT;
    }

    private static unsafe bool PaddingIsZero(ulong at, int count)
    {
        for (int i = 0; i < count; i++)
        {
            if (!UserCopy.TryRead(at + (ulong)(i * sizeof(kvm_cpuid_entry2)), out kvm_cpuid_entry2 e) || (e.padding[0] | e.padding[1] | e.padding[2]) != 0)
                return false;
        }
        return true;
    }

    /// <summary>Instructions that work whether the host has them or not. Here that is every one of them, so the list is KVM's: MOVBE and RDPID.</summary>
    private static int GetEmulatedCpuid(Span<kvm_cpuid_entry2> entries)
    {
        if (entries.Length < 4)
            return -Errno.E2BIG;
        entries[0] = new() { function = 0, eax = 7 };
        entries[1] = new() { function = 1, ecx = 1 << 22 };
        entries[2] = new() { function = 7, flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ecx = 1 << 22 };
        return 3;
    }

    private static unsafe int GetFeatureMsrs(ulong argument)
    {
        if (!UserCopy.TryRead(argument, out kvm_msrs header))
            return -Errno.EFAULT;
        if (header.nmsrs >= MaxIoMsrs)
            return -Errno.E2BIG;
        kvm_msr_entry* entries = stackalloc kvm_msr_entry[MaxIoMsrs];
        nuint bytes = header.nmsrs * (nuint)sizeof(kvm_msr_entry);
        ulong at = argument + (ulong)sizeof(kvm_msrs);
        if (!UserCopy.TryRead(at, entries, bytes))
            return -Errno.EFAULT;
        int n = 0;
        while (n < header.nmsrs && KvmSystem.TryGetFeatureMsr(entries[n].index, out entries[n].data, ModuleParameters.Processor))
            n++;
        return UserCopy.TryWrite(at, entries, bytes) ? n : -Errno.EFAULT;
    }

    private static int DeviceAttribute(ulong argument, bool get)
    {
        if (!UserCopy.TryRead(argument, out kvm_device_attr attr))
            return -Errno.EFAULT;
        if (attr.group != 0 || attr.attr != KVM_X86_XCOMP_GUEST_SUPP)
            return -Errno.ENXIO;
        return !get || UserCopy.TryWrite(attr.addr, SupportedCpuid.SupportedXcr0) ? 0 : -Errno.EFAULT;
    }
}
