/* KVM_SIGNAL_MSI: 1 for a message that was taken, 0 for one that its local APIC blocks, -1 (EPERM) for a broadcast that reaches nobody, EINVAL without local APICs or with flags. A redirection hint changes nothing for the physical id of one CPU. */
#include "fact.h"

NO_GUEST;

static int signal_msi(struct machine *m, uint32_t address, uint32_t data)
{
	struct kvm_msi msi = { .address_lo = address, .data = data };
	return ioctl(m->vm, KVM_SIGNAL_MSI, &msi);
}

FACT(.mode = REAL, .irqchip = KERNEL)
{
	struct kvm_lapic_state lapic;
	struct kvm_msi flags = { .address_lo = 0xfee00000, .data = 0x41, .flags = 2 };

	EXPECT_EQ(ioctl(m->cpu, KVM_GET_LAPIC, &lapic), 0);
	lapic.regs[0xf1] &= ~1;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_LAPIC, &lapic), 0);
	EXPECT_EQ(signal_msi(m, 0xfee00000, 0x41), 0);
	EXPECT_EQ(signal_msi(m, 0xfee00000, 0x441), 1);
	EXPECT_EQ(signal_msi(m, 0xfee00008, 0x300), 1);
	lapic.regs[0xf1] |= 1;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_LAPIC, &lapic), 0);
	EXPECT_EQ(signal_msi(m, 0xfee00000, 0x41), 1);
	EXPECT_EQ(signal_msi(m, 0xfee05000, 0x41), 0);
	EXPECT_ERROR(ioctl(m->vm, KVM_SIGNAL_MSI, &flags), EINVAL);
	/* Logically: an APIC without a logical id; one that has only reserved bits in that register blocks, like one that is not meant. */
	EXPECT_EQ(signal_msi(m, 0xfee02004, 0x41), 0);
	static const uint32_t logical_ids[] = { 0x20000, 0x1000000, 0x2000000 };
	for (int i = 0; i < 3; i++) {
		memcpy(lapic.regs + 0xd0, &logical_ids[i], 4);
		EXPECT_EQ(ioctl(m->cpu, KVM_SET_LAPIC, &lapic), 0);
		EXPECT_EQ(signal_msi(m, 0xfee02004, 0x41), i == 2);
	}
	memset(lapic.regs + 0xd0, 0, 4);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_LAPIC, &lapic), 0);
	/* A broadcast, while the only local APIC is switched off. */
	EXPECT_EQ(set_msr(m, 0x1b, 0xfee00100), 1);
	EXPECT_ERROR(signal_msi(m, 0xfeeff000, 0x41), EPERM);
	EXPECT_EQ(set_msr(m, 0x1b, 0xfee00900), 1);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_LAPIC, &lapic), 0);
	EXPECT_EQ(signal_msi(m, 0xfeeff000, 0x41), 1);
}
