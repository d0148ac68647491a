/* A pending exception belongs to the registers: KVM_SET_REGS drops it. Without KVM_CAP_EXCEPTION_PAYLOAD it is told as injected and pending. */
#include "fact.h"

GUEST(16, "nop\n out %al, $0x10");

FACT(.mode = REAL)
{
	struct kvm_guest_debug inject = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB }, none = { 0 };
	struct kvm_vcpu_events events;

	EXPECT_EQ(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &inject), 0);
	EXPECT_ERROR(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &inject), EBUSY);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &none), 0);
	events = get_events(m);
	EXPECT_EQ(events.exception.injected, 1);
	EXPECT_EQ(events.exception.pending, 1);
	EXPECT_EQ(events.exception.nr, 1);
	set_regs(m, get_regs(m));
	events = get_events(m);
	EXPECT_EQ(events.exception.injected, 0);
	EXPECT_EQ(events.exception.pending, 0);
	run_to_port(m, 0x10);
}
