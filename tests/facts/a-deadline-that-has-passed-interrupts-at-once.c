/* IA32_TSC_DEADLINE at or before now: the interrupt is there at the next instruction boundary, and the MSR reads 0. */
#include "fact.h"

GUEST(64,
	"sti\n nop\n"
	"wrmsr\n"
	"guest_next: nop\n"
	"hlt\n"
	"guest_interrupt: out %al, $0x10\n"
	"mov $0x6e0, %ecx\n rdmsr\n out %al, $0x11\n"
	"mov $0x80b, %ecx\n xor %eax, %eax\n xor %edx, %edx\n wrmsr\n out %al, $0x12\n");

static void offer_deadlines(struct machine *m)
{
	static struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid;

	if (m->rounds)
		return;
	cpuid.head.nent = 256;
	EXPECT_EQ(ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), 0);
	for (uint32_t i = 0; i < cpuid.head.nent; i++)
		if (cpuid.entries[i].function == 1)
			cpuid.entries[i].ecx |= 1 << 24;
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_CPUID2, &cpuid), 0);
}

GUEST_FACT(.mode = LONG, .irqchip = KERNEL)
{
	struct kvm_sregs sregs;

	offer_deadlines(m);
	sregs = get_sregs(m);
	sregs.apic_base |= 0xc00;
	set_sregs(m, sregs);
	EXPECT_EQ(set_msr(m, 0x80f, 0x1ff), 1);
	EXPECT_EQ(set_msr(m, 0x832, 0x40000 | 0x40), 1);
	set_gate(m, 0x40, AT(interrupt), 0);
	struct kvm_regs regs = get_regs(m);
	/* 1, or the TSC of now. */
	uint64_t deadline = 1;
	if (m->rounds & 1)
		EXPECT_EQ(get_msr(m, 0x10, &deadline), 1);
	regs.rax = (uint32_t)deadline;
	regs.rdx = deadline >> 32;
	regs.rcx = 0x6e0;
	set_regs(m, regs);
	run_to_port(m, 0x10);
	EXPECT_EQ(peek64(m, get_regs(m).rsp), AT(next));
	run_to_port(m, 0x11);
	EXPECT_EQ(get_regs(m).rax, 0);
	EXPECT_EQ(get_regs(m).rdx, 0);
	run_to_port(m, 0x12);
}
