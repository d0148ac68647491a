/* With CR4.PVI, CLI and STI at CPL 3 with IOPL below 3 change VIF; STI with VIP set is #GP(0). PUSHF shows VIF as it is. */
#include "v86.h"

GUEST(32,
	"mov %cr4, %eax\n or $2, %eax\n mov %eax, %cr4\n"
	"pushl $0x3b\n pushl $0x70000\n push %ebx\n pushl $0x33\n pushl $guest_user - guest_code + 0x8000\n"
	"iretl\n"
	"guest_user:\n"
	"guest_sti: sti\n pushf\n pop %ecx\n cli\n pushf\n pop %edx\n"
	"guest_hlt: hlt\n");

GUEST_FACT(.mode = PROTECTED, .cpuid = true)
{
	struct kvm_regs regs = get_regs(m);

	regs.rbx = 2;
	set_regs(m, regs);
	run_to_vector(m, GP);
	EXPECT_EQ(returns_to(m, true), AT(hlt));
	EXPECT_EQ(get_regs(m).rcx & (IF | VIF | IOPL), VIF);
	EXPECT_EQ(get_regs(m).rdx & (IF | VIF | IOPL), 0);
	restart(m);
	regs.rbx = VIP | 2;
	set_regs(m, regs);
	run_to_vector(m, GP);
	EXPECT_EQ(returns_to(m, true), AT(sti));
}
