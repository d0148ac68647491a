/* With CR4.VME, INT n of a virtual-8086 program goes through its own table where the redirection bitmap is clear; with IOPL below 3 the image has VIF for IF and IOPL 3, and VIF goes. */
#include "v86.h"

V86_GUEST(
	"int $0x21\n"
	"guest_back: hlt\n"
	"guest_handler: hlt\n");

V86_FACT
{
	struct v86_frame frame = run_v86(m, VIF | NT, AT(handler) - CODE);

	EXPECT_EQ(frame.eip, AT(handler) - CODE);
	EXPECT_EQ(frame.eflags & (IF | VIF | NT | IOPL), NT);
	EXPECT_EQ(frame.esp, PROGRAM_SP - 6);
	EXPECT_EQ(program_word(m, 2) & (IF | NT | IOPL), IF | NT | IOPL);
	EXPECT_EQ(program_word(m, 4), CODE >> 4);
	EXPECT_EQ(program_word(m, 6), AT(back) - CODE);
	restart(m);
	/* With IOPL 3 the flag is IF itself. */
	frame = run_v86(m, IOPL | IF, AT(handler) - CODE);
	EXPECT_EQ(frame.eip, AT(handler) - CODE);
	EXPECT_EQ(frame.eflags & (IF | VIF | IOPL), IOPL);
	EXPECT_EQ(program_word(m, 2) & (IF | IOPL), IF | IOPL);
}
