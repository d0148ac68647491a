/* TF and an interrupt that becomes pending in the same instruction: first the trap, then, when its handler has returned, the interrupt. SPEC: SDM volume 3, "Prioritization of Concurrent Events". */
#include "fact.h"

GUEST(64,
	"mov $0x83f, %ecx\n mov $0x40, %eax\n xor %edx, %edx\n" /* SELF IPI */
	"pushf\n orl $0x300, (%rsp)\n popf\n"
	"guest_ipi: wrmsr\n"
	"guest_next: nop\n"
	"hlt\n"
	"guest_debug: push %rax\n mov $1, %al\n out %al, $0x10\n pop %rax\n andl $~0x100, 16(%rsp)\n iretq\n"
	"guest_interrupt: mov $2, %al\n out %al, $0x10\n mov $0x80b, %ecx\n xor %eax, %eax\n wrmsr\n out %al, $0x11");

GUEST_FACT(.mode = LONG, .irqchip = KERNEL, .cpuid = true)
{
	struct kvm_sregs sregs = get_sregs(m);

	sregs.apic_base |= 0xc00;
	set_sregs(m, sregs);
	EXPECT_EQ(set_msr(m, 0x80f, 0x1ff), 1);
	set_gate(m, 1, AT(debug), 0);
	set_gate(m, 0x40, AT(interrupt), 0);
	run_to_port(m, 0x10);
	EXPECT_EQ(io_data(m), 1);
	EXPECT_EQ(peek64(m, get_regs(m).rsp + 8), AT(next));
	run_to_port(m, 0x10);
	EXPECT_EQ(io_data(m), 2);
	EXPECT_EQ(peek64(m, get_regs(m).rsp), AT(next));
	run_to_port(m, 0x11);
}
