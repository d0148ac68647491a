/* MAXPHYADDR of the guest's CPUID bounds CR3 and the APIC's base in KVM_SET_SREGS, with and without an interrupt controller, and the MTRRs. */
#include "fact.h"

NO_GUEST;

static void with_width(struct machine *m, uint32_t width)
{
	struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid = { .head = { .nent = 256 } };

	EXPECT_EQ(ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), 0);
	for (uint32_t i = 0; i < cpuid.head.nent; i++)
		if (cpuid.entries[i].function == 0x80000008)
			cpuid.entries[i].eax = (cpuid.entries[i].eax & 0xff00) | width;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_CPUID2, &cpuid), 0);
}

static void bounds(struct machine *m)
{
	uint64_t beyond = 1ull << 40;
	struct kvm_sregs sregs;

	with_width(m, 40);
	sregs = get_sregs(m);
	sregs.cr3 |= beyond;
	EXPECT_ERROR(ioctl(m->cpu, KVM_SET_SREGS, &sregs), EINVAL);
	sregs = get_sregs(m);
	sregs.cr3 |= beyond >> 1;
	set_sregs(m, sregs);
	sregs.apic_base |= beyond;
	EXPECT_ERROR(ioctl(m->cpu, KVM_SET_SREGS, &sregs), EINVAL);
	EXPECT_EQ(set_msr(m, 0x200, beyond | 6), 0);
	EXPECT_EQ(set_msr(m, 0x201, beyond | 0x800), 0);
	EXPECT_EQ(set_msr(m, 0x200, (beyond >> 1) | 6), 1);
}

FACT(.mode = LONG)
{
	bounds(m);
	if (m->rounds > 50)
		return;
	WITH (other, .mode = LONG, .irqchip = KERNEL)
		bounds(other);
}
