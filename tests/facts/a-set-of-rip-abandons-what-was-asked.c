/* A client that moves RIP while it has an IN to answer: the instruction never ends, nothing is written to the register that it would have loaded. */
#include "fact.h"

GUEST(64,
	"mov $0x77, %eax\n"
	"in $0x10, %al\n"
	"hlt\n"
	"guest_elsewhere: out %al, $0x11");

GUEST_FACT(.mode = LONG)
{
	run_to_port(m, 0x10);
	EXPECT_EQ(get_regs(m).rip, CODE + 5);
	((uint8_t *)m->run)[m->run->io.data_offset] = 0x11;
	struct kvm_regs regs = get_regs(m);
	regs.rip = AT(elsewhere);
	set_regs(m, regs);
	run_to_port(m, 0x11);
	EXPECT_EQ(io_data(m), 0x77);
}
