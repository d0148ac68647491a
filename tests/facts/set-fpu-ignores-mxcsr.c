/* KVM_SET_FPU leaves MXCSR alone and KVM_GET_FPU does not tell it: it belongs to KVM_SET_XSAVE. A client that knows only the x87 part sets it to 0, which would unmask every exception. */
#include "fact.h"

NO_GUEST;

FACT(.mode = LONG, .cpuid = true)
{
	static struct kvm_xsave xsave;
	struct kvm_fpu fpu;

	EXPECT_EQ(ioctl(m->cpu, KVM_GET_XSAVE, &xsave), 0);
	xsave.region[6] = 0x1fa0;
	xsave.region[128] = 3;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_XSAVE, &xsave), 0);
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(ioctl(m->cpu, KVM_GET_FPU, &fpu), 0);
		EXPECT_EQ(fpu.mxcsr, 0);
		fpu.mxcsr = i == 0 ? 0 : i == 1 ? ~0u : 0x1f80;
		fpu.fcw = 0x27f;
		EXPECT_EQ(ioctl(m->cpu, KVM_SET_FPU, &fpu), 0);
		EXPECT_EQ(ioctl(m->cpu, KVM_GET_XSAVE, &xsave), 0);
		EXPECT_EQ(xsave.region[6], 0x1fa0);
		EXPECT_EQ(xsave.region[0] & 0xffff, 0x27f);
	}
}
