/* A data breakpoint within REP LODS traps after the iteration that hits, with RIP at the instruction and the rest of the count left. */
#include "fact.h"

GUEST(64,
	"mov $0x9000, %esi\n mov $10, %ecx\n lea 3(%rsi), %rbx\n mov %rbx, %dr0\n mov $0x30401, %eax\n mov %rax, %dr7\n"
	"guest_lods: rep lodsb\n"
	"hlt");

GUEST_FACT(.mode = LONG)
{
	run_to_vector(m, 1);
	EXPECT_EQ(returns_to(m, false), AT(lods));
	EXPECT_EQ(get_regs(m).rcx, 6);
	EXPECT_EQ(get_regs(m).rsi, 0x9004);
}
