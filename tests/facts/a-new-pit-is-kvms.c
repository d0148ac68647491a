/* A PIT that was just made: every channel has no mode yet (0xff), the largest count, and its gate open but for the speaker's. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL, .irqchip = KERNEL)
{
	if (m->rounds > 100)
		return;
	WITH (other, .mode = REAL, .irqchip = KERNEL) {
		struct kvm_pit_config config = { 0 };
		struct kvm_pit_state2 pit;
		EXPECT_EQ(ioctl(other->vm, KVM_CREATE_PIT2, &config), 0);
		EXPECT_EQ(ioctl(other->vm, KVM_GET_PIT2, &pit), 0);
		EXPECT_EQ(pit.flags, 0);
		for (int i = 0; i < 3; i++) {
			EXPECT_EQ(pit.channels[i].mode, 0xff);
			EXPECT_EQ(pit.channels[i].count, 0x10000);
			EXPECT_EQ(pit.channels[i].gate, i != 2);
			EXPECT_EQ(pit.channels[i].latched_count, 0);
			EXPECT_EQ(pit.channels[i].bcd, 0);
		}
		EXPECT_ERROR(ioctl(other->vm, KVM_CREATE_PIT2, &config), EEXIST);
	}
}
