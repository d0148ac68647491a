/* KVM_CAP_X2APIC_API is accepted before an interrupt controller, and without one. Unknown flags are EINVAL. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	EXPECT_EQ(enable_cap(m->vm, KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS), 0);
	EXPECT_EQ(enable_cap(m->vm, KVM_CAP_X2APIC_API, 0), 0);
	EXPECT_ERROR(enable_cap(m->vm, KVM_CAP_X2APIC_API, 1ull << 40), EINVAL);
	if (m->rounds > 50)
		return;

	/* It holds for the controller that comes. */
	int vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	EXPECT_EQ(enable_cap(vm, KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS), 0);
	EXPECT_EQ(enable_cap(vm, KVM_CAP_SPLIT_IRQCHIP, 24), 0);
	int cpu = ioctl(vm, KVM_CREATE_VCPU, 5);
	EXPECT(cpu >= 0);
	struct machine other = { .cpu = cpu, .kvm = m->kvm };
	struct kvm_lapic_state lapic;
	supported_cpuid(&other);
	struct kvm_sregs sregs = get_sregs(&other);
	EXPECT_EQ(ioctl(cpu, KVM_GET_LAPIC, &lapic), 0);
	EXPECT_EQ(*(uint32_t *)(lapic.regs + 0x20), 5 << 24);
	sregs.apic_base |= 0xc00;
	set_sregs(&other, sregs);
	EXPECT_EQ(ioctl(cpu, KVM_GET_LAPIC, &lapic), 0);
	EXPECT_EQ(*(uint32_t *)(lapic.regs + 0x20), 5);
	close(cpu);
	close(vm);
}
