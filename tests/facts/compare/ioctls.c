/*
 * The same random calls to /dev/kvm, one line a call with what it returned: run on Ring3 and on the kernel's KVM, the lines are compared (compare.sh). Nothing here runs a guest, so that any KVM can be compared with.
 * usage: ioctls SEED BLOCKS SMM    a block is a machine of its own; SMM 1: with system management mode
 *        ioctls smm                whether /dev/kvm has it
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* The same in every process, since addresses are among the arguments. */
#define MEMORY 0x100000000000ul

static uint64_t random_state;

static uint64_t next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state * 0x2545f4914f6cdd1dull;
}

static uint64_t below(uint64_t n)
{
	return (next() >> 20) % n;
}

static uint64_t value(void)
{
	switch (below(6)) {
	case 0: return 0;
	case 1: return below(16);
	case 2: return 1ull << below(64);
	case 3: return ~0ull >> below(64);
	case 4: return below(1ull << 32);
	default: return next();
	}
}

/* System management mode is a choice of the kernel's configuration. */
static bool smm;
static uint32_t address_spaces = 0xffff;
static int kvm, vm, cpu, event, block, call_number;
static uint8_t *memory;

/* The call, and its line. An address that is none stands for the argument now and then. */
static long call(int fd, const char *name, unsigned long request, void *argument, uint64_t detail)
{
	void *given = below(24) == 0 ? (void *)8 : argument;
	errno = 0;
	long result = ioctl(fd, request, given);
	int error = errno;

	/* Descriptors and positive answers are told as such. */
	printf("%d.%d %s(0x%llx%s) %s%d\n", block, call_number++, name, (unsigned long long)detail, given == argument ? "" : ", bad address", result < 0 ? "-" : "+", result < 0 ? error : result > 0);
	return given == argument ? result : -1;
}
#define CALL(fd, request, argument, detail) call(fd, #request, request, argument, (uint64_t)(detail))

/* Changes up to three places. */
static void disturb(void *data, size_t bytes)
{
	for (uint64_t n = below(4); n > 0; n--) {
		uint64_t v = value();
		size_t at = below(bytes), width = 1u << below(4);
		memcpy((uint8_t *)data + at, &v, at + width <= bytes ? width : 1);
	}
}

static void set_cpuid(void)
{
	struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[6]; } cpuid = { .head = { .nent = 6 }, .entries = {
		{ .function = 0, .eax = 1, .ebx = 0x756e6547, .ecx = 0x6c65746e, .edx = 0x49656e69 },
		{ .function = 1, .eax = 0x600, .ebx = 0, .ecx = 0x00202001, .edx = 0x078bfbff },
		{ .function = 0x80000000, .eax = 0x80000008 },
		{ .function = 0x80000001, .ecx = 1, .edx = 0x20100800 },
		{ .function = 0x80000008, .eax = 0x3028 },
		{ .function = 0x40000000, .eax = 0x40000000 },
	} };
	if (ioctl(cpu, KVM_SET_CPUID2, &cpuid) != 0)
		exit(2);
}

#define STATE(fd, NAME, type) \
	do { \
		type state_; \
		memset(&state_, 0, sizeof state_); \
		(void)ioctl(fd, KVM_GET_##NAME, &state_); \
		disturb(&state_, sizeof state_); \
		(void)CALL(fd, KVM_SET_##NAME, &state_, 0); \
	} while (0)

static void vcpu_state(void)
{
	switch (below(11)) {
	case 0: STATE(cpu, REGS, struct kvm_regs); break;
	case 1: STATE(cpu, SREGS, struct kvm_sregs); break;
	case 2: STATE(cpu, FPU, struct kvm_fpu); break;
	case 3: STATE(cpu, XCRS, struct kvm_xcrs); break;
	case 4: STATE(cpu, DEBUGREGS, struct kvm_debugregs); break;
	case 5: {
		struct kvm_vcpu_events events;
		memset(&events, 0, sizeof events);
		(void)ioctl(cpu, KVM_GET_VCPU_EVENTS, &events);
		disturb(&events, sizeof events);
		if (!smm)
			events.flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_SMM;
		/* KVM has set the rest of the events when it refuses this one. */
		events.flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
		(void)CALL(cpu, KVM_SET_VCPU_EVENTS, &events, events.flags);
		break;
	}
	case 6: STATE(cpu, MP_STATE, struct kvm_mp_state); break;
	case 7: STATE(cpu, LAPIC, struct kvm_lapic_state); break;
	case 8: {
		static struct kvm_xsave xsave;
		(void)ioctl(cpu, KVM_GET_XSAVE, &xsave);
		disturb(below(2) ? (uint8_t *)xsave.region + 512 : (uint8_t *)xsave.region, 64);
		/* KVM does not count what KVM_SET_FPU has changed as in use. Components beyond AVX are the host's affair. */
		xsave.region[128] = (uint32_t)below(8);
		(void)CALL(cpu, KVM_SET_XSAVE, &xsave, 0);
		break;
	}
	case 9: {
		static const uint32_t indices[] = { 0x10, 0x1b, 0x174, 0x175, 0x176, 0x179, 0x17a, 0x17b, 0x1a0, 0x200, 0x201, 0x250, 0x277, 0x2ff, 0x400, 0x401, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000084,
			0xc0000100, 0xc0000102, 0x6e0, 0x12345, 0x4b564d00, 0x4b564d01, 0x4b564d03, 0xc0010015, 0x8b, 0xfe, 0xce, 0x140 };
		struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msr = { { .nmsrs = 1 }, { .index = indices[below(sizeof indices / sizeof *indices)] } };
		uint32_t index = msr.entry.index;
		char name[64];
		snprintf(name, sizeof name, "KVM_GET_MSRS.%x", index);
		(void)call(cpu, name, KVM_GET_MSRS, &msr, 0);
		msr.entry.index = index;
		msr.entry.data = value();
		snprintf(name, sizeof name, "KVM_SET_MSRS.%x", index);
		(void)call(cpu, name, KVM_SET_MSRS, &msr, msr.entry.data);
		break;
	}
	default: STATE(cpu, SREGS2, struct kvm_sregs2); break;
	}
}

static void vcpu_call(void)
{
	switch (below(10)) {
	case 0: { struct kvm_interrupt irq = { (uint32_t)value() }; (void)CALL(cpu, KVM_INTERRUPT, &irq, irq.irq); break; }
	case 1: (void)CALL(cpu, KVM_NMI, NULL, 0); break;
	case 2: { struct kvm_guest_debug debug = { .control = (uint32_t)value() }; (void)CALL(cpu, KVM_SET_GUEST_DEBUG, &debug, debug.control); break; }
	case 3: { struct kvm_translation t = { .linear_address = value() }; (void)CALL(cpu, KVM_TRANSLATE, &t, 0); break; }
	case 4: { uint64_t cap = below(40) | (below(4) ? 0 : value()); (void)CALL(cpu, KVM_X86_SETUP_MCE, &cap, cap); break; }
	case 5: { struct kvm_x86_mce mce = { .status = value(), .bank = (uint8_t)below(40), .mcg_status = value() }; (void)CALL(cpu, KVM_X86_SET_MCE, &mce, mce.bank); break; }
	case 6: { struct kvm_tpr_access_ctl tpr = { .enabled = (uint32_t)below(2), .flags = below(4) ? 0 : 1 }; (void)CALL(cpu, KVM_TPR_ACCESS_REPORTING, &tpr, tpr.flags); break; }
	case 7: { struct kvm_enable_cap cap = { .cap = (uint32_t)below(250), .flags = below(4) == 0, .args = { value() } }; (void)CALL(cpu, KVM_ENABLE_CAP, &cap, cap.cap); break; }
	case 8: { struct kvm_signal_mask mask = { (uint32_t)below(16) }; (void)CALL(cpu, KVM_SET_SIGNAL_MASK, &mask, mask.len); break; }
	default: (void)CALL(cpu, KVM_KVMCLOCK_CTRL, NULL, 0); break;
	}
}

static void vm_call(void)
{
	switch (below(19)) {
	case 0: case 1: {
		struct kvm_userspace_memory_region region = { .slot = (uint32_t)below(4), .flags = (uint32_t)below(4), .guest_phys_addr = below(16) << 16, .memory_size = below(5) << 16, .userspace_addr = (uintptr_t)memory + (below(16) << 16) };
		if (below(4) == 0)
			disturb(&region, sizeof region);
		/* The second address space, in the upper half, is that of system management mode. */
		region.slot &= address_spaces;
		(void)CALL(vm, KVM_SET_USER_MEMORY_REGION, &region, region.slot);
		break;
	}
	case 2: { struct kvm_irq_level level = { .irq = (uint32_t)below(40), .level = (uint32_t)below(2) }; (void)CALL(vm, KVM_IRQ_LINE, &level, level.irq); break; }
	case 3: { struct kvm_msi msi = { .address_lo = below(2) ? 0xfee00000 : (uint32_t)value(), .data = (uint32_t)value(), .flags = below(8) == 0 }; if (!smm && (msi.data & 0x700) == 0x200) msi.data ^= 0x100; (void)CALL(vm, KVM_SIGNAL_MSI, &msi, (uint64_t)msi.address_lo << 32 | msi.data); break; }
	case 4: {
		struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry entries[3]; } routing = { .head = { .nr = (uint32_t)below(4), .flags = below(8) == 0 } };
		for (int i = 0; i < 3; i++) {
			routing.entries[i].gsi = (uint32_t)below(30);
			routing.entries[i].type = (uint32_t)below(7);
			routing.entries[i].flags = below(4) == 0;
			routing.entries[i].u.irqchip.irqchip = (uint32_t)below(4);
			routing.entries[i].u.irqchip.pin = (uint32_t)below(26);
		}
		(void)CALL(vm, KVM_SET_GSI_ROUTING, &routing, routing.head.nr);
		break;
	}
	case 5: { struct kvm_irqfd irqfd = { .fd = below(4) ? (uint32_t)event : below(2) ? ~0u : (uint32_t)kvm, .gsi = (uint32_t)below(30), .flags = (uint32_t)below(2) | (below(8) ? 0 : (uint32_t)value()) }; irqfd.resamplefd = (uint32_t)event; (void)CALL(vm, KVM_IRQFD, &irqfd, irqfd.flags); break; }
	case 6: case 7: { struct kvm_ioeventfd io = { .addr = below(3) << 12, .len = (uint32_t)below(10), .fd = below(8) ? event : kvm, .flags = (uint32_t)below(8) | (below(8) ? 0 : (uint32_t)value()), .datamatch = below(2) }; (void)CALL(vm, KVM_IOEVENTFD, &io, io.flags); break; }
	case 8: { struct kvm_clock_data clock = { .clock = below(1ull << 40), .flags = below(3) ? 0 : (uint32_t)value() }; (void)CALL(vm, KVM_SET_CLOCK, &clock, clock.flags); break; }
	case 9: { struct kvm_pit_config pit = { .flags = (uint32_t)below(4) }; (void)CALL(vm, KVM_CREATE_PIT2, &pit, pit.flags); break; }
	case 10: {
		struct kvm_irqchip chip = { .chip_id = (uint32_t)below(4) };
		(void)CALL(vm, KVM_GET_IRQCHIP, &chip, chip.chip_id);
		disturb(&chip.chip, sizeof chip.chip);
		(void)CALL(vm, KVM_SET_IRQCHIP, &chip, chip.chip_id);
		break;
	}
	case 11: STATE(vm, PIT2, struct kvm_pit_state2); break;
	case 12: { struct kvm_reinject_control control = { .pit_reinject = (uint8_t)below(3) }; (void)CALL(vm, KVM_REINJECT_CONTROL, &control, 0); break; }
	case 13: { struct kvm_dirty_log log = { .slot = (uint32_t)below(5) | (below(8) ? 0 : (uint32_t)value() & address_spaces), .dirty_bitmap = memory }; (void)CALL(vm, KVM_GET_DIRTY_LOG, &log, log.slot); break; }
	case 14: { struct kvm_clear_dirty_log log = { .slot = (uint32_t)below(5), .first_page = below(3) * 64, .num_pages = (uint32_t)below(3) * 64, .dirty_bitmap = memory }; (void)CALL(vm, KVM_CLEAR_DIRTY_LOG, &log, log.slot); break; }
	case 15: { struct kvm_coalesced_mmio_zone zone = { .addr = below(4) << 12, .size = 4096, .pio = (uint32_t)below(3) };
		if (below(2))
			(void)CALL(vm, KVM_REGISTER_COALESCED_MMIO, &zone, zone.pio);
		else
			(void)CALL(vm, KVM_UNREGISTER_COALESCED_MMIO, &zone, zone.pio);
		break; }
	case 16: { static const uint32_t caps[] = { KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_HALT_POLL,
			KVM_CAP_DISABLE_QUIRKS, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_MSR_PLATFORM_INFO, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1, 2, 3, 77 };
		struct kvm_enable_cap cap = { .cap = caps[below(sizeof caps / sizeof *caps)], .flags = below(8) == 0, .args = { value() } };
		(void)CALL(vm, KVM_ENABLE_CAP, &cap, cap.cap);
		break; }
	case 17: { struct kvm_create_device device = { .type = (uint32_t)below(12) | 1, .flags = KVM_CREATE_DEVICE_TEST }; (void)CALL(vm, KVM_CREATE_DEVICE, &device, device.type); break; }
	default:
		if (below(2))
			(void)call(vm, "KVM_SET_BOOT_CPU_ID", KVM_SET_BOOT_CPU_ID, (void *)below(3), 0);
		else
			(void)CALL(vm, KVM_CREATE_IRQCHIP, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	int blocks = argc > 2 ? atoi(argv[2]) : 20;
	smm = argc > 3 && atoi(argv[3]);
	if (smm)
		address_spaces = ~0u;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	memory = mmap((void *)MEMORY, 1 << 21, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (kvm < 0 || memory == MAP_FAILED)
		return 2;
	if (argc > 1 && strcmp(argv[1], "smm") == 0)
		return printf("%d\n", ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM) > 0) < 0;
	for (block = 0; block < blocks; block++) {
		random_state = (seed * 1000003 + (uint64_t)block) * 0x9e3779b97f4a7c15ull | 1;
		for (int i = 0; i < 10; i++)
			next();
		call_number = 0;
		event = eventfd(0, EFD_CLOEXEC);
		vm = ioctl(kvm, KVM_CREATE_VM, 0);
		if (below(3))
			(void)CALL(vm, KVM_CREATE_IRQCHIP, NULL, 0);
		cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
		if (vm < 0 || cpu < 0)
			return 2;
		set_cpuid();
		/* KVM sees a vCPU as a destination only after its map of local APICs was made again. */
		struct kvm_lapic_state lapic;
		if (ioctl(cpu, KVM_GET_LAPIC, &lapic) == 0 && ioctl(cpu, KVM_SET_LAPIC, &lapic) != 0)
			return 2;
		for (int i = 0; i < 60; i++) {
			switch (below(3)) {
			case 0: vcpu_state(); break;
			case 1: vcpu_call(); break;
			default: vm_call(); break;
			}
		}
		close(cpu);
		close(vm);
		close(event);
	}
	return 0;
}
