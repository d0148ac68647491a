/* A guest of one instruction runs: what the others rely on. */
#include "fact.h"

GUEST(16, "hlt");

FACT(.mode = REAL)
{
	run_to(m, KVM_EXIT_HLT);
	EXPECT_EQ(get_regs(m).rip, CODE + 1);
}
