/* KVM_SET_GUEST_DEBUG ignores controls that it does not know (api.rst promises no error). */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	for (int bit = 2; bit < 32; bit++) {
		struct kvm_guest_debug debug = { .control = 1u << bit };
		if (debug.control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP))
			continue;
		EXPECT_EQ(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &debug), 0);
		debug.control |= KVM_GUESTDBG_ENABLE;
		EXPECT_EQ(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &debug), 0);
	}
}
