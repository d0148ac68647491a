using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Host;
using static Ring3.Abi.Errno;
using static Ring3.Abi.KvmApi;

namespace Ring3.DevKvm.Tests;

/// <summary>
/// What each call answers to pointers, sizes, flags and states that are wrong. The expectations are KVM's: with RING3_ORACLE=1 and a usable /dev/kvm
/// the same table is put to the host's KVM instead.
/// </summary>
[Collection("devkvm")]
public unsafe class ErrnoTests : IDisposable
{
    private delegate long Call(uint command, ulong argument);

    private static readonly bool s_oracle = Environment.GetEnvironmentVariable("RING3_ORACLE") == "1";
    private readonly List<IDisposable> _made = [];
    private readonly List<int> _fds = [];
    /// <summary>Two pages, then one beyond the end of its file, where every access fails.</summary>
    private readonly byte* _scratch;

    public ErrnoTests()
    {
        int fd = MemFd.Create("scratch", 8192);
        _scratch = HostMemory.MapShared(fd, 3 * 4096);
        MemFd.Close(fd);
    }

    public void Dispose()
    {
        foreach (IDisposable d in Enumerable.Reverse(_made))
            d.Dispose();
        foreach (int fd in _fds)
            MemFd.Close(fd);
        HostMemory.Unmap(_scratch, 3 * 4096);
    }

    [DllImport("libc", SetLastError = true)]
    private static extern int open(byte* path, int flags);
    [DllImport("libc", SetLastError = true)]
    private static extern int ioctl(int fd, nuint command, nuint argument);

    private Call Real(int fd)
    {
        _fds.Add(fd);
        return (command, argument) => ioctl(fd, command, (nuint)argument) is >= 0 and var r ? r : -Marshal.GetLastPInvokeError();
    }

    private Call Kvm()
    {
        if (!s_oracle)
            return Wrap(Client.Open());
        fixed (byte* path = "/dev/kvm\0"u8)
            return Real(open(path, 2));
    }

    private Call Wrap(Descriptor d)
    {
        _made.Add(d);
        return (command, argument) =>
        {
            long r = KvmDevice.Ioctl(d.Handle, command, argument, out NewFd fd);
            if (fd.Handle == 0)
                return r;
            var made = new Descriptor(fd);
            _byFd[made.Fd] = made;
            return made.Fd;
        };
    }

    private readonly Dictionary<int, Descriptor> _byFd = [];

    private Call Make(Call on, uint command, ulong argument = 0)
    {
        long fd = on(command, argument);
        Assert.True(fd >= 0, $"{command:x} gives {fd}");
        return s_oracle ? Real((int)fd) : Wrap(_byFd[(int)fd]);
    }

    private ulong Put<T>(T value) where T : unmanaged
    {
        new Span<byte>(_scratch, 8192).Clear();
        *(T*)_scratch = value;
        return (ulong)_scratch;
    }

    /// <summary>A structure whose last byte is beyond what is mapped.</summary>
    private ulong Cut(uint command) => (ulong)_scratch + 8192 - (command >> 16 & 0x3fff) + 1;

    private static void Expect(long expected, long actual, string what) => Assert.True(expected == actual, $"{what}: {actual}, not {expected}");

    private void ExpectFault(Call on, params uint[] commands)
    {
        foreach (uint command in commands)
        {
            string name = KvmNames.Ioctl(command);
            Expect(-EFAULT, on(command, 0x10), name + " low");
            Expect(-EFAULT, on(command, 0xffff_8000_0000_0000), name + " kernel");
            Expect(-EFAULT, on(command, 0x8000_0000_0000_0000), name + " non-canonical");
            Expect(-EFAULT, on(command, Cut(command)), name + " cut");
        }
    }

    [Fact]
    public void WildPointers_AreEfault()
    {
        Call kvm = Kvm(), vm = Make(kvm, KVM_CREATE_VM), vcpu;
        ExpectFault(kvm, KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST, KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID, KVM_GET_MSRS,
            KVM_X86_GET_MCE_CAP_SUPPORTED, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR);
        Expect(0, vm(KVM_CREATE_IRQCHIP, 0), "irqchip");
        ExpectFault(vm, KVM_CREATE_PIT2);
        Expect(0, vm(KVM_CREATE_PIT2, Put(default(kvm_pit_config))), "pit");
        ExpectFault(vm, KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_REGISTER_COALESCED_MMIO,
            KVM_UNREGISTER_COALESCED_MMIO, KVM_SET_IDENTITY_MAP_ADDR, KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS,
            KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, KVM_GET_PIT, KVM_SET_PIT, KVM_GET_PIT2, KVM_SET_PIT2, KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD,
                KVM_SET_CLOCK, KVM_GET_CLOCK, KVM_SIGNAL_MSI, KVM_X86_SET_MSR_FILTER,
            KVM_CREATE_DEVICE, KVM_ENABLE_CAP);
        vcpu = Make(vm, KVM_CREATE_VCPU);
        ExpectFault(vcpu, KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_GET_SREGS2, KVM_SET_SREGS2, KVM_TRANSLATE, KVM_INTERRUPT, KVM_GET_MSRS,
            KVM_SET_MSRS, KVM_SET_CPUID, KVM_SET_CPUID2, KVM_GET_CPUID2,
            KVM_SET_SIGNAL_MASK, KVM_GET_FPU, KVM_SET_FPU, KVM_GET_LAPIC, KVM_SET_LAPIC, KVM_TPR_ACCESS_REPORTING, KVM_SET_VAPIC_ADDR, KVM_GET_MP_STATE,
                KVM_SET_MP_STATE, KVM_SET_GUEST_DEBUG, KVM_X86_SETUP_MCE, KVM_X86_SET_MCE,
            KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, KVM_GET_XSAVE, KVM_SET_XSAVE, KVM_GET_XCRS, KVM_SET_XCRS,
                KVM_ENABLE_CAP, KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR);
    }

    [Fact]
    public void CallsOfOtherObjects_AreRefused()
    {
        Call kvm = Kvm(), vm = Make(kvm, KVM_CREATE_VM), vcpu = Make(vm, KVM_CREATE_VCPU);
        Expect(-EINVAL, kvm(KVM_RUN, 0), "run on kvm");
        Expect(-EINVAL, kvm(KVM_CREATE_VCPU, 0), "vcpu on kvm");
        Expect(-EINVAL, kvm(KVMIO << 8 | 0xfe, 0), "unknown on kvm");
        Expect(-ENOTTY, vm(KVM_RUN, 0), "run on vm");
        Expect(-ENOTTY, vm(KVM_GET_API_VERSION, 0), "version on vm");
        Expect(-ENOTTY, vm(KVM_CREATE_VM, 0), "create on vm");
        Expect(-ENOTTY, vm(KVMIO << 8 | 0xfe, 0), "unknown on vm");
        Expect(-ENOTTY, vm(0x5401, 0), "tty on vm");
        Expect(-EINVAL, vcpu(KVM_CREATE_VCPU, 0), "vcpu on vcpu");
        Expect(-EINVAL, vcpu(KVM_CHECK_EXTENSION, 0), "extension on vcpu");
        Expect(-EINVAL, vcpu(KVMIO << 8 | 0xfe, 0), "unknown on vcpu");
        Expect(-EINVAL, vcpu(0x5401, 0), "tty on vcpu");
        Expect(-ENOTTY, vm(KVM_HAS_DEVICE_ATTR, Put(default(kvm_device_attr))), "attribute of vm");
    }

    [Fact]
    public void PlainArguments_AreChecked()
    {
        Call kvm = Kvm();
        Expect(-EINVAL, kvm(KVM_GET_API_VERSION, 1), "version 1");
        Expect(-EINVAL, kvm(KVM_GET_VCPU_MMAP_SIZE, 1), "mmap size 1");
        Expect(-EINVAL, kvm(KVM_CREATE_VM, 77), "vm type");
        Expect(0, kvm(KVM_CHECK_EXTENSION, 0xffff), "unknown extension");
        Call vm = Make(kvm, KVM_CREATE_VM);
        Expect(-EINVAL, vm(KVM_CREATE_VCPU, 1u << 30), "vcpu id");
        Expect(-EINVAL, vm(KVM_SET_TSS_ADDR, 0xffff_f000), "tss");
        Expect(-EINVAL, vm(KVM_SET_NR_MMU_PAGES, 1), "mmu pages");
        Expect(-EINVAL, vm(KVM_SET_BOOT_CPU_ID, 1u << 30), "boot cpu");
        Call vcpu = Make(vm, KVM_CREATE_VCPU, 3);
        Expect(-EEXIST, vm(KVM_CREATE_VCPU, 3), "same vcpu");
        Expect(-EBUSY, vm(KVM_SET_BOOT_CPU_ID, 0), "boot cpu late");
        Expect(-EINVAL, vm(KVM_SET_IDENTITY_MAP_ADDR, Put(0ul)), "identity map late");
        Expect(-EINVAL, vm(KVM_CREATE_IRQCHIP, 0), "irqchip late");
        Expect(-EINVAL, vcpu(KVM_RUN, 1), "run 1");
        Expect(-EINVAL, vcpu(KVM_KVMCLOCK_CTRL, 0), "no clock");
    }

    [Fact]
    public void Sizes_AreChecked()
    {
        Call kvm = Kvm(), vm = Make(kvm, KVM_CREATE_VM), vcpu = Make(vm, KVM_CREATE_VCPU);
        Expect(-E2BIG, kvm(KVM_GET_SUPPORTED_CPUID, Put(0ul)), "no room");
        Expect(-E2BIG, kvm(KVM_GET_SUPPORTED_CPUID, Put(2ul)), "little room");
        Expect(-E2BIG, kvm(KVM_GET_EMULATED_CPUID, Put(1ul)), "little room for emulated");
        Expect(-E2BIG, kvm(KVM_GET_MSR_INDEX_LIST, Put(1u)), "index list");
        Assert.True(*(uint*)_scratch > 10, "the needed number is written");
        Expect(-E2BIG, kvm(KVM_GET_MSRS, Put(256u)), "too many feature MSRs");
        Expect(-E2BIG, vcpu(KVM_GET_MSRS, Put(256u)), "too many MSRs");
        Expect(-E2BIG, vcpu(KVM_SET_MSRS, Put(uint.MaxValue)), "far too many MSRs");
        Expect(0, vcpu(KVM_SET_MSRS, Put(0ul)), "no MSRs");
        Expect(-E2BIG, vcpu(KVM_SET_CPUID2, Put(257ul)), "too many leaves");
        Expect(-E2BIG, vcpu(KVM_SET_CPUID, Put(257ul)), "too many old leaves");
        Expect(-EFAULT, vcpu(KVM_SET_CPUID2, CutEntries(256)), "leaves cut");
        Expect(-EFAULT, vcpu(KVM_GET_MSRS, CutEntries(255)), "MSRs cut");
        Expect(-EINVAL, vcpu(KVM_SET_SIGNAL_MASK, Put(4u)), "short mask");
        Expect(0, vcpu(KVM_SET_SIGNAL_MASK, 0), "no mask");
        // An unknown MSR ends the list.
        kvm_msrs* list = (kvm_msrs*)Put(new kvm_msrs { nmsrs = 2 });
        kvm_msr_entry* e = (kvm_msr_entry*)(list + 1);
        (e[0].index, e[1].index) = (0x10, 0xdead_0000);
        Expect(1, vcpu(KVM_GET_MSRS, (ulong)list), "one of two MSRs");
    }

    /// <summary>A count whose entries run into the hole.</summary>
    private ulong CutEntries(uint count)
    {
        byte* at = _scratch + 8192 - 64;
        *(ulong*)at = count;
        return (ulong)at;
    }

    [Fact]
    public void Memory_IsChecked()
    {
        Call kvm = Kvm(), vm = Make(kvm, KVM_CREATE_VM);
        ulong mem = (ulong)_scratch & ~0xfffUL;
        long Set(uint slot, uint flags, ulong gpa, ulong size, ulong hva) =>
            vm(KVM_SET_USER_MEMORY_REGION, Put(new kvm_userspace_memory_region { slot = slot, flags = flags, guest_phys_addr = gpa, memory_size = size,
                userspace_addr = hva }));
        Expect(-EINVAL, Set(0, 0, 0, 0, mem), "delete nothing");
        Expect(-EINVAL, Set(0, 4, 0, 4096, mem), "flag");
        Expect(-EINVAL, Set(0, 0, 1, 4096, mem), "gpa alignment");
        Expect(-EINVAL, Set(0, 0, 0, 4097, mem), "size alignment");
        Expect(-EINVAL, Set(0, 0, 0, 4096, mem + 1), "hva alignment");
        Expect(-EINVAL, Set(0, 0, 0, 4096, 0xffff_8000_0000_0000), "kernel memory");
        Expect(-EINVAL, Set(0xffff, 0, 0, 4096, mem), "slot number");
        Expect(-EINVAL, Set(7 << 16, 0, 0, 4096, mem), "address space");
        Expect(-EINVAL, Set(0, 0, 0xffff_ffff_ffff_f000, 8192, mem), "wrap");
        Expect(0, Set(0, 0, 0, 8192, mem), "slot 0");
        Expect(-EEXIST, Set(1, 0, 4096, 4096, mem), "overlap");
        Expect(-EINVAL, Set(0, 0, 0, 4096, mem), "resize");
        Expect(-EINVAL, Set(0, 2, 0, 8192, mem), "become read-only");
        Expect(-ENOENT, vm(KVM_GET_DIRTY_LOG, Put(new kvm_dirty_log { slot = 0, dirty_bitmap = mem })), "log of a slot without");
        Expect(-ENOENT, vm(KVM_GET_DIRTY_LOG, Put(new kvm_dirty_log { slot = 5, dirty_bitmap = mem })), "log of no slot");
        Expect(-EINVAL, vm(KVM_GET_DIRTY_LOG, Put(new kvm_dirty_log { slot = 9 << 16, dirty_bitmap = mem })), "log of no address space");
        Expect(0, Set(0, 1, 0, 8192, mem), "log");
        Expect(-EFAULT, vm(KVM_GET_DIRTY_LOG, Put(new kvm_dirty_log { slot = 0, dirty_bitmap = 8 })), "bitmap nowhere");
        Expect(0, vm(KVM_GET_DIRTY_LOG, Put(new kvm_dirty_log { slot = 0, dirty_bitmap = (ulong)_scratch + 4096 })), "bitmap");
        Expect(0, Set(0, 0, 0, 0, 0), "delete");
    }

    [Fact]
    public void InterruptControllers_AreChecked()
    {
        Call kvm = Kvm(), bare = Make(kvm, KVM_CREATE_VM), vm = Make(kvm, KVM_CREATE_VM);
        Expect(-ENOENT, bare(KVM_CREATE_PIT2, Put(default(kvm_pit_config))), "pit without irqchip");
        Expect(-ENXIO, bare(KVM_IRQ_LINE, Put(default(kvm_irq_level))), "line without irqchip");
        Expect(-ENXIO, bare(KVM_GET_IRQCHIP, Put(default(kvm_irqchip))), "chip without irqchip");
        Expect(-ENXIO, bare(KVM_GET_PIT2, Put(0ul)), "pit without pit");
        Expect(-ENXIO, bare(KVM_GET_PIT2, 8), "pit without pit, nowhere");
        Expect(-EFAULT, bare(KVM_SET_PIT2, 8), "set pit without pit, nowhere");
        Expect(-ENXIO, bare(KVM_SET_PIT2, Put(0ul)), "set pit without pit");
        Expect(-EINVAL, bare(KVM_SIGNAL_MSI, Put(default(kvm_msi))), "msi without irqchip");
        Expect(-EINVAL, bare(KVM_SET_GSI_ROUTING, Put(0ul)), "routing without irqchip");
        Call lone = Make(bare, KVM_CREATE_VCPU);
        Expect(-EINVAL, lone(KVM_GET_LAPIC, 8), "lapic without irqchip");
        Expect(-EINVAL, lone(KVM_SET_LAPIC, 8), "set lapic without irqchip");
        Expect(-EINVAL, lone(KVM_SET_VAPIC_ADDR, 8), "vapic without irqchip");
        Expect(-EINVAL, lone(KVM_INTERRUPT, Put(256u)), "vector 256");
        Expect(0, lone(KVM_INTERRUPT, Put(32u)), "vector 32");
        Expect(-EINVAL, lone(KVM_SET_MP_STATE, Put(new kvm_mp_state { mp_state = KVM_MP_STATE_HALTED })), "halted without irqchip");

        Expect(0, vm(KVM_CREATE_IRQCHIP, 0), "irqchip");
        Expect(-EEXIST, vm(KVM_CREATE_IRQCHIP, 0), "second irqchip");
        Expect(0, vm(KVM_CREATE_PIT, 0), "pit");
        Expect(-EEXIST, vm(KVM_CREATE_PIT2, Put(default(kvm_pit_config))), "second pit");
        Expect(-EINVAL, vm(KVM_GET_IRQCHIP, Put(new kvm_irqchip { chip_id = 3 })), "chip 3");
        Expect(-EINVAL, vm(KVM_SET_IRQCHIP, Put(new kvm_irqchip { chip_id = 3 })), "set chip 3");
        Expect(-EINVAL, vm(KVM_SET_GSI_ROUTING, Put(5000u)), "5000 routes");
        Expect(-EINVAL, vm(KVM_SET_GSI_ROUTING, Put(1ul << 32)), "routing flags");
        Expect(0, vm(KVM_SET_GSI_ROUTING, Put(0ul)), "no routes");
        Call vcpu = Make(vm, KVM_CREATE_VCPU);
        Expect(-ENXIO, vcpu(KVM_INTERRUPT, Put(32u)), "interrupt with irqchip");
        Expect(-EINVAL, vcpu(KVM_SET_MP_STATE, Put(new kvm_mp_state { mp_state = 100 })), "mp state");
        Expect(-EBADF, vm(KVM_IRQFD, Put(new kvm_irqfd { fd = 9999 })), "irqfd");
        Expect(-EINVAL, vm(KVM_IRQFD, Put(new kvm_irqfd { fd = 9999, flags = 0x80 })), "irqfd flags");
        Expect(-EBADF, vm(KVM_IOEVENTFD, Put(new kvm_ioeventfd { fd = 9999, addr = 0x1000, len = 4 })), "ioeventfd");
        Expect(-EINVAL, vm(KVM_IOEVENTFD, Put(new kvm_ioeventfd { fd = 9999, addr = 0x1000, len = 3 })), "ioeventfd size");
        Expect(-EINVAL, vm(KVM_IOEVENTFD, Put(new kvm_ioeventfd { fd = 9999, addr = 0x1000, len = 4, flags = 0x80 })), "ioeventfd flags");
    }

    [Fact]
    public void ProcessorState_IsChecked()
    {
        Call kvm = Kvm(), vm = Make(kvm, KVM_CREATE_VM), vcpu = Make(vm, KVM_CREATE_VCPU);
        Expect(0, vcpu(KVM_GET_SREGS, Put(0ul)), "sregs");
        kvm_sregs s = *(kvm_sregs*)_scratch;
        Expect(-EINVAL, vcpu(KVM_SET_SREGS, Put(s with { cr0 = 0x8000_0000 })), "paging without protection");
        Expect(-EINVAL, vcpu(KVM_SET_SREGS, Put(s with { cr0 = 1UL << 40 })), "cr0 high");
        Expect(0, vcpu(KVM_SET_SREGS, Put(s with { efer = 1UL << 40 })), "efer");
        Expect(-EINVAL, vcpu(KVM_SET_SREGS, Put(s with { cr4 = 1UL << 40 })), "cr4");
        Expect(0, vcpu(KVM_SET_SREGS, Put(s)), "sregs back");
        Expect(0, vcpu(KVM_GET_SREGS2, Put(0ul)), "sregs2");
        kvm_sregs2 s2 = *(kvm_sregs2*)_scratch;
        Expect(-EINVAL, vcpu(KVM_SET_SREGS2, Put(s2 with { flags = 1 })), "pdptrs without PAE");
        Expect(-EINVAL, vcpu(KVM_SET_SREGS2, Put(s2 with { flags = 2 })), "sregs2 flags");
        Expect(-EINVAL, vcpu(KVM_SET_DEBUGREGS, Put(new kvm_debugregs { flags = 1 })), "debug register flags");
        Expect(-EINVAL, vcpu(KVM_SET_DEBUGREGS, Put(new kvm_debugregs { dr6 = 1UL << 32 })), "dr6");
        Expect(-EINVAL, vcpu(KVM_SET_DEBUGREGS, Put(new kvm_debugregs { dr7 = 1UL << 32 })), "dr7");
        Expect(-EINVAL, vcpu(KVM_SET_VCPU_EVENTS, Put(new kvm_vcpu_events { flags = 1 << 20 })), "event flags");
        Expect(-EINVAL, vcpu(KVM_SET_VCPU_EVENTS, Put(new kvm_vcpu_events { flags = KVM_VCPUEVENT_VALID_PAYLOAD })), "payload not enabled");
        Expect(-EINVAL, vcpu(KVM_SET_VCPU_EVENTS, Put(new kvm_vcpu_events { exception = new() { injected = 1, nr = 32 } })), "exception 32");
        Expect(-EINVAL, vcpu(KVM_SET_XCRS, Put(new kvm_xcrs { nr_xcrs = 17 })), "17 xcrs");
        Expect(-EINVAL, vcpu(KVM_ENABLE_CAP, Put(new kvm_enable_cap { cap = KVM_CAP_IRQCHIP })), "no such capability");
        Expect(-EINVAL, vcpu(KVM_ENABLE_CAP, Put(new kvm_enable_cap { cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, flags = 1 })), "capability flags");
        Expect(-EINVAL, vcpu(KVM_TPR_ACCESS_REPORTING, Put(new kvm_tpr_access_ctl { flags = 1 })), "tpr flags");
        Expect(-ENXIO, vcpu(KVM_HAS_DEVICE_ATTR, Put(new kvm_device_attr { group = 5 })), "attribute group");
        Expect(-ENXIO, vcpu(KVM_HAS_DEVICE_ATTR, Put(new kvm_device_attr { attr = 5 })), "attribute");
        Expect(0, vcpu(KVM_HAS_DEVICE_ATTR, Put(default(kvm_device_attr))), "TSC offset");
        Expect(-EFAULT, vcpu(KVM_GET_DEVICE_ATTR, Put(new kvm_device_attr { addr = 8 })), "TSC offset nowhere");
        Expect(-EINVAL, vcpu(KVM_X86_SETUP_MCE, Put(0ul)), "no banks");
        Expect(-EINVAL, vcpu(KVM_X86_SETUP_MCE, Put(0xfful)), "255 banks");
    }

    [Fact]
    public void VmSettings_AreChecked()
    {
        Call kvm = Kvm(), vm = Make(kvm, KVM_CREATE_VM);
        long Enable(uint cap, ulong arg = 0, uint flags = 0)
        {
            kvm_enable_cap c = new() { cap = cap, flags = flags };
            c.args[0] = arg;
            return vm(KVM_ENABLE_CAP, Put(c));
        }
        Expect(-EINVAL, Enable(9999), "unknown capability");
        Expect(-EINVAL, Enable(KVM_CAP_SPLIT_IRQCHIP, 24, flags: 1), "capability flags");
        Expect(-EINVAL, Enable(KVM_CAP_SPLIT_IRQCHIP, 100_000), "split routes");
        Expect(-EINVAL, Enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET), "initially set alone");
        Expect(-EINVAL, Enable(KVM_CAP_X86_USER_SPACE_MSR, 1UL << 40), "MSR exits");
        Expect(-EINVAL, Enable(KVM_CAP_DISABLE_QUIRKS2, 1UL << 40), "quirks");
        Expect(-EINVAL, vm(KVM_SET_CLOCK, Put(new kvm_clock_data { flags = 1 })), "clock flags");
        Expect(-EINVAL, vm(KVM_X86_SET_MSR_FILTER, Put(new kvm_msr_filter { flags = 2 })), "filter flags");
        Expect(-EINVAL, vm(KVM_X86_SET_MSR_FILTER, Put(new kvm_msr_filter { flags = KVM_MSR_FILTER_DEFAULT_DENY })), "deny everything");
        kvm_msr_filter filter = default;
        filter.ranges[0] = new() { flags = KVM_MSR_FILTER_READ, nmsrs = 8, bitmap = 8 };
        Expect(-EFAULT, vm(KVM_X86_SET_MSR_FILTER, Put(filter)), "bitmap nowhere");
        filter.ranges[0] = new() { flags = KVM_MSR_FILTER_READ, nmsrs = KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8 + 1, bitmap = (ulong)_scratch };
        Expect(-EINVAL, vm(KVM_X86_SET_MSR_FILTER, Put(filter)), "bitmap too long");
        filter.ranges[0] = new() { nmsrs = 8, bitmap = (ulong)_scratch };
        Expect(-EINVAL, vm(KVM_X86_SET_MSR_FILTER, Put(filter)), "range without flags");
        Expect(-ENODEV, vm(KVM_CREATE_DEVICE, Put(new kvm_create_device { type = 2 })), "device type");
        Expect(-ENODEV, vm(KVM_CREATE_DEVICE, Put(new kvm_create_device { type = 200 })), "unknown device type");
        Expect(0, vm(KVM_CREATE_DEVICE, Put(new kvm_create_device { type = KVM_DEV_TYPE_VFIO, flags = KVM_CREATE_DEVICE_TEST })), "device test");
    }
}
