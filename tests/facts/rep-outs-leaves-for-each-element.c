/* REP OUTS has one exit an element, with count 1: clients that print one byte an exit lose none. */
#include "fact.h"

GUEST(16,
	"mov $0x9000, %si\n mov $5, %cx\n mov $0x10, %dx\n"
	"rep outsb\n"
	"hlt");

FACT(.mode = REAL)
{
	memcpy(m->memory + 0x9000, "Hello", 5);
	for (int i = 0; i < 5; i++) {
		run_to_port(m, 0x10);
		EXPECT_EQ(m->run->io.count, 1);
		EXPECT_EQ(m->run->io.size, 1);
		EXPECT_EQ(io_data(m), "Hello"[i]);
		EXPECT_EQ(get_regs(m).rcx & 0xffff, 4 - i);
	}
	run_to(m, KVM_EXIT_HLT);
}
