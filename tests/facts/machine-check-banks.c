/* A vCPU begins with the 32 machine-check banks that KVM has; KVM_X86_SETUP_MCE takes 1 to 32 of them. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	uint64_t value;

	if (m->rounds == 0) {
		EXPECT_EQ(get_msr(m, 0x179, &value), 1);
		EXPECT_EQ(value, 32);
	}
	EXPECT_EQ(ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_MCE), 32);
	for (uint64_t banks = 0; banks < 0x102; banks++) {
		uint64_t cap = banks | 1 << 8;
		bool good = (cap & 0xff) >= 1 && (cap & 0xff) <= 32;
		if (good)
			EXPECT_EQ(ioctl(m->cpu, KVM_X86_SETUP_MCE, &cap), 0);
		else
			EXPECT_ERROR(ioctl(m->cpu, KVM_X86_SETUP_MCE, &cap), EINVAL);
	}
}
