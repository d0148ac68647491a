/*
 * Before KVM_X86_SETUP_MCE the banks' controls are 0, so that KVM_X86_SET_MCE of an uncorrected error does nothing; MCG_CTL can be read by the client without being there for the guest.
 * A bank's control is all ones or zero, for the client too.
 */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	struct kvm_x86_mce uncorrected = { .status = 1ull << 63 | 1ull << 61 | 1ull << 57, .mcg_status = 4, .bank = 1 };
	uint64_t value, cap = 10 | 1 << 8;

	EXPECT_EQ(get_msr(m, 0x17b, &value), 1);
	if (m->rounds == 0) {
		EXPECT_EQ(value, 0);
		EXPECT_EQ(get_msr(m, 0x404, &value), 1);
		EXPECT_EQ(value, 0);
		EXPECT_EQ(ioctl(m->cpu, KVM_X86_SET_MCE, &uncorrected), 0);
		EXPECT_EQ(get_msr(m, 0x405, &value), 1);
		EXPECT_EQ(value, 0);
	}
	EXPECT_EQ(ioctl(m->cpu, KVM_X86_SETUP_MCE, &cap), 0);
	EXPECT_EQ(get_msr(m, 0x17b, &value), 1);
	EXPECT_EQ(value, ~0ull);
	EXPECT_EQ(get_msr(m, 0x404, &value), 1);
	EXPECT_EQ(value, ~0ull);
	EXPECT_EQ(set_msr(m, 0x404, 0x1234), 0);
	EXPECT_EQ(set_msr(m, 0x404, 0), 1);
	EXPECT_EQ(set_msr(m, 0x404, ~0ull), 1);
	EXPECT_EQ(set_msr(m, 0x17b, 1), 0);
}
