/* Bit 24 of the local APIC's version (EOI broadcasts can be suppressed) is there with x2APIC in CPUID and the I/O APIC in the client; KVM's own I/O APIC has no EOI register. */
#include "fact.h"

NO_GUEST;

static uint32_t version(struct machine *m)
{
	struct kvm_lapic_state lapic;
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_LAPIC, &lapic), 0);
	return *(uint32_t *)(lapic.regs + 0x30);
}

FACT(.mode = REAL, .irqchip = SPLIT, .cpuid = true)
{
	EXPECT_EQ(version(m) >> 24 & 1, 1);
	EXPECT_EQ(version(m) & 0xff, 0x14);
	if (m->rounds > 30)
		return;
	WITH (other, .mode = REAL, .irqchip = KERNEL, .cpuid = true)
		EXPECT_EQ(version(other) >> 24 & 1, 0);
	WITH (other, .mode = REAL, .irqchip = SPLIT)
		EXPECT_EQ(version(other) >> 24 & 1, 0);
}
