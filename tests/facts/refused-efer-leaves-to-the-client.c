/* With KVM_MSR_EXIT_REASON_INVAL a refused WRMSR goes to the client, also of an MSR that the processor has itself, and leaves nothing behind. */
#include "fact.h"

GUEST(64,
	"mov $0xc0000080, %ecx\n mov $-1, %eax\n mov %eax, %edx\n"
	"guest_wrmsr: wrmsr\n"
	"out %al, $0x10");

static void ask_for_invalid(struct machine *m)
{
	EXPECT_EQ(enable_cap(m->vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL), 0);
}

FACT(.mode = LONG, .cpuid = true, .prepare = ask_for_invalid)
{
	run_to(m, KVM_EXIT_X86_WRMSR);
	EXPECT_EQ(m->run->msr.index, 0xc0000080);
	EXPECT_EQ(m->run->msr.reason, KVM_MSR_EXIT_REASON_INVAL);
	EXPECT_EQ(m->run->msr.data, ~0ull);
	EXPECT_EQ(get_regs(m).rip, AT(wrmsr));
	EXPECT_EQ(get_sregs(m).efer, 0x500);
	m->run->msr.error = m->rounds & 1;
	if (m->rounds & 1)
		run_to_vector(m, 13);
	else
		run_to_port(m, 0x10);
}
