/*
 * One rule: after a SET of everything nothing of the old state is left, and GET after SET gives what was set. A vCPU that is left with as much pending as there can be gets the whole
 * state of a quiet one; then its GETs must be those of the quiet one, and the other way round.
 */
#include "fact.h"

GUEST(16,
	"nop\n"
	"out %al, $0x10\n"
	"guest_again: jmp guest_again\n"
	"guest_device: mov $0xb000, %ax\n mov %ax, %ds\n"
	"guest_load: mov 0x24, %cx\n"
	"out %al, $0x12\n"
	"guest_port: in $0x13, %al\n"
	"hlt\n");

enum { XSAVE2_BYTES = 16384 };

struct state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_fpu fpu;
	struct kvm_sregs2 sregs2;
	struct kvm_xsave xsave;
	uint8_t xsave2[XSAVE2_BYTES];
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debug;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp;
	struct kvm_lapic_state lapic;
	long khz;
	uint64_t tsc_offset;
	struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid;
	struct { struct kvm_msrs head; struct kvm_msr_entry entries[512]; } msrs;
};

static int msr_count;
static uint32_t msr_indices[512];

static void list_msrs(struct machine *m)
{
	struct { struct kvm_msr_list head; uint32_t indices[512]; } list = { .head = { .nmsrs = 512 } };

	EXPECT_EQ(ioctl(m->kvm, KVM_GET_MSR_INDEX_LIST, &list), 0);
	for (uint32_t i = 0; i < list.head.nmsrs; i++) {
		uint64_t value;
		uint32_t index = list.head.indices[i];
		/* Clocks go on. */
		if (index == 0x10 || index == 0x3b || index == 0x40000020 || index == 0x40000021)
			continue;
		if (get_msr(m, index, &value) == 1 && set_msr(m, index, value) == 1)
			msr_indices[msr_count++] = index;
	}
}

static int tsc_offset(struct machine *m, unsigned long request, uint64_t *value)
{
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)value };
	return ioctl(m->cpu, request, &attr);
}

static void get(struct machine *m, struct state *s)
{
	memset(s, 0, sizeof *s);
	s->msrs.head.nmsrs = (uint32_t)msr_count;
	for (int i = 0; i < msr_count; i++)
		s->msrs.entries[i].index = msr_indices[i];
	/* As QEMU's order: the states that the others depend on first. */
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_VCPU_EVENTS, &s->events), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_MP_STATE, &s->mp), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_REGS, &s->regs), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_SREGS, &s->sregs), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_SREGS2, &s->sregs2), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_FPU, &s->fpu), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_XSAVE, &s->xsave), 0);
	EXPECT(ioctl(m->vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2) <= XSAVE2_BYTES);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_XSAVE2, s->xsave2), 0);
	EXPECT_EQ(memcmp(s->xsave2, &s->xsave, sizeof s->xsave), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_XCRS, &s->xcrs), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_DEBUGREGS, &s->debug), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_MSRS, &s->msrs), msr_count);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_LAPIC, &s->lapic), 0);
	s->khz = ioctl(m->cpu, KVM_GET_TSC_KHZ, 0);
	EXPECT_EQ(tsc_offset(m, KVM_GET_DEVICE_ATTR, &s->tsc_offset), 0);
	s->cpuid.head.nent = 256;
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_CPUID2, &s->cpuid), 0);
	/* The timer's count runs. */
	memset(s->lapic.regs + 0x390, 0, 4);
}

/* `newer`: by the newer calls, where there are two. */
static void set(struct machine *m, struct state *s, bool newer)
{
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_CPUID2, &s->cpuid), 0);
	if (newer)
		EXPECT_EQ(ioctl(m->cpu, KVM_SET_SREGS2, &s->sregs2), 0);
	else
		EXPECT_EQ(ioctl(m->cpu, KVM_SET_SREGS, &s->sregs), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_REGS, &s->regs), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_FPU, &s->fpu), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_XSAVE, newer ? (void *)s->xsave2 : (void *)&s->xsave), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_XCRS, &s->xcrs), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_MSRS, &s->msrs), msr_count);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_LAPIC, &s->lapic), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_TSC_KHZ, s->khz), 0);
	EXPECT_EQ(tsc_offset(m, KVM_SET_DEVICE_ATTR, &s->tsc_offset), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_MP_STATE, &s->mp), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_DEBUGREGS, &s->debug), 0);
	s->events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_VCPU_EVENTS, &s->events), 0);
}

#define SAME(field) differs(#field, &a->field, &b->field, sizeof a->field)
static void differs(const char *name, const void *a, const void *b, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++) {
		if (((const uint8_t *)a)[i] != ((const uint8_t *)b)[i]) {
			fprintf(stderr, "%s: byte %zu of %zu is 0x%x instead of 0x%x\n", name, i, bytes, ((const uint8_t *)b)[i], ((const uint8_t *)a)[i]);
			exit(1);
		}
	}
}

static void same(const struct state *a, const struct state *b)
{
	SAME(events);
	SAME(mp);
	SAME(regs);
	SAME(sregs);
	SAME(fpu);
	SAME(xsave);
	SAME(sregs2);
	SAME(xsave2);
	SAME(xcrs);
	SAME(debug);
	SAME(lapic);
	SAME(khz);
	SAME(tsc_offset);
	SAME(cpuid);
	for (int i = 0; i < msr_count; i++) {
		if (a->msrs.entries[i].data != b->msrs.entries[i].data) {
			fprintf(stderr, "MSR 0x%x: 0x%llx instead of 0x%llx\n", a->msrs.entries[i].index, b->msrs.entries[i].data, a->msrs.entries[i].data);
			exit(1);
		}
	}
}

enum { NOTHING, OUTPUT, MMIO_READ, INPUT };

/* Leaves an exit of a device unanswered. */
static void leave_unanswered(struct machine *m, unsigned which)
{
	struct kvm_regs regs = get_regs(m);

	if (which == OUTPUT) {
		run_to_port(m, 0x10);
	} else if (which != NOTHING) {
		regs.rip = AT(device);
		set_regs(m, regs);
		run_to(m, KVM_EXIT_MMIO);
		EXPECT_EQ(m->run->mmio.phys_addr, DEVICE + 0x24);
		memset(m->run->mmio.data, 0x77, sizeof m->run->mmio.data);
	}
	if (which == INPUT) {
		run_to_port(m, 0x12);
		run_to_port(m, 0x13);
		((uint8_t *)m->run)[m->run->io.data_offset] = 0x77;
	}
}

/* KVM wants an exit to be finished before its state is read, and would finish it in whatever the client loads next. */
static void finish_exit(struct machine *m)
{
	m->run->immediate_exit = 1;
	(void)ioctl(m->cpu, KVM_RUN, 0);
	m->run->immediate_exit = 0;
}

/* The kinds of things that can be pending. */
static void disturb(struct machine *m, unsigned what)
{
	leave_unanswered(m, what & 3);
	if (host() != RING3)
		finish_exit(m);
	if (what & 4)
		EXPECT_EQ(ioctl(m->cpu, KVM_NMI, 0), 0);
	if (what & 8 && ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM))
		EXPECT_EQ(ioctl(m->cpu, KVM_SMI, 0), 0);
	if (what & 16) {
		struct kvm_guest_debug inject = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB };
		EXPECT_EQ(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &inject), 0);
	}
	if (what & 32) {
		struct kvm_vcpu_events events = get_events(m);
		events.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
		events.interrupt.shadow = KVM_X86_SHADOW_INT_STI;
		events.interrupt.injected = 1;
		events.interrupt.nr = 0x55;
		events.nmi.masked = 1;
		events.nmi.pending = 1;
		set_events(m, events);
	}
	if (what & 64) {
		struct kvm_mp_state halted = { KVM_MP_STATE_HALTED };
		EXPECT_EQ(ioctl(m->cpu, KVM_SET_MP_STATE, &halted), 0);
	}
	if (what & 128) {
		struct kvm_regs regs = get_regs(m);
		regs.rflags |= TF | IF;
		set_regs(m, regs);
	}
}

/* Without it a pending exception is told as an injected one, which it is after a SET. */
static void tell_pending_exceptions(struct machine *m)
{
	EXPECT_EQ(enable_cap(m->vm, KVM_CAP_EXCEPTION_PAYLOAD, 1), 0);
}

FACT(.mode = REAL, .irqchip = KERNEL, .cpuid = true, .prepare = tell_pending_exceptions)
{
	static struct state quiet, busy, now;
	bool newer = m->rounds >> 8 & 1;

	if (msr_count == 0)
		list_msrs(m);
	unsigned what = (unsigned)m->rounds & 255;
	get(m, &quiet);
	disturb(m, what);
	get(m, &busy);
	set(m, &quiet, newer);
	get(m, &now);
	same(&quiet, &now);
	set(m, &busy, newer);
	get(m, &now);
	same(&busy, &now);
	/* What was not answered is asked again. */
	if (host() == RING3 && (what == MMIO_READ || what == INPUT)) {
		run_to(m, what == INPUT ? KVM_EXIT_IO : KVM_EXIT_MMIO);
		EXPECT_EQ(what == INPUT ? m->run->io.port : m->run->mmio.phys_addr, what == INPUT ? 0x13 : DEVICE + 0x24);
		memset(m->run->mmio.data, 0x77, sizeof m->run->mmio.data);
	}
	set(m, &quiet, newer);
	get(m, &now);
	same(&quiet, &now);
	/* Nothing comes that the quiet state did not have. */
	struct kvm_debugregs debug = { .dr6 = 0xffff0ff0, .dr7 = 0x400 };
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_DEBUGREGS, &debug), 0);
	run_to_port(m, 0x10);
	struct kvm_regs regs = get_regs(m);
	EXPECT_EQ(regs.rax, quiet.regs.rax);
	EXPECT_EQ(regs.rcx, quiet.regs.rcx);
}
