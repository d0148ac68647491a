/* KVM_IRQFD needs an interrupt controller to attach an eventfd, and none to take it back. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	int fd = eventfd(0, EFD_CLOEXEC);
	struct kvm_irqfd irqfd = { .fd = (uint32_t)fd, .gsi = 4 };

	EXPECT_ERROR(ioctl(m->vm, KVM_IRQFD, &irqfd), EINVAL);
	irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
	EXPECT_EQ(ioctl(m->vm, KVM_IRQFD, &irqfd), 0);
	irqfd.fd = ~0u;
	EXPECT_ERROR(ioctl(m->vm, KVM_IRQFD, &irqfd), EBADF);
	irqfd.flags = 16;
	EXPECT_ERROR(ioctl(m->vm, KVM_IRQFD, &irqfd), EINVAL);
	close(fd);
}
