/* State of a vCPU that nobody has touched. RDX has the family that KVM says without CPUID. */
#include "fact.h"

NO_GUEST;

FACT(.mode = REAL)
{
	if (m->rounds > 100)
		return;
	int vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	struct machine fresh = { .kvm = m->kvm, .cpu = ioctl(vm, KVM_CREATE_VCPU, 0) };
	struct kvm_regs regs = get_regs(&fresh);
	struct kvm_sregs sregs = get_sregs(&fresh);
	struct kvm_debugregs debug;
	uint64_t value;

	EXPECT_EQ(regs.rip, 0xfff0);
	EXPECT_EQ(regs.rflags, 2);
	EXPECT_EQ(regs.rdx, 0x600);
	EXPECT_EQ(regs.rax | regs.rbx | regs.rcx | regs.rsp | regs.rbp | regs.rsi | regs.rdi | regs.r8 | regs.r15, 0);
	EXPECT_EQ(sregs.cs.selector, 0xf000);
	EXPECT_EQ(sregs.cs.base, 0xffff0000);
	EXPECT_EQ(sregs.cs.limit, 0xffff);
	EXPECT_EQ(sregs.cr0, 0x60000010);
	EXPECT_EQ(sregs.cr3 | sregs.cr4 | sregs.efer | sregs.cr8, 0);
	EXPECT_EQ(sregs.apic_base, 0xfee00900);
	EXPECT_EQ(sregs.gdt.limit, 0xffff);
	EXPECT_EQ(sregs.idt.limit, 0xffff);
	EXPECT_EQ(ioctl(fresh.cpu, KVM_GET_DEBUGREGS, &debug), 0);
	EXPECT_EQ(debug.dr6, 0xffff0ff0);
	EXPECT_EQ(debug.dr7, 0x400);
	EXPECT_EQ(get_msr(&fresh, 0x277, &value), 1);
	EXPECT_EQ(value, 0x0007040600070406);
	close(fresh.cpu);
	close(vm);
}
