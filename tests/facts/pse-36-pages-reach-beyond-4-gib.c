/* A large page of 32-bit paging has bits 32-39 of its address in bits 13-20 of the entry. */
#include "fact.h"

GUEST(32,
	"mov 0x800010, %eax\n"
	"incl 0x800020\n"
	"hlt");

enum { PAGE = 4 << 20 };
static const uint64_t at = 0x900400000;
static uint32_t *page;

static void put_page(struct machine *m)
{
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	EXPECT(page != MAP_FAILED);
	struct kvm_userspace_memory_region region = { .slot = 1, .guest_phys_addr = at, .memory_size = PAGE, .userspace_addr = (uintptr_t)page };
	EXPECT_EQ(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
	page[4] = 0x5a5a5a;
}

GUEST_FACT(.mode = PROTECTED, .cpuid = true, .prepare = put_page)
{
	struct kvm_sregs sregs = get_sregs(m);

	put64(m, PD, 0x87);
	put64(m, PD + 8, (at & 0xffc00000) | (at >> 32 & 0xff) << 13 | 0x87);
	page[8] = 41;
	sregs.cr3 = PD;
	sregs.cr4 = 0x10;
	sregs.cr0 |= 0x80000000;
	set_sregs(m, sregs);
	run_to(m, KVM_EXIT_HLT);
	EXPECT_EQ(get_regs(m).rax, 0x5a5a5a);
	EXPECT_EQ(page[8], 42);
}
