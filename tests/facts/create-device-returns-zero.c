/* Calls that report a descriptor in their structure return 0: KVM_CREATE_DEVICE. Those that return it report it there: KVM_CREATE_GUEST_MEMFD, KVM_GET_STATS_FD. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	struct kvm_create_device device = { .type = KVM_DEV_TYPE_VFIO, .fd = 12345, .flags = KVM_CREATE_DEVICE_TEST };

	if (m->rounds > 50)
		return;
	if (ioctl(m->vm, KVM_CREATE_DEVICE, &device) != 0) {
		EXPECT_EQ(errno, ENODEV);
		fprintf(stderr, "this kernel has no VFIO device\n");
		exit(4);
	}
	device.flags = 0;
	EXPECT_EQ(ioctl(m->vm, KVM_CREATE_DEVICE, &device), 0);
	EXPECT((int)device.fd > m->cpu);
	EXPECT_EQ(fcntl((int)device.fd, F_GETFD), FD_CLOEXEC);
	struct kvm_create_device second = { .type = KVM_DEV_TYPE_VFIO };
	EXPECT_ERROR(ioctl(m->vm, KVM_CREATE_DEVICE, &second), EBUSY);
	close((int)device.fd);
	EXPECT_EQ(ioctl(m->vm, KVM_CREATE_DEVICE, &device), 0);
	close((int)device.fd);
	device.type = 77;
	EXPECT_ERROR(ioctl(m->vm, KVM_CREATE_DEVICE, &device), ENODEV);
	int stats = ioctl(m->vm, KVM_GET_STATS_FD, 0);
	EXPECT(stats > 0);
	close(stats);
}
