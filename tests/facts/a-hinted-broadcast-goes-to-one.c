/*
 * KVM_SIGNAL_MSI to physical id 0xff: everybody gets it, also with lowest-priority delivery, which becomes fixed. With the redirection hint one local APIC gets it, of those that software has enabled, as a fixed interrupt whatever the message says;
 * without such a one it is refused.
 */
#include "fact.h"

NO_GUEST;

enum { BROADCAST = 0xfeeff000, HINTED = 0xfeeff008 };

static void load_apics(const int cpus[2], bool enabled)
{
	for (int i = 0; i < 2; i++) {
		struct kvm_lapic_state lapic;
		EXPECT_EQ(ioctl(cpus[i], KVM_GET_LAPIC, &lapic), 0);
		memset(lapic.regs + 0x200, 0, 0x80);
		*(uint32_t *)(lapic.regs + 0xf0) = enabled ? 0x1ff : 0xff;
		EXPECT_EQ(ioctl(cpus[i], KVM_SET_LAPIC, &lapic), 0);
	}
}

/* How many have the vector requested. */
static int requested(const int cpus[2], int vector)
{
	int count = 0;
	for (int i = 0; i < 2; i++) {
		struct kvm_lapic_state lapic;
		EXPECT_EQ(ioctl(cpus[i], KVM_GET_LAPIC, &lapic), 0);
		count += *(uint32_t *)(lapic.regs + 0x200 + vector / 32 * 16) >> vector % 32 & 1;
	}
	return count;
}

static int signal_msi(struct machine *m, uint32_t address, uint32_t data)
{
	struct kvm_msi msi = { .address_lo = address, .data = data };
	return ioctl(m->vm, KVM_SIGNAL_MSI, &msi);
}

FACT(.mode = REAL, .irqchip = KERNEL)
{
	static const uint32_t modes[] = { 0x000, 0x100, 0x600 };

	if (m->rounds > 50)
		return;
	WITH (two, .mode = REAL, .irqchip = KERNEL) {
		int cpus[] = { two->cpu, ioctl(two->vm, KVM_CREATE_VCPU, 1) };
		EXPECT(cpus[1] >= 0);
		for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
			load_apics(cpus, true);
			EXPECT_EQ(signal_msi(two, HINTED, 0x51 | modes[i]), 1);
			EXPECT_EQ(requested(cpus, 0x51), 1);
			if (modes[i] == 0x600)
				break;
			EXPECT_EQ(signal_msi(two, BROADCAST, 0x62 | modes[i]), 2);
			EXPECT_EQ(requested(cpus, 0x62), 2);
			load_apics(cpus, false);
			EXPECT_ERROR(signal_msi(two, HINTED, 0x51 | modes[i]), EPERM);
			EXPECT_EQ(signal_msi(two, BROADCAST, 0x62 | modes[i]), 0);
		}
		close(cpus[1]);
	}
}
