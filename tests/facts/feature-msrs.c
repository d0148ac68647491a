/* KVM_GET_MSR_FEATURE_INDEX_LIST has PERF_CAPABILITIES and PLATFORM_INFO, and each of the list can be read on /dev/kvm. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	struct { struct kvm_msr_list head; uint32_t indices[256]; } list = { .head = { .nmsrs = 256 } };
	int found = 0;

	EXPECT_EQ(ioctl(m->kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, &list), 0);
	for (uint32_t i = 0; i < list.head.nmsrs; i++) {
		struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msr = { { .nmsrs = 1 }, { .index = list.indices[i] } };
		EXPECT_EQ(ioctl(m->kvm, KVM_GET_MSRS, &msr), 1);
		found += list.indices[i] == 0x345 || list.indices[i] == 0xce;
	}
	EXPECT_EQ(found, 2);
}
