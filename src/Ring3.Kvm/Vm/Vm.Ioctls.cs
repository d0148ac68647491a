using Ring3.Abi;
using Ring3.Memory;

// SAFETY: the addresses in dirty-log structures are numbers here; UserCopy follows them.
namespace Ring3.Kvm;

// The ioctls of a VM, and which part answers each. KVM_CREATE_VCPU is in Vm.cs.
public sealed partial class Vm
{
    /// <summary>KVM_CHECK_EXTENSION on the VM: what this VM can do.</summary>
    public int CheckExtension(int capability) => _memory.CheckExtension(capability) ?? Capabilities.Check(capability);

    /// <summary>KVM_ENABLE_CAP on the VM: 0 or -EINVAL, or what the capability answers.</summary>
    public int EnableCap(in kvm_enable_cap cap) => Settings.Enable(cap);

    /// <summary>KVM_SET_BOOT_CPU_ID: 0, -EBUSY when vCPUs exist, -EINVAL for an id out of range.</summary>
    public int SetBootCpuId(ulong id) => _core.Vcpus.SetBootId(id);

    /// <summary>KVM_X86_SET_MSR_FILTER: 0, -EINVAL, or -EFAULT when a bitmap cannot be read.</summary>
    public int SetMsrFilter(in kvm_msr_filter filter) => Msrs.SetFilter(filter);

    // ---- Memory ----

    /// <summary>KVM_SET_USER_MEMORY_REGION. Flags: KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY. A size of 0 deletes the slot.</summary>
    /// <param name="slot">Slot number, address space in bits 31:16.</param>
    /// <param name="hva">
    /// Host address of the memory; it must stay mapped while the slot exists, or be invalidated through <see cref="MemorySlots.Notifier"/>.
    /// </param>
    public int SetUserMemoryRegion(uint slot, uint flags, ulong gpa, ulong size, ulong hva) => _memory.SetRegion(slot, flags, gpa, size, hva);

    /// <summary>KVM_SET_USER_MEMORY_REGION2.</summary>
    /// <param name="memory">What region.guest_memfd stands for; null when it is no guest_memfd.</param>
    /// <returns>0, -EINVAL, -EEXIST, -EIO.</returns>
    public int SetUserMemoryRegion(in kvm_userspace_memory_region2 region, GuestMemfd? memory) => _memory.SetRegion(region, memory);

    /// <summary>KVM_GET_DIRTY_LOG: 0, -EINVAL, -ENOENT, -ENXIO with dirty rings, -EFAULT.</summary>
    public unsafe int GetDirtyLog(in kvm_dirty_log log) => Mmu.GetDirtyLog(log.slot, log.dirty_bitmap);

    /// <summary>KVM_CLEAR_DIRTY_LOG: 0, -EINVAL, -ENOENT, -ENXIO with dirty rings, -EFAULT.</summary>
    public unsafe int ClearDirtyLog(in kvm_clear_dirty_log log) => Mmu.ClearDirtyLog(log.slot, log.first_page, log.num_pages, log.dirty_bitmap);

    /// <summary>KVM_RESET_DIRTY_RINGS: number of entries taken back, or -EINVAL without rings.</summary>
    public int ResetDirtyRings() => _memory.ResetDirtyRings();

    /// <summary>KVM_CREATE_GUEST_MEMFD. The descriptor belongs to the caller; when its last copy is closed, <see cref="GuestMemfd.Release"/> is due.</summary>
    /// <returns>0, -EINVAL, or the host's errno.</returns>
    public int CreateGuestMemfd(in kvm_create_guest_memfd args, out GuestMemfd? memory) => _memory.CreateGuestMemfd(args, out memory);

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES: 0 or -EINVAL.</summary>
    public int SetMemoryAttributes(in kvm_memory_attributes args) => Slots.SetAttributes(args);

    // ---- Interrupts ----

    /// <summary>KVM_CREATE_IRQCHIP: PIC, I/O APIC and local APICs. Before the first vCPU. 0, -EEXIST, -EINVAL, -EMFILE, -ENOMEM.</summary>
    public int CreateIrqchip() => _interrupts.Create();

    /// <summary>
    /// KVM_CAP_SPLIT_IRQCHIP: local APICs only; <paramref name="reservedRoutes"/> GSIs stand for the pins of the client's I/O APIC. 0, -EEXIST after another
    /// controller or a vCPU, -EINVAL.
    /// </summary>
    internal int CreateSplitIrqchip(uint reservedRoutes) => _interrupts.CreateSplit(reservedRoutes);

    /// <summary>KVM_CREATE_PIT2. 0, -EEXIST, or -ENOENT without a full in-kernel irqchip.</summary>
    public int CreatePit2(uint flags = 0) => _interrupts.CreatePit(flags);

    /// <summary>KVM_SET_GSI_ROUTING: 0 or -EINVAL.</summary>
    public int SetGsiRouting(ReadOnlySpan<kvm_irq_routing_entry> entries) => _interrupts.SetRouting(entries);

    /// <summary>
    /// KVM_IRQ_LINE, or with <paramref name="lineStatus"/> KVM_IRQ_LINE_STATUS: drives a GSI. Positive: delivered; 0: coalesced; -1: masked or no route;
    /// -ENXIO without an irqchip.
    /// </summary>
    public int IrqLine(uint gsi, bool level, bool lineStatus = false) => _interrupts.SetLine(gsi, level, lineStatus);

    /// <summary>KVM_SIGNAL_MSI: positive: delivered; 0: blocked by the guest; -1: a broadcast that reaches nobody; -EINVAL.</summary>
    public int SignalMsi(in kvm_msi msi) => _interrupts.SignalMsi(msi);

    /// <summary>KVM_SIGNAL_MSI with an address and data.</summary>
    public int SignalMsi(ulong address, uint data) =>
        SignalMsi(new kvm_msi { address_lo = (uint)address, address_hi = (uint)(address >> 32), data = data });

    /// <summary>KVM_IRQFD: attaches an eventfd to a GSI, or detaches it (KVM_IRQFD_FLAG_DEASSIGN). 0, -EINVAL, -EBUSY, -EBADF, -EMFILE.</summary>
    public int RegisterIrqfd(in kvm_irqfd args) => _interrupts.SetIrqfd(args);

    /// <summary>KVM_GET_IRQCHIP: 0, -ENXIO, -EINVAL.</summary>
    public int GetIrqchip(ref kvm_irqchip chip) => _interrupts.GetState(ref chip);

    /// <summary>KVM_SET_IRQCHIP: 0, -ENXIO, -EINVAL.</summary>
    public int SetIrqchip(in kvm_irqchip chip) => _interrupts.SetState(chip);

    /// <summary>KVM_GET_PIT2: 0 or -ENXIO.</summary>
    public int GetPit2(out kvm_pit_state2 state) => _interrupts.GetPit(out state);

    /// <summary>KVM_SET_PIT2: 0 or -ENXIO.</summary>
    public int SetPit2(in kvm_pit_state2 state) => _interrupts.SetPit(state);

    // ---- Buses ----

    /// <summary>KVM_IOEVENTFD: signals an eventfd on a guest's write to an address. 0, -EINVAL, -EEXIST, -ENOENT, -EBADF, -EMFILE.</summary>
    public int RegisterIoeventfd(in kvm_ioeventfd args) => _buses.SetIoeventfd(args);

    /// <summary>KVM_REGISTER_COALESCED_MMIO: 0, -EINVAL, -ENOSPC.</summary>
    public int RegisterCoalescedMmio(in kvm_coalesced_mmio_zone zone) => _buses.AddZone(zone);

    /// <summary>KVM_UNREGISTER_COALESCED_MMIO: 0 or -EINVAL.</summary>
    public int UnregisterCoalescedMmio(in kvm_coalesced_mmio_zone zone) => _buses.RemoveZones(zone);

    // ---- Xen ----

    /// <summary>KVM_XEN_HVM_CONFIG: 0 or -EINVAL.</summary>
    public int XenHvmConfig(in kvm_xen_hvm_config config) => Xen.Side.Configure(config);

    /// <summary>KVM_XEN_HVM_SET_ATTR. See <see cref="Ring3.Xen.XenVm.SetAttribute"/>.</summary>
    public int XenSetAttr(in kvm_xen_hvm_attr attr) => Xen.Side.SetAttribute(attr);

    /// <summary>KVM_XEN_HVM_GET_ATTR. See <see cref="Ring3.Xen.XenVm.GetAttribute"/>.</summary>
    public int XenGetAttr(ref kvm_xen_hvm_attr attr) => Xen.Side.GetAttribute(ref attr);

    /// <summary>KVM_XEN_HVM_EVTCHN_SEND. See <see cref="Ring3.Xen.XenVm.SendFromClient"/>.</summary>
    public int XenEvtchnSend(in kvm_irq_routing_xen_evtchn e) => Xen.Side.SendFromClient(e);
}
