/* INIT ends what a guest has agreed with KVM about its memory: clock page, steal time, asynchronous faults, paravirtual EOI. The CPU that comes up again may belong to another kernel, which has other uses for those pages. The wall clock and haltpoll are not of that kind. */
#include "fact.h"

NO_GUEST;

enum { WALL_CLOCK = 0x4b564d00, SYSTEM_TIME, ASYNC_PF, STEAL_TIME, PV_EOI, POLL_CONTROL };

FACT(.mode = REAL, .irqchip = KERNEL, .cpuid = true)
{
	static const struct { uint32_t index; uint64_t value; bool stays; } msrs[] = {
		{ WALL_CLOCK, 0x20000, true }, { SYSTEM_TIME, 0x20101, false }, { ASYNC_PF, 0x20201, false }, { STEAL_TIME, 0x20301, false }, { PV_EOI, 0x20401, false }, { POLL_CONTROL, 0, true },
	};
	struct kvm_msi init = { .address_lo = 0xfee00000, .data = 0x500 };
	struct kvm_mp_state state;
	struct kvm_lapic_state lapic;
	uint64_t value;
	size_t count = sizeof msrs / sizeof *msrs;

	/* The kernel's KVM knows a new vCPU as a destination only after its local APIC was loaded once. */
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_LAPIC, &lapic), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_LAPIC, &lapic), 0);
	for (size_t i = 0; i < count; i++)
		EXPECT_EQ(set_msr(m, msrs[i].index, msrs[i].value), 1);
	EXPECT_EQ(ioctl(m->cpu, KVM_KVMCLOCK_CTRL, 0), 0);
	EXPECT_EQ(ioctl(m->vm, KVM_SIGNAL_MSI, &init), 1);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_MP_STATE, &state), 0);
	for (size_t i = 0; i < count; i++) {
		EXPECT_EQ(get_msr(m, msrs[i].index, &value), 1);
		if (value != (msrs[i].stays ? msrs[i].value : 0)) {
			fprintf(stderr, "MSR 0x%x: 0x%llx\n", msrs[i].index, (unsigned long long)value);
			exit(failure());
		}
	}
	EXPECT_ERROR(ioctl(m->cpu, KVM_KVMCLOCK_CTRL, 0), EINVAL);
}
