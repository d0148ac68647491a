/* A client that moves RIP while an exit waits for its answer: the instruction never ends. It writes no register, skips nothing, and the rest of a wide read is not asked for; back at it, it starts again. */
#include "fact.h"

GUEST(64,
	"mov $0xb0000, %ebx\n"
	"guest_load: mov (%rbx), %eax\n hlt\n"
	"guest_wide: movups 0x10(%rbx), %xmm0\n hlt\n"
	"guest_rdmsr: rdmsr\n hlt\n"
	"guest_wrmsr: wrmsr\n hlt\n"
	"guest_call: vmcall\n hlt\n"
	"guest_input: in $0x10, %al\n hlt\n"
	"guest_elsewhere: out %al, $0x11\n hlt\n");

enum { UNKNOWN_MSR = 0x12345, MAP_GPA_RANGE = 12 };

static void ask_for_exits(struct machine *m)
{
	EXPECT_EQ(enable_cap(m->vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN), 0);
	EXPECT_EQ(enable_cap(m->vm, KVM_CAP_EXIT_HYPERCALL, 1 << MAP_GPA_RANGE), 0);
}

static void move(struct machine *m, uint64_t rip)
{
	struct kvm_regs regs = get_regs(m);
	regs.rip = rip;
	set_regs(m, regs);
}

/* The instruction leaves with its exit; answered, but left, it is nothing. Then it is there again. */
static void leave(struct machine *m, uint64_t rip, uint32_t reason, void *answer, size_t bytes)
{
	struct kvm_regs regs = get_regs(m);

	regs.rip = rip;
	regs.rax = MAP_GPA_RANGE;
	regs.rbx = DEVICE;
	regs.rcx = reason == KVM_EXIT_HYPERCALL ? 1 : UNKNOWN_MSR;
	regs.rdx = regs.rsi = 0;
	for (int i = 0; i < 2; i++) {
		set_regs(m, regs);
		run_to(m, reason);
		EXPECT_EQ(get_regs(m).rip, rip);
		memset(answer, 0x77, bytes);
		move(m, AT(elsewhere));
		run_to_port(m, 0x11);
		EXPECT_EQ(io_data(m), MAP_GPA_RANGE);
		EXPECT_EQ(get_regs(m).rdx, 0);
		EXPECT_EQ(get_regs(m).rip, AT(elsewhere));
	}
	set_regs(m, regs);
	run_to(m, reason);
	move(m, AT(elsewhere));
	move(m, rip);
	run_to(m, reason);
	EXPECT_EQ(get_regs(m).rip, rip);
	EXPECT_EQ(get_regs(m).rax, MAP_GPA_RANGE);
}

FACT_ON(RING3, "KVM finishes such an exit in whatever the client has loaded, unless it was a port's", .mode = LONG, .cpuid = true, .prepare = ask_for_exits)
{
	leave(m, AT(load), KVM_EXIT_MMIO, m->run->mmio.data, 8);
	leave(m, AT(wide), KVM_EXIT_MMIO, m->run->mmio.data, 8);
	leave(m, AT(rdmsr), KVM_EXIT_X86_RDMSR, &m->run->msr.data, 8);
	leave(m, AT(wrmsr), KVM_EXIT_X86_WRMSR, &m->run->msr.error, 1);
	leave(m, AT(call), KVM_EXIT_HYPERCALL, &m->run->hypercall.ret, 8);
	leave(m, AT(input), KVM_EXIT_IO, (uint8_t *)m->run + 4096, 1);
	move(m, AT(elsewhere));
	run_to_port(m, 0x11);
}
