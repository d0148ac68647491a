/* With CR4.VME, INT n whose bit in the redirection bitmap is set is #GP(0) with IOPL below 3. */
#include "v86.h"

V86_GUEST(
	"guest_int: int $0x22\n"
	"hlt\n");

V86_FACT
{
	struct v86_frame frame = run_v86(m, VIF, 0);

	EXPECT_EQ(frame.eip, AT(int) - CODE);
	EXPECT_EQ(frame.eflags & (IF | VIF | IOPL), VIF);
}
