/* Guests in virtual-8086 mode: the monitor at CODE sets CR4.VME and goes to the program, whose segment begins at CODE too. */
#ifndef V86_H
#define V86_H

#include "fact.h"

enum { VIF = 1 << 19, VIP = 1 << 20, IOPL = 3 << 12, NT = 1 << 14, VM = 1 << 17, PROGRAM_STACK = 0x70000, PROGRAM_SP = 0x800, REDIRECTED = 0x21, GP = 13 };

/* The program starts at guest_program with EFLAGS from EBX. */
#define V86_GUEST(text) \
	GUEST(32, \
		"mov %cr4, %eax\n or $1, %eax\n mov %eax, %cr4\n" \
		"pushl $0x5000\n pushl $0x4000\n pushl $0x3000\n pushl $0x2000\n" \
		"pushl $0x7000\n pushl $0x800\n push %ebx\n pushl $0x800\n pushl $guest_program - guest_code\n" \
		"iretl\n" \
		".code16\n guest_program:\n" text)

/* The frame of a vector with an error code. */
struct v86_frame { uint32_t error, eip, cs, eflags, esp, ss, es, ds, fs, gs; };

/* Runs the program until it gets to the stub of #GP. Only REDIRECTED has a clear bit in the redirection bitmap; it goes to guest_code + `handler`. */
static inline struct v86_frame run_v86(struct machine *m, uint32_t eflags, uint64_t handler)
{
	enum { BITMAP = TSS + 0x68 };
	struct kvm_sregs sregs = get_sregs(m);
	struct kvm_regs regs = get_regs(m);
	struct v86_frame frame;

	sregs.tr.limit = 0x68 + 32;
	set_sregs(m, sregs);
	memset(m->memory + BITMAP, 0xff, 33);
	m->memory[BITMAP + REDIRECTED / 8] &= (uint8_t)~(1 << REDIRECTED % 8);
	m->memory[TSS + 0x66] = 0x68 + 32;
	m->memory[4 * REDIRECTED] = (uint8_t)handler;
	m->memory[4 * REDIRECTED + 1] = (uint8_t)(handler >> 8);
	m->memory[4 * REDIRECTED + 2] = 0;
	m->memory[4 * REDIRECTED + 3] = CODE >> 12;
	regs.rbx = eflags | VM | 2;
	set_regs(m, regs);
	run_to_vector(m, GP);
	memcpy(&frame, m->memory + get_regs(m).rsp, sizeof frame);
	EXPECT_EQ(frame.error, 0);
	EXPECT_EQ(frame.eflags & VM, VM);
	return frame;
}

/* A word of the program's stack, by its distance from the top. */
static inline uint16_t program_word(struct machine *m, int below_top)
{
	return (uint16_t)peek64(m, (uint64_t)(PROGRAM_STACK + PROGRAM_SP - below_top));
}

#define V86_FACT GUEST_FACT(.mode = PROTECTED, .cpuid = true)

#endif
