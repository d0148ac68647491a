/* XSTATE_BV of KVM_GET_XSAVE has the components that are not in their initial state, as XSAVEC writes it; the others' bytes are their initial state. */
#include "fact.h"

NO_GUEST;

FACT(.mode = LONG, .cpuid = true)
{
	static struct kvm_xsave xsave;
	uint64_t bv;

	memset(&xsave, 0, sizeof xsave);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_XSAVE, &xsave), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_XSAVE, &xsave), 0);
	memcpy(&bv, &xsave.region[128], sizeof bv);
	EXPECT_EQ(bv, 0);
	EXPECT_EQ(xsave.region[0], 0x37f);
	EXPECT_EQ(xsave.region[6], 0x1f80);

	bv = 2;
	memcpy(&xsave.region[128], &bv, sizeof bv);
	xsave.region[40] = 5;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_XSAVE, &xsave), 0);
	memset(&xsave, 0, sizeof xsave);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_XSAVE, &xsave), 0);
	memcpy(&bv, &xsave.region[128], sizeof bv);
	EXPECT_EQ(bv, 2);
	EXPECT_EQ(xsave.region[40], 5);
}
