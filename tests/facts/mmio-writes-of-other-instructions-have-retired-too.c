/* Whatever instruction writes to a device, it has retired at the exit: PUSH, a read-modify-write (whose read comes first, at the instruction), a string store. Wide data goes in pieces of eight bytes, all behind the instruction. */
#include "fact.h"

GUEST(64,
	"mov $0xb0000, %rbx\n lea 8(%rbx), %rsp\n"
	"push %rbx\n"
	"guest_modify: incl (%rbx)\n"
	"guest_string: mov %rbx, %rdi\n stosb\n"
	"guest_wide: movups %xmm0, (%rbx)\n"
	"guest_end: hlt");

static void writes(struct machine *m, uint64_t address, uint32_t bytes, uint64_t rip)
{
	run_to(m, KVM_EXIT_MMIO);
	EXPECT(m->run->mmio.is_write);
	EXPECT_EQ(m->run->mmio.phys_addr, address);
	EXPECT_EQ(m->run->mmio.len, bytes);
	EXPECT_EQ(get_regs(m).rip, rip);
}

FACT(.mode = LONG, .cpuid = true)
{
	writes(m, DEVICE, 8, AT(modify));
	EXPECT_EQ(get_regs(m).rsp, DEVICE);
	run_to(m, KVM_EXIT_MMIO);
	EXPECT(!m->run->mmio.is_write);
	EXPECT_EQ(get_regs(m).rip, AT(modify));
	*(uint32_t *)m->run->mmio.data = 41;
	writes(m, DEVICE, 4, AT(string));
	EXPECT_EQ(*(uint32_t *)m->run->mmio.data, 42);
	writes(m, DEVICE, 1, AT(wide));
	EXPECT_EQ(get_regs(m).rdi, DEVICE + 1);
	writes(m, DEVICE, 8, AT(end));
	writes(m, DEVICE + 8, 8, AT(end));
	run_to(m, KVM_EXIT_HLT);
}
