/* After a write to a device, the instruction has retired; after a read, RIP is still at it. */
#include "fact.h"

GUEST(64,
	"mov $0xb0000, %rbx\n"
	"guest_write: mov %eax, (%rbx)\n"
	"guest_read: mov 4(%rbx), %ecx\n"
	"guest_next: hlt");

FACT(.mode = LONG)
{
	run_to(m, KVM_EXIT_MMIO);
	EXPECT(m->run->mmio.is_write);
	EXPECT_EQ(m->run->mmio.phys_addr, DEVICE);
	EXPECT_EQ(get_regs(m).rip, AT(read));
	run_to(m, KVM_EXIT_MMIO);
	EXPECT(!m->run->mmio.is_write);
	EXPECT_EQ(get_regs(m).rip, AT(read));
	*(uint32_t *)m->run->mmio.data = 0x12345678;
	run_to(m, KVM_EXIT_HLT);
	EXPECT_EQ(get_regs(m).rcx, 0x12345678);
	EXPECT_EQ(get_regs(m).rip, AT(next) + 1);
}
