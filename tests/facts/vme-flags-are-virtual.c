/* With CR4.VME and IOPL below 3, CLI, STI, PUSHF, POPF and IRET of 16 bits have VIF for IF; IF and IOPL stay as they are. */
#include "v86.h"

V86_GUEST(
	"sti\n pushf\n cli\n pushf\n"             /* at 2: IF; at 4: none */
	"push $0x0200\n popf\n pushf\n"           /* at 6: IF */
	"push $0x0002\n push %cs\n push $guest_next - guest_code\n iret\n"
	"guest_next: pushf\n"                     /* at 8: none */
	"push $0x0202\n push %cs\n push $guest_last - guest_code\n iret\n"
	"guest_last: hlt\n");

V86_FACT
{
	struct v86_frame frame = run_v86(m, 0, 0);

	EXPECT_EQ(frame.eip, AT(last) - CODE);
	EXPECT_EQ(frame.esp, PROGRAM_SP - 8);
	EXPECT_EQ(frame.eflags & (IF | VIF | VIP | IOPL), VIF);
	EXPECT_EQ(program_word(m, 2) & (IF | IOPL), IF | IOPL);
	EXPECT_EQ(program_word(m, 4) & (IF | IOPL), IOPL);
	EXPECT_EQ(program_word(m, 6) & (IF | IOPL), IF | IOPL);
	EXPECT_EQ(program_word(m, 8) & (IF | IOPL), IOPL);
}
