/* KVM_GET_CLOCK after KVM_SET_CLOCK: what was set and the time since, no more and no less. With KVM_CLOCK_REALTIME also the time since the moment that the client names, when that is past. */
#include "fact.h"

NO_GUEST;

static uint64_t clock_ns(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void check(struct machine *m, struct kvm_clock_data set, uint64_t ahead)
{
	struct kvm_clock_data get;
	uint64_t begin = clock_ns(CLOCK_BOOTTIME);

	EXPECT_EQ(ioctl(m->vm, KVM_SET_CLOCK, &set), 0);
	memset(&get, 0xff, sizeof get);
	EXPECT_EQ(ioctl(m->vm, KVM_GET_CLOCK, &get), 0);
	uint64_t passed = clock_ns(CLOCK_BOOTTIME) - begin;

	EXPECT(get.clock >= set.clock + ahead);
	/* The host steers its own clock, the guest's goes by the TSC: they may differ by a thousandth. */
	EXPECT(get.clock - set.clock - ahead <= passed + passed / 1000 + 1000);
	EXPECT_EQ(get.flags & ~(uint32_t)(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC), 0);
	if (get.flags & KVM_CLOCK_REALTIME)
		EXPECT(clock_ns(CLOCK_REALTIME) - get.realtime <= passed + 1000000000);
	for (size_t i = 0; i < sizeof get.pad / sizeof get.pad[0]; i++)
		EXPECT_EQ(get.pad[i], 0);
}

FACT(.mode = REAL)
{
	uint64_t clock = (uint64_t)m->rounds * 0x123456789 % 1000000000000000;

	check(m, (struct kvm_clock_data){ .clock = clock }, 0);
	/* Backwards too. */
	check(m, (struct kvm_clock_data){ .clock = 5 }, 0);
	struct kvm_clock_data real = { .clock = clock, .flags = KVM_CLOCK_REALTIME };
	real.realtime = clock_ns(CLOCK_REALTIME) - 5000000000;
	uint64_t begin = clock_ns(CLOCK_REALTIME);
	EXPECT_EQ(ioctl(m->vm, KVM_SET_CLOCK, &real), 0);
	struct kvm_clock_data get;
	EXPECT_EQ(ioctl(m->vm, KVM_GET_CLOCK, &get), 0);
	EXPECT(get.clock >= clock + (begin - real.realtime));
	EXPECT(get.clock <= clock + (clock_ns(CLOCK_REALTIME) - real.realtime) + 1000000);
	/* A moment to come adds nothing. */
	real.realtime = clock_ns(CLOCK_REALTIME) + 3600000000000;
	check(m, real, 0);
	get.flags |= 1 << 5;
	EXPECT_ERROR(ioctl(m->vm, KVM_SET_CLOCK, &get), EINVAL);
}
