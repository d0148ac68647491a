/* IRET to a program nulls FS and GS that hold a kernel's selector; their bases, per-CPU data and the like, stay. */
#include "fact.h"

GUEST(64,
	"push $0x3b\n push $0x70000\n push $0x3002\n push $0x43\n lea guest_user(%rip), %rax\n push %rax\n"
	"iretq\n"
	"guest_user: out %al, $0x10");

GUEST_FACT(.mode = LONG)
{
	struct kvm_sregs sregs = get_sregs(m);

	sregs.gs.base = 0xabc000;
	sregs.fs.base = 0x123456789000;
	set_sregs(m, sregs);
	run_to_port(m, 0x10);
	sregs = get_sregs(m);
	EXPECT_EQ(sregs.cs.selector, CODE64_USER);
	EXPECT_EQ(sregs.gs.selector, 0);
	EXPECT_EQ(sregs.fs.selector, 0);
	EXPECT_EQ(sregs.gs.base, 0xabc000);
	EXPECT_EQ(sregs.fs.base, 0x123456789000);
}
