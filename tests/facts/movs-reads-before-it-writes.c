/* A page fault at the source of MOVS comes before a violation of the destination's segment; without it, the violation comes. Nothing has been written in either case. */
#include "fact.h"

GUEST(32,
	"guest_byte: movsb\n"
	"guest_dword: movsl\n"
	"guest_repeated: rep movsl\n");

enum { DIRECTORY = 0x10000, ABSENT = 0x400000, LIMIT = 0x20fff };

static void try(struct machine *m, uint64_t rip, uint64_t source, uint64_t destination, int vector)
{
	struct kvm_regs regs = get_regs(m);

	regs.rip = rip;
	regs.rsi = source;
	regs.rdi = destination;
	regs.rcx = 4;
	regs.rsp = STACK;
	regs.rflags = 2;
	set_regs(m, regs);
	run_to_vector(m, vector);
	regs = get_regs(m);
	EXPECT_EQ(returns_to(m, true), rip);
	EXPECT_EQ(regs.rsi, source);
	EXPECT_EQ(regs.rdi, destination);
	EXPECT_EQ(regs.rcx, 4);
	EXPECT_EQ(peek64(m, LIMIT + 1), 0x1122334455667788);
}

GUEST_FACT(.mode = PROTECTED)
{
	uint64_t instructions[] = { AT(byte), AT(dword), AT(repeated) };
	struct kvm_sregs sregs = get_sregs(m);

	memset(m->memory + DIRECTORY, 0, 4096);
	put64(m, DIRECTORY, 0x83);
	put64(m, LIMIT + 1, 0x1122334455667788);
	sregs.cr3 = DIRECTORY;
	sregs.cr4 = 0x10;
	sregs.cr0 |= 0x80000000;
	sregs.es.g = 0;
	sregs.es.limit = LIMIT;
	for (size_t i = 0; i < 3; i++) {
		set_sregs(m, sregs);
		try(m, instructions[i], ABSENT, LIMIT + 1, 14);
		EXPECT_EQ(get_sregs(m).cr2, ABSENT);
		try(m, instructions[i], DATA, LIMIT + 1, 13);
		/* A segment that is null. */
		struct kvm_sregs null = sregs;
		null.es = (struct kvm_segment){ .unusable = 1 };
		set_sregs(m, null);
		try(m, instructions[i], ABSENT, DATA, 14);
		try(m, instructions[i], DATA, DATA, 13);
	}
}
