/*
 * After OUT, RIP stays at the instruction until the next KVM_RUN, which skips it if the client left RIP alone. Port 0x7e is skipped at once (KVM_X86_QUIRK_OUT_7E_INC_RIP).
 * SPEC: api.rst, KVM_CAP_DISABLE_QUIRKS2.
 */
#include "fact.h"

GUEST(64,
	"guest_first: out %al, $0x10\n"
	"guest_second: out %al, $0x7e\n"
	"guest_third: out %al, $0x11\n"
	"hlt\n"
	"guest_elsewhere: out %al, $0x12");

GUEST_FACT(.mode = LONG)
{
	run_to_port(m, 0x10);
	struct kvm_regs regs = get_regs(m);
	EXPECT_EQ(regs.rip, AT(first));
	/* A SET of what is there moves nothing. */
	set_regs(m, regs);
	run_to_port(m, 0x7e);
	EXPECT_EQ(get_regs(m).rip, AT(third));
	run_to_port(m, 0x11);
	EXPECT_EQ(get_regs(m).rip, AT(third));

	/* Elsewhere is elsewhere, not an instruction further. */
	regs.rip = AT(elsewhere);
	set_regs(m, regs);
	run_to_port(m, 0x12);
	EXPECT_EQ(get_regs(m).rip, AT(elsewhere));

	/* With immediate_exit the instruction ends, and no other is carried out. */
	m->run->immediate_exit = 1;
	EXPECT_ERROR(ioctl(m->cpu, KVM_RUN, 0), EINTR);
	m->run->immediate_exit = 0;
	EXPECT_EQ(get_regs(m).rip, AT(elsewhere) + 2);
}
