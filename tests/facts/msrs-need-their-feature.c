/* SPEC_CTRL, PRED_CMD and ARCH_CAPABILITIES exist for a guest whose CPUID has their feature only. */
#include "fact.h"

GUEST(64, "rdmsr\n out %al, $0x10");

GUEST_FACT(.mode = LONG)
{
	static const uint32_t msrs[] = { 0x48, 0x49, 0x10a, 0xc0000104 };

	for (int i = 0; i < 4; i++) {
		restart(m);
		struct kvm_regs regs = get_regs(m);
		regs.rcx = msrs[i];
		set_regs(m, regs);
		run_to_vector(m, 13);
		EXPECT_EQ(returns_to(m, true), CODE);
	}
}
