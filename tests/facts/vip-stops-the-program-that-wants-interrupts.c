/* While VIP is set, STI, and POPF of an image with IF, are #GP(0) in a virtual-8086 program with CR4.VME; CLI and an image without IF are not. */
#include "v86.h"

V86_GUEST(
	"cli\n push $0\n popf\n"
	"push $0x0200\n"
	"guest_popf: popf\n"
	"guest_sti: sti\n"
	"hlt\n");

V86_FACT
{
	struct v86_frame frame = run_v86(m, VIP, 0);

	EXPECT_EQ(frame.eip, AT(popf) - CODE);
	EXPECT_EQ(frame.esp, PROGRAM_SP - 2);
	EXPECT_EQ(frame.eflags & (VIF | VIP), VIP);
	restart(m);
	m->memory[AT(program)] = 0xeb; /* jmp guest_sti */
	m->memory[AT(program) + 1] = (uint8_t)(AT(sti) - AT(program) - 2);
	frame = run_v86(m, VIP, 0);
	EXPECT_EQ(frame.eip, AT(sti) - CODE);
	EXPECT_EQ(frame.eflags & (VIF | VIP), VIP);
}
