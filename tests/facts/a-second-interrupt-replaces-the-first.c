/* KVM_INTERRUPT without an interrupt controller: a second one takes the place of the first; both KVM_GET_SREGS and KVM_GET_VCPU_EVENTS show it, KVM_SET_VCPU_EVENTS takes it back. */
#include "fact.h"

GUEST(16, "sti\n nop\n hlt");

static void interrupt(struct machine *m, uint32_t vector)
{
	struct kvm_interrupt irq = { vector };
	EXPECT_EQ(ioctl(m->cpu, KVM_INTERRUPT, &irq), 0);
}

FACT(.mode = REAL)
{
	struct kvm_vcpu_events events;
	struct kvm_interrupt wrong = { 256 };

	EXPECT_ERROR(ioctl(m->cpu, KVM_INTERRUPT, &wrong), EINVAL);
	interrupt(m, 0x41);
	interrupt(m, 0x42);
	EXPECT_EQ(get_sregs(m).interrupt_bitmap[1], 1ull << 2);
	events = get_events(m);
	EXPECT_EQ(events.interrupt.injected, 1);
	EXPECT_EQ(events.interrupt.nr, 0x42);
	EXPECT_EQ(events.interrupt.soft, 0);
	events.interrupt.injected = 0;
	set_events(m, events);
	EXPECT_EQ(get_sregs(m).interrupt_bitmap[1], 0);
	run_to(m, KVM_EXIT_HLT);
}
