/* The guest's TF and the client's single step are one KVM_EXIT_DEBUG an instruction. */
#include "fact.h"

GUEST(64, "nop\n nop\n nop\n out %al, $0x10");

GUEST_FACT(.mode = LONG)
{
	struct kvm_regs regs = get_regs(m);
	struct kvm_guest_debug step = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };

	regs.rflags |= TF;
	set_regs(m, regs);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &step), 0);
	for (uint64_t i = 1; i <= 3; i++) {
		run_to(m, KVM_EXIT_DEBUG);
		EXPECT_EQ(m->run->debug.arch.exception, 1);
		EXPECT_EQ(m->run->debug.arch.pc, CODE + i);
		EXPECT(m->run->debug.arch.dr6 & 1 << 14);
	}
	run_to_port(m, 0x10);
}
