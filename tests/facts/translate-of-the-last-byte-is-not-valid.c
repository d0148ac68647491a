/* KVM_TRANSLATE without paging is the identity, except for the address that stands for "none". */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	struct kvm_translation translation = { .linear_address = ~0ull };

	EXPECT_EQ(ioctl(m->cpu, KVM_TRANSLATE, &translation), 0);
	EXPECT_EQ(translation.valid, 0);
	EXPECT_EQ(translation.physical_address, ~0ull);
	translation = (struct kvm_translation){ .linear_address = 0x12345 };
	EXPECT_EQ(ioctl(m->cpu, KVM_TRANSLATE, &translation), 0);
	EXPECT_EQ(translation.valid, 1);
	EXPECT_EQ(translation.physical_address, 0x12345);
}
