/* KVM_IOEVENTFD: a length that no access has, unknown flags and a wildcard with data are EINVAL; taking one back checks none of these and is ENOENT for what is not there. */
#include "fact.h"

NO_GUEST;

static int call(struct machine *m, int fd, uint32_t flags, uint32_t len)
{
	struct kvm_ioeventfd io = { .addr = DEVICE, .len = len, .fd = fd, .flags = flags };
	return ioctl(m->vm, KVM_IOEVENTFD, &io);
}

FACT(.mode = REAL)
{
	int fd = eventfd(0, EFD_CLOEXEC);

	for (int bit = 3; bit < 32; bit++) {
		if (bit < 5) {
			/* The flags of s390's virtio and of the fast MMIO bus are known; the former is a bus without a guest here. */
			EXPECT_EQ(call(m, fd, 1u << bit, 4), 0);
			EXPECT_ERROR(call(m, fd, 1u << bit, 4), EEXIST);
			EXPECT_EQ(call(m, fd, 1u << bit | KVM_IOEVENTFD_FLAG_DEASSIGN, 4), 0);
		} else
			EXPECT_ERROR(call(m, fd, 1u << bit, 4), EINVAL);
		EXPECT_ERROR(call(m, fd, 1u << bit | KVM_IOEVENTFD_FLAG_DEASSIGN, 4), ENOENT);
	}
	EXPECT_ERROR(call(m, fd, 0, 3), EINVAL);
	EXPECT_ERROR(call(m, fd, KVM_IOEVENTFD_FLAG_DATAMATCH, 0), EINVAL);
	EXPECT_ERROR(call(m, fd, KVM_IOEVENTFD_FLAG_DEASSIGN, 3), ENOENT);
	EXPECT_ERROR(call(m, fd, KVM_IOEVENTFD_FLAG_DEASSIGN | KVM_IOEVENTFD_FLAG_DATAMATCH, 0), ENOENT);
	EXPECT_ERROR(call(m, -1, KVM_IOEVENTFD_FLAG_DEASSIGN, 4), EBADF);
	EXPECT_ERROR(call(m, m->kvm, 0, 4), EINVAL);
	close(fd);
}
