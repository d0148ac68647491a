/* With a dirty log, the first access to a page that is not mapped yet maps it writable and logs it, whatever kind of access it is, when the client's page can be written. */
#include "fact.h"

GUEST(16,
	"mov 0x9000, %al\n"
	"hlt");

GUEST_FACT(.mode = REAL)
{
	uint64_t bitmap[MEMORY_BYTES / 4096 / 64 + 1];
	struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = bitmap };
	struct kvm_userspace_memory_region region = { .memory_size = 0, .userspace_addr = (uintptr_t)m->memory };

	EXPECT_EQ(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
	region.memory_size = MEMORY_BYTES;
	region.flags = KVM_MEM_LOG_DIRTY_PAGES;
	EXPECT_EQ(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
	m->memory[0x9000]++;
	run_to(m, KVM_EXIT_HLT);
	memset(bitmap, 0, sizeof bitmap);
	EXPECT_EQ(ioctl(m->vm, KVM_GET_DIRTY_LOG, &log), 0);
	EXPECT(bitmap[0] >> (CODE >> 12) & 1);
	EXPECT(bitmap[0] >> 9 & 1);
	EXPECT(!(bitmap[0] >> 10 & 1));
	region.memory_size = 0;
	EXPECT_EQ(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
	region.memory_size = MEMORY_BYTES;
	region.flags = 0;
	EXPECT_EQ(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
}
