/* KVM_SET_XSAVE refuses what XRSTOR would fault on: reserved bytes of the header, a compacted area, components that are not there, reserved bits of MXCSR. Nothing has changed then. */
#include "fact.h"

NO_GUEST;

static void refused(struct machine *m, const struct kvm_xsave *good, size_t byte, uint8_t value)
{
	static struct kvm_xsave bad, after;

	bad = *good;
	((uint8_t *)bad.region)[byte] = value;
	((uint8_t *)bad.region)[160] ^= 1;
	EXPECT_ERROR(ioctl(m->cpu, KVM_SET_XSAVE, &bad), EINVAL);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_XSAVE, &after), 0);
	EXPECT_EQ(memcmp(&after.region[40], &good->region[40], 16), 0);
}

FACT(.mode = LONG, .cpuid = true)
{
	static struct kvm_xsave good;

	EXPECT_EQ(ioctl(m->cpu, KVM_GET_XSAVE, &good), 0);
	good.region[128] = 3;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_XSAVE, &good), 0);
	for (size_t byte = 520; byte < 576; byte++)
		refused(m, &good, byte, 1);
	refused(m, &good, 519, 0x40);
	refused(m, &good, 26, 1);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_XSAVE, &good), 0);
}
