/* KVM_IRQFD: an eventfd that is an irqfd already is EBUSY, in the same VM, with another GSI, and through a duplicate of the descriptor. */
#include "fact.h"

NO_GUEST;

static int call(int vm, int fd, uint32_t gsi, uint32_t flags)
{
	struct kvm_irqfd irqfd = { .fd = (uint32_t)fd, .gsi = gsi, .flags = flags };
	return ioctl(vm, KVM_IRQFD, &irqfd);
}

FACT(.mode = REAL, .irqchip = KERNEL)
{
	int fd = eventfd(0, EFD_CLOEXEC), same = dup(fd);

	EXPECT_EQ(call(m->vm, fd, 5, 0), 0);
	EXPECT_ERROR(call(m->vm, fd, 5, 0), EBUSY);
	EXPECT_ERROR(call(m->vm, fd, 6, 0), EBUSY);
	EXPECT_ERROR(call(m->vm, same, 6, 0), EBUSY);
	EXPECT_EQ(call(m->vm, same, 6, KVM_IRQFD_FLAG_DEASSIGN), 0);
	EXPECT_ERROR(call(m->vm, same, 5, 0), EBUSY);
	EXPECT_EQ(call(m->vm, same, 5, KVM_IRQFD_FLAG_DEASSIGN), 0);
	EXPECT_EQ(call(m->vm, same, 6, 0), 0);
	EXPECT_EQ(call(m->vm, fd, 6, KVM_IRQFD_FLAG_DEASSIGN), 0);
	close(same);
	close(fd);
}
