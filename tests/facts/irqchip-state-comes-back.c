/* KVM_GET_IRQCHIP gives what KVM_SET_IRQCHIP was given, elcr_mask too; so do the PIT's calls. */
#include "fact.h"

NO_GUEST;

static void make_pit(struct machine *m)
{
	struct kvm_pit_config config = { 0 };
	EXPECT_EQ(ioctl(m->vm, KVM_CREATE_PIT2, &config), 0);
}

FACT(.mode = REAL, .irqchip = KERNEL, .prepare = make_pit)
{
	struct kvm_pit_state2 pit, again;

	for (uint32_t id = 0; id < 2; id++) {
		struct kvm_irqchip chip = { .chip_id = id }, back = { .chip_id = id };
		EXPECT_EQ(ioctl(m->vm, KVM_GET_IRQCHIP, &chip), 0);
		EXPECT_EQ(chip.chip.pic.elcr_mask, id == 0 ? 0xf8 : 0xde);
		chip.chip.pic.imr = (uint8_t)m->rounds;
		chip.chip.pic.irq_base = 0x20;
		chip.chip.pic.elcr_mask = (uint8_t)(m->rounds * 7);
		chip.chip.pic.special_mask = 1;
		EXPECT_EQ(ioctl(m->vm, KVM_SET_IRQCHIP, &chip), 0);
		EXPECT_EQ(ioctl(m->vm, KVM_GET_IRQCHIP, &back), 0);
		EXPECT_EQ(memcmp(&chip.chip.pic, &back.chip.pic, sizeof chip.chip.pic), 0);
		chip.chip.pic.elcr_mask = id == 0 ? 0xf8 : 0xde;
		EXPECT_EQ(ioctl(m->vm, KVM_SET_IRQCHIP, &chip), 0);
	}
	struct kvm_irqchip ioapic = { .chip_id = KVM_IRQCHIP_IOAPIC }, back = ioapic;
	EXPECT_EQ(ioctl(m->vm, KVM_GET_IRQCHIP, &ioapic), 0);
	ioapic.chip.ioapic.redirtbl[3].bits = 0x0100000000010031ull + (uint64_t)(m->rounds & 63);
	EXPECT_EQ(ioctl(m->vm, KVM_SET_IRQCHIP, &ioapic), 0);
	EXPECT_EQ(ioctl(m->vm, KVM_GET_IRQCHIP, &back), 0);
	EXPECT_EQ(memcmp(&ioapic.chip.ioapic, &back.chip.ioapic, sizeof ioapic.chip.ioapic), 0);

	EXPECT_EQ(ioctl(m->vm, KVM_GET_PIT2, &pit), 0);
	pit.channels[2].mode = (uint8_t)(m->rounds % 6);
	pit.channels[2].count = 1000;
	pit.flags = 0;
	EXPECT_EQ(ioctl(m->vm, KVM_SET_PIT2, &pit), 0);
	EXPECT_EQ(ioctl(m->vm, KVM_GET_PIT2, &again), 0);
	for (int i = 0; i < 3; i++)
		pit.channels[i].count_load_time = again.channels[i].count_load_time = 0;
	EXPECT_EQ(memcmp(&pit, &again, sizeof pit), 0);
}
