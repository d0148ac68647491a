/* An interrupt controller comes before the first vCPU: after it KVM_CAP_SPLIT_IRQCHIP is EEXIST, KVM_CREATE_IRQCHIP EINVAL; after another controller both are EEXIST. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	EXPECT_ERROR(enable_cap(m->vm, KVM_CAP_SPLIT_IRQCHIP, 24), EEXIST);
	EXPECT_ERROR(enable_cap(m->vm, KVM_CAP_SPLIT_IRQCHIP, 4097), EINVAL);
	EXPECT_ERROR(ioctl(m->vm, KVM_CREATE_IRQCHIP, 0), EINVAL);
	if (m->rounds > 50)
		return;
	int vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	EXPECT_EQ(enable_cap(vm, KVM_CAP_SPLIT_IRQCHIP, 24), 0);
	EXPECT_ERROR(enable_cap(vm, KVM_CAP_SPLIT_IRQCHIP, 24), EEXIST);
	EXPECT_ERROR(ioctl(vm, KVM_CREATE_IRQCHIP, 0), EEXIST);
	close(vm);
}
