/* KVM_GUESTDBG_INJECT_DB while an exception is injected takes its place: its instruction raises the old one again. While one is pending it is EBUSY. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	struct kvm_guest_debug inject = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB }, none = { 0 };
	struct kvm_vcpu_events events = { .exception = { .injected = 1, .nr = 6 } };

	set_events(m, events);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &inject), 0);
	EXPECT_EQ(get_events(m).exception.nr, 1);
	EXPECT_ERROR(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &inject), EBUSY);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &none), 0);
}
