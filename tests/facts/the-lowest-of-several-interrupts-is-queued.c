/* KVM_SET_SREGS with several bits in interrupt_bitmap queues the interrupt of the lowest; the others are nothing. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	struct kvm_sregs sregs = get_sregs(m);
	int low = 0x20 + m->rounds % 100, high = low + 1 + m->rounds % 90;

	sregs.interrupt_bitmap[low / 64] |= 1ull << low % 64;
	sregs.interrupt_bitmap[high / 64] |= 1ull << high % 64;
	set_sregs(m, sregs);
	sregs = get_sregs(m);
	for (int i = 0; i < 4; i++)
		EXPECT_EQ(sregs.interrupt_bitmap[i], low / 64 == i ? 1ull << low % 64 : 0);
	EXPECT_EQ(get_events(m).interrupt.injected, 1);
	EXPECT_EQ(get_events(m).interrupt.nr, low);
}
