/* KVM_SET_MSRS of EFER neither sets nor clears LMA: that is KVM_SET_SREGS's. */
#include "fact.h"

GUEST(64, "movabs $1, %rax\n out %al, $0x10");

FACT(.mode = LONG, .cpuid = true)
{
	uint64_t efer;

	EXPECT_EQ(set_msr(m, 0xc0000080, 0x901), 1);
	EXPECT_EQ(get_msr(m, 0xc0000080, &efer), 1);
	EXPECT_EQ(efer, 0xd01);
	EXPECT_EQ(get_sregs(m).efer, 0xd01);
}
