/* KVM_CAP_HALT_POLL refuses more than 32 bits of nanoseconds. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	EXPECT_EQ(enable_cap(m->vm, KVM_CAP_HALT_POLL, 0), 0);
	EXPECT_EQ(enable_cap(m->vm, KVM_CAP_HALT_POLL, 0xffffffff), 0);
	EXPECT_ERROR(enable_cap(m->vm, KVM_CAP_HALT_POLL, 0x100000000), EINVAL);
	EXPECT_ERROR(enable_cap(m->vm, KVM_CAP_HALT_POLL, 1ull << 63), EINVAL);
	EXPECT_EQ(enable_cap(m->vm, KVM_CAP_HALT_POLL, 0), 0);
}
