/* INS whose destination is no memory: the client is asked for the input and then given the write, nothing is lost. */
#include "fact.h"

GUEST(16,
	"mov $0xb000, %ax\n mov %ax, %es\n xor %di, %di\n mov $0x10, %dx\n"
	"insb\n"
	"hlt");

FACT(.mode = REAL)
{
	run_to_port(m, 0x10);
	EXPECT_EQ(m->run->io.direction, KVM_EXIT_IO_IN);
	((uint8_t *)m->run)[m->run->io.data_offset] = 0x5a;
	run_to(m, KVM_EXIT_MMIO);
	EXPECT(m->run->mmio.is_write);
	EXPECT_EQ(m->run->mmio.phys_addr, DEVICE);
	EXPECT_EQ(m->run->mmio.len, 1);
	EXPECT_EQ(m->run->mmio.data[0], 0x5a);
	run_to(m, KVM_EXIT_HLT);
	EXPECT_EQ(get_regs(m).rdi & 0xffff, 1);
}
