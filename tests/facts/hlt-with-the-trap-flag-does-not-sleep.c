/* The trap of a HLT wakes it. */
#include "fact.h"

GUEST(64, "hlt\n guest_next: nop");

GUEST_FACT(.mode = LONG, .irqchip = KERNEL)
{
	struct kvm_regs regs = get_regs(m);

	regs.rflags |= TF;
	set_regs(m, regs);
	run_to_vector(m, 1);
	EXPECT_EQ(returns_to(m, false), AT(next));
}
