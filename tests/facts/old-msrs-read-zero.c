/* MSRs that guests of all times read and KVM keeps nothing in: P5's machine check, performance control, AMD's DE_CFG kin. They are there, and read 0. */
#include "fact.h"

GUEST(64, "rdmsr\n out %al, $0x10");

FACT(.mode = LONG, .irqchip = KERNEL, .cpuid = true)
{
	static const uint32_t msrs[] = { 0, 1, 0x199, 0xc0011023 };

	for (size_t i = 0; i < sizeof msrs / sizeof *msrs; i++) {
		uint64_t value = ~0ull;
		struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rsp = STACK, .rcx = msrs[i], .rax = 0x77, .rdx = 0x77 };
		EXPECT_EQ(get_msr(m, msrs[i], &value), 1);
		EXPECT_EQ(value, 0);
		set_regs(m, regs);
		run_to_port(m, 0x10);
		EXPECT_EQ(get_regs(m).rax, 0);
		EXPECT_EQ(get_regs(m).rdx, 0);
	}
}
