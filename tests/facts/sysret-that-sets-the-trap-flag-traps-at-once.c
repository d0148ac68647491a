/* SYSRET that loads TF: the trap comes before the first instruction of the program. */
#include "fact.h"

GUEST(64,
	"lea guest_user(%rip), %rcx\n mov $0x3102, %r11\n"
	"sysretq\n"
	"guest_user: out %al, $0x10");

FACT_ON(RING3, "compared with no processor so far", .mode = LONG, .cpuid = true)
{
	struct kvm_sregs sregs = get_sregs(m);

	EXPECT_EQ(set_msr(m, 0xc0000081, 0x33ull << 48 | (uint64_t)CODE64 << 32), 1);
	sregs.efer |= 1;
	set_sregs(m, sregs);
	run_to_vector(m, 1);
	EXPECT_EQ(returns_to(m, false), AT(user));
	EXPECT_EQ(peek64(m, get_regs(m).rsp + 8), CODE64_USER);
}
