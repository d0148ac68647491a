/* A data breakpoint and an interrupt at the end of one instruction (the one behind STI): first #DB, then, when its handler has returned, the interrupt; none is lost. */
#include "fact.h"

GUEST(64,
	"mov $0x83f, %ecx\n mov $0x40, %eax\n xor %edx, %edx\n wrmsr\n" /* SELF IPI */
	"sti\n"
	"mov %eax, 0x20000\n"
	"guest_next: nop\n"
	"hlt\n"
	"guest_debug: out %al, $0x10\n iretq\n"
	"guest_interrupt: mov $0x80b, %ecx\n xor %eax, %eax\n wrmsr\n out %al, $0x11");

GUEST_FACT(.mode = LONG, .irqchip = KERNEL, .cpuid = true)
{
	struct kvm_sregs sregs = get_sregs(m);
	struct kvm_debugregs debug = { .db = { DATA }, .dr6 = 0xffff0ff0, .dr7 = 0x400 | 0xd0002 }; /* writes of four bytes */

	sregs.apic_base |= 0xc00;
	set_sregs(m, sregs);
	EXPECT_EQ(set_msr(m, 0x80f, 0x1ff), 1);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_DEBUGREGS, &debug), 0);
	set_gate(m, 1, AT(debug), 0);
	set_gate(m, 0x40, AT(interrupt), 0);
	run_to_port(m, 0x10);
	EXPECT_EQ(peek64(m, get_regs(m).rsp), AT(next));
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_DEBUGREGS, &debug), 0);
	EXPECT_EQ(debug.dr6 & 0xf, 1);
	run_to_port(m, 0x11);
	EXPECT_EQ(peek64(m, get_regs(m).rsp), AT(next));
}
