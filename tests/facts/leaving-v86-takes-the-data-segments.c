/* An exception out of virtual-8086 mode saves GS, FS, DS and ES on the monitor's stack and leaves null selectors there. */
#include "v86.h"

V86_GUEST(
	"guest_first: hlt\n");

V86_FACT
{
	struct v86_frame frame = run_v86(m, VIF, 0);
	struct kvm_sregs s = get_sregs(m);

	EXPECT_EQ(frame.eip, AT(first) - CODE);
	EXPECT_EQ(frame.cs, CODE >> 4);
	EXPECT_EQ(frame.ss, PROGRAM_STACK >> 4);
	EXPECT_EQ(frame.esp, PROGRAM_SP);
	EXPECT_EQ(frame.es, 0x2000);
	EXPECT_EQ(frame.ds, 0x3000);
	EXPECT_EQ(frame.fs, 0x4000);
	EXPECT_EQ(frame.gs, 0x5000);
	EXPECT_EQ(s.es.selector | s.ds.selector | s.fs.selector | s.gs.selector, 0);
	EXPECT(s.es.unusable && s.ds.unusable && s.fs.unusable && s.gs.unusable);
	EXPECT_EQ(s.cs.selector, CODE32);
	EXPECT_EQ(s.ss.selector, DATA32);
	EXPECT_EQ(get_regs(m).rflags & (VM | VIF | IF), VIF);
}
