/* A data breakpoint that MOV SS hits is held back over the next instruction: with INT3 there, the trap comes before the first instruction of the breakpoint's handler. */
#include "fact.h"

GUEST(64,
	"movw $0x10, 0x9000\n"
	"mov $0x9000, %ebx\n mov %rbx, %dr0\n mov $0xf0401, %eax\n mov %rax, %dr7\n" /* four bytes, reads and writes */
	"mov (%rbx), %ss\n"
	"int3\n"
	"hlt");

GUEST_FACT(.mode = LONG)
{
	run_to_vector(m, 1);
	EXPECT_EQ(returns_to(m, false), STUBS + 4 * 3);
	struct kvm_debugregs debug;
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_DEBUGREGS, &debug), 0);
	EXPECT_EQ(debug.dr6 & 0xf, 1);
}
