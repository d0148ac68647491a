/*
 * With KVM_SREGS2_FLAGS_PDPTRS_VALID the PAE pointers are the client's, whatever memory has, and come back by KVM_GET_SREGS2; the guest runs on them. Without the flag, and with KVM_SET_SREGS, they are loaded
 * from memory. The flag without PAE paging, and any other flag, is EINVAL.
 */
#include "fact.h"

GUEST(32,
	"mov 0x400000, %al\n"
	"out %al, $0x10\n"
	"hlt");

enum { POINTERS = 0x10000, DIRECTORY = 0x11000, OTHER_DIRECTORY = 0x12000, PAE_CR4 = 0x20 };

static struct kvm_sregs2 get_sregs2(struct machine *m)
{
	struct kvm_sregs2 s;
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_SREGS2, &s), 0);
	return s;
}

GUEST_FACT(.mode = PROTECTED, .cpuid = true)
{
	struct kvm_sregs2 s = get_sregs2(m), back;

	EXPECT_EQ(s.flags, 0);
	s.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
	EXPECT_ERROR(ioctl(m->cpu, KVM_SET_SREGS2, &s), EINVAL);
	/* Memory has a directory for the first GiB that maps its third 2 MiB to the first; the client's maps it to the code's 2 MiB, too, but for the device. */
	for (uint64_t i = 0; i < 4; i++)
		put64(m, POINTERS + 8 * i, i == 0 ? DIRECTORY | 1 : 0);
	memset(m->memory + DIRECTORY, 0, 8192);
	put64(m, DIRECTORY, 0x83);
	put64(m, DIRECTORY + 16, 0x83);
	put64(m, OTHER_DIRECTORY, 0x83);
	put64(m, OTHER_DIRECTORY + 16, 0x40000083);
	m->memory[0] = 0x5a;
	s.cr3 = POINTERS;
	s.cr4 = PAE_CR4;
	s.cr0 |= 0x80000000;
	s.flags = 0;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_SREGS2, &s), 0);
	back = get_sregs2(m);
	EXPECT_EQ(back.flags, KVM_SREGS2_FLAGS_PDPTRS_VALID);
	EXPECT_EQ(back.pdptrs[0], DIRECTORY | 1);
	run_to_port(m, 0x10);
	EXPECT_EQ(io_data(m), 0x5a);

	struct kvm_regs regs = get_regs(m);
	regs.rip = CODE;
	set_regs(m, regs);
	s.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
	s.pdptrs[0] = OTHER_DIRECTORY | 1;
	s.pdptrs[1] = s.pdptrs[2] = 0;
	s.pdptrs[3] = DIRECTORY | 1;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_SREGS2, &s), 0);
	back = get_sregs2(m);
	EXPECT_EQ(memcmp(s.pdptrs, back.pdptrs, sizeof s.pdptrs), 0);
	run_to(m, KVM_EXIT_MMIO);
	EXPECT_EQ(m->run->mmio.phys_addr, 0x40000000);
	m->run->mmio.data[0] = 0x77;
	run_to_port(m, 0x10);
	EXPECT_EQ(io_data(m), 0x77);
	EXPECT_EQ(get_sregs2(m).pdptrs[0], OTHER_DIRECTORY | 1);
	/* By the older call: from memory. */
	set_sregs(m, get_sregs(m));
	EXPECT_EQ(get_sregs2(m).pdptrs[0], DIRECTORY | 1);
	s.flags = 2;
	EXPECT_ERROR(ioctl(m->cpu, KVM_SET_SREGS2, &s), EINVAL);
}
