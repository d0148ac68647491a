/*
 * kvm_oracle: runs the cases of tests/native/oracle.c in a VM, as a client of /dev/kvm: under `ring3 exec` in libring3-core.so.
 *
 * usage: kvm_oracle FILE
 *
 * FILE and the protocol are those of oracle.c, but the exit's address is the parent's to choose: no page is mapped there, and the page fault of
 * its fetch is how a case ends. The VM has one vCPU, and page tables with the sandbox at oracle.c's linear addresses for CPL 3. In the upper half
 * are the supervisor's pages: descriptor tables, a stack, and one HLT for each vector. So an exception ends in KVM_EXIT_HLT, and shows as hardware
 * delivers it: the vector by RIP, the frame with its error code on the supervisor's stack, CR2 in the special registers. A stepped case that does
 * not fault ends in KVM_EXIT_DEBUG; one that faults may also be there before its handler's HLT.
 *
 * FLIP=N in the environment changes one bit of every Nth result, for a parent that shall notice each; standard error says how many at the end.
 */
#define _GNU_SOURCE
#include "oracle.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <unistd.h>

/* Guest-physical addresses; those of the supervisor's pages are also their offsets from SUPERVISOR. */
#define GDT 0x1000UL
#define IDT 0x2000UL
#define TSS 0x3000UL
#define HANDLERS 0x4000UL
#define STACK_TOP 0x6000UL
#define SUPERVISOR_END 0x6000UL
#define TABLES 0x8000UL
#define CODE_GPA 0x100000UL
#define DATA_GPA 0x140000UL
#define MEMORY_BYTES 0x200000UL
#define SUPERVISOR 0xffff800000000000UL

#define KERNEL_CODE 0x10
#define USER_CODE32 0x23
#define USER_DATA 0x2b
#define USER_CODE64 0x33
#define TASK 0x40
#define WORD_DATA 0x17
#define WORD_CODE1 0x0f
#define RFLAGS_TF 0x100ul

static struct shared *sh;
static u8 *memory;
static int kvm, vm, vcpu;
static struct kvm_run *run;
static struct kvm_sregs initial;
static volatile sig_atomic_t ticks;
static unsigned long flip_every, flip_next, flipped;

static void die(const char *what)
{
	fprintf(stderr, "kvm_oracle: %s: %s\n", what, strerror(errno));
	_exit(2);
}

#define MUST(call) \
	do { \
		if ((call) < 0) \
			die(#call); \
	} while (0)

static u64 *table(unsigned n)
{
	return (u64 *)(memory + TABLES + n * 4096);
}

static u64 table_address(unsigned n)
{
	return TABLES + n * 4096;
}

static void build_tables(void)
{
	enum { PRESENT = 1, WRITE = 2, USER = 4, ACCESSED = 0x20 };
	const u64 nx = 1ull << 63;

	table(0)[0] = table_address(1) | PRESENT | WRITE | USER | ACCESSED;
	table(1)[CODE_ADDRESS >> 30] = table_address(2) | PRESENT | WRITE | USER | ACCESSED;
	table(2)[CODE_ADDRESS >> 21 & 511] = table_address(3) | PRESENT | WRITE | USER | ACCESSED;
	for (u64 at = 0; at < CODE_SIZE; at += 4096)
		table(3)[(CODE_ADDRESS + at) >> 12 & 511] = (CODE_GPA + at) | PRESENT | USER | ACCESSED;
	for (u64 at = 0; at < DATA_SIZE; at += 4096)
		table(3)[(DATA_ADDRESS + at) >> 12 & 511] = (DATA_GPA + at) | PRESENT | (at < DATA_WRITABLE ? WRITE : 0) | USER | ACCESSED | nx;
	table(0)[256] = table_address(4) | PRESENT | WRITE | ACCESSED;
	table(4)[0] = table_address(5) | PRESENT | WRITE | ACCESSED;
	table(5)[0] = table_address(6) | PRESENT | WRITE | ACCESSED;
	for (u64 at = GDT; at < SUPERVISOR_END; at += 4096)
		table(6)[at >> 12] = at | PRESENT | WRITE | ACCESSED;
}

static void build_descriptors(void)
{
	u64 *gdt = (u64 *)(memory + GDT), *idt = (u64 *)(memory + IDT), stack = SUPERVISOR + STACK_TOP, task = SUPERVISOR + TSS;

	gdt[KERNEL_CODE / 8] = 0x00af9b000000ffff;
	gdt[USER_CODE32 / 8] = 0x00cffb000000ffff;
	gdt[USER_DATA / 8] = 0x00cff3000000ffff;
	gdt[USER_CODE64 / 8] = 0x00affb000000ffff;
	gdt[TASK / 8] = 0x67 | (task & 0xffffff) << 16 | 0x8bull << 40 | (task >> 24 & 0xff) << 56;
	gdt[TASK / 8 + 1] = task >> 32;
	memcpy(memory + TSS + 4, &stack, 8);
	*(u16 *)(memory + TSS + 102) = 0x68; /* no I/O permission bitmap */
	for (u64 vector = 0; vector < 256; vector++) {
		u64 handler = SUPERVISOR + HANDLERS + vector;
		u64 access = 0x8e | (vector == 3 || vector == 4 ? 0x60 : 0); /* INT3 and INTO may be used at CPL 3 */

		idt[2 * vector] = (handler & 0xffff) | KERNEL_CODE << 16 | access << 40 | (handler >> 16 & 0xffff) << 48;
		idt[2 * vector + 1] = handler >> 32;
	}
	memset(memory + HANDLERS, 0xf4, 256);
}

static struct kvm_segment segment(u16 selector, u64 base, u32 limit, u8 type)
{
	return (struct kvm_segment){ .selector = selector, .base = base, .limit = limit, .type = type, .present = 1, .dpl = 3, .s = 1, .g = limit > 0xfffff };
}

static void create(void)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[256];
	} cpuid = { .head.nent = 256 };
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY_BYTES };
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs[0].value = 7 };
	int bytes;

	MUST(kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC));
	MUST(vm = ioctl(kvm, KVM_CREATE_VM, 0));
	memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("memory");
	build_tables();
	build_descriptors();
	region.userspace_addr = (u64)memory;
	MUST(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
	MUST(vcpu = ioctl(vm, KVM_CREATE_VCPU, 0));
	MUST(bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		die("kvm_run");
	MUST(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid.head));
	MUST(ioctl(vcpu, KVM_SET_CPUID2, &cpuid.head));
	MUST(ioctl(vcpu, KVM_SET_XCRS, &xcrs));

	MUST(ioctl(vcpu, KVM_GET_SREGS, &initial));
	initial.cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
	initial.cr4 = 0x50ea0;    /* OSXSAVE FSGSBASE UMIP OSXMMEXCPT OSFXSR PGE PAE */
	initial.efer = 0xd01;     /* NXE LMA LME SCE */
	initial.cr3 = TABLES;
	initial.cr2 = 0;
	initial.gdt = (struct kvm_dtable){ .base = SUPERVISOR + GDT, .limit = TASK + 15 };
	initial.idt = (struct kvm_dtable){ .base = SUPERVISOR + IDT, .limit = 256 * 16 - 1 };
	initial.tr = (struct kvm_segment){ .selector = TASK, .base = SUPERVISOR + TSS, .limit = 0x67, .type = 0xb, .present = 1 };
	initial.ldt = (struct kvm_segment){ .unusable = 1 };
	initial.ds = initial.es = initial.fs = initial.gs = (struct kvm_segment){ .unusable = 1 };
}

static void set_special(const struct input *in)
{
	struct kvm_sregs s = initial;

	s.ss = segment(USER_DATA, 0, 0xffffffff, 3);
	s.ss.db = 1;
	if (in->bits == 64) {
		s.cs = segment(USER_CODE64, 0, 0xffffffff, 0xb);
		s.cs.l = 1;
	} else if (in->bits == 32) {
		s.cs = segment(USER_CODE32, 0, 0xffffffff, 0xb);
		s.cs.db = 1;
		s.ds = s.es = s.ss;
	} else {
		s.cs = segment((u16)in->code_selector, CODE_ADDRESS + (in->code_selector == WORD_CODE1 ? 0x10000 : 0), 0xffff, 0xb);
		s.ss = s.ds = s.es = segment(WORD_DATA, DATA_ADDRESS - 0x4000, 0xffff, 3);
	}
	s.fs.base = in->fs_base;
	s.gs.base = in->gs_base;
	MUST(ioctl(vcpu, KVM_SET_SREGS, &s));
}

/* XSTATE_BV may say that a component is in its initial state, whatever its bytes are. SPEC: SDM volume 1, "Operation of XSAVE". */
static void get_xsave(u8 *to)
{
	struct kvm_xsave x;
	u64 present;

	MUST(ioctl(vcpu, KVM_GET_XSAVE, &x));
	memcpy(to, x.region, XSAVE_BYTES);
	memcpy(&present, to + 512, 8);
	if (!(present & 1)) {
		memset(to, 0, 24);
		to[0] = 0x7f, to[1] = 3;
		memset(to + 32, 0, 128);
	}
	if (!(present & 2))
		memset(to + 160, 0, 256);
	if (!(present & 4))
		memset(to + 576, 0, 256);
}

static void get_state(struct output *out)
{
	struct kvm_regs r;
	struct kvm_sregs s;
	const u64 *top = (const u64 *)(memory + STACK_TOP);
	u64 vector;

	MUST(ioctl(vcpu, KVM_GET_REGS, &r));
	MUST(ioctl(vcpu, KVM_GET_SREGS, &s));
	memcpy(out->gpr, (u64[]){ r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi }, 64);
	memcpy(out->gpr + 8, (u64[]){ r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15 }, 64);
	out->rip = r.rip;
	out->rflags = r.rflags;
	out->fs_base = s.fs.base;
	out->gs_base = s.gs.base;
	get_xsave(out->xsave);
	if (out->vector == TIMEOUT_VECTOR)
		return;
	vector = r.rip - (SUPERVISOR + HANDLERS) - (run->exit_reason == KVM_EXIT_HLT);
	if ((run->exit_reason != KVM_EXIT_HLT && run->exit_reason != KVM_EXIT_DEBUG) || vector > 255) {
		if (run->exit_reason != KVM_EXIT_DEBUG)
			out->vector = 0x100 + run->exit_reason;
		return;
	}
	/* SS, RSP, RFLAGS, CS, RIP, and the error code of those vectors that have one. */
	out->gpr[4] = top[-2];
	out->rflags = top[-3];
	out->rip = top[-5];
	if (vector == 14 && out->rip == sh->header.exit_address) {
		out->rip = sh->in[out - sh->out].next_rip;
		return;
	}
	out->vector = (u32)vector;
	out->signal = SIGSEGV;
	if (vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
		out->error_code = (u32)top[-6];
	out->cr2 = s.cr2;
}

/* A repeated string instruction is stepped by iteration. */
static int goes_on(const struct input *in)
{
	struct kvm_regs r;

	if (run->exit_reason != KVM_EXIT_DEBUG)
		return 0;
	MUST(ioctl(vcpu, KVM_GET_REGS, &r));
	return r.rip == in->rip;
}

static void enter(const struct input *in, struct output *out)
{
	static u32 step;

	if (in->step != step) {
		struct kvm_guest_debug debug = { .control = in->step ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP : 0 };

		MUST(ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug));
		step = in->step;
	}
	ticks = 0;
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) == 0) {
			if (goes_on(in) && ticks < 10)
				continue;
			return;
		}
		if (errno != EINTR && errno != EAGAIN)
			die("KVM_RUN");
		if (ticks >= 10) {
			out->vector = TIMEOUT_VECTOR;
			return;
		}
	}
}

static void flip(const struct input *in, struct output *out)
{
	unsigned long n = flipped;

	/* Of bytes that should be refused the exception alone is compared; they run with TF natively. */
	if (in->rflags & RFLAGS_TF)
		return;
	flip_next = 0;
	flipped++;
	switch (n % 10) {
	case 0: out->gpr[n / 10 % 16] ^= 2; break;
	case 1: out->rip ^= 1; break;
	case 2: out->rflags ^= 0x400; break;
	case 3: out->xsave[160 + n / 10 % 16 * 16 + 15] ^= 0x80; break;
	case 4: out->xsave[576 + n / 10 % 16 * 16 + 15] ^= 0x80; break;
	case 5: out->xsave[0] ^= 1; break;
	case 6: out->xsave[24] ^= 1; break;
	case 7: out->xsave[32 + n / 10 % 8 * 16 + 7] ^= 0x80; break;
	case 8: out->fs_base ^= 0x20; break;
	default: out->diffs++; break;
	}
}

static void run_one(const struct input *in, struct output *out)
{
	u8 *data = memory + DATA_GPA;
	struct kvm_regs r = {
		.rax = in->gpr[0], .rcx = in->gpr[1], .rdx = in->gpr[2], .rbx = in->gpr[3],
		.rsp = in->gpr[4], .rbp = in->gpr[5], .rsi = in->gpr[6], .rdi = in->gpr[7],
		.r8 = in->gpr[8], .r9 = in->gpr[9], .r10 = in->gpr[10], .r11 = in->gpr[11],
		.r12 = in->gpr[12], .r13 = in->gpr[13], .r14 = in->gpr[14], .r15 = in->gpr[15],
		.rip = in->rip, .rflags = (in->rflags & ~RFLAGS_TF) | 2,
	};
	struct kvm_xsave x = { 0 };
	static u8 image[DATA_WRITABLE];

	memset(out, 0, sizeof *out);
	out->vector = NO_VECTOR;
	if (in->skip) {
		out->vector = SKIPPED_VECTOR;
		return;
	}
	memcpy(data, sh->data, DATA_SIZE);
	memcpy(data + in->patch_offset, in->patch, in->patch_length);
	memcpy(image, data, DATA_WRITABLE);
	memcpy(x.region, in->xsave, XSAVE_BYTES);
	set_special(in);
	MUST(ioctl(vcpu, KVM_SET_REGS, &r));
	MUST(ioctl(vcpu, KVM_SET_XSAVE, &x));
	enter(in, out);
	get_state(out);
	for (u32 line = 0; line < DATA_WRITABLE / LINE; line++) {
		if (!memcmp(data + line * LINE, image + line * LINE, LINE))
			continue;
		if (out->diffs < MAX_DIFFS) {
			out->diff_line[out->diffs] = line;
			memcpy(out->diff_bytes[out->diffs], data + line * LINE, LINE);
		}
		out->diffs++;
	}
	if (flip_every && ++flip_next >= flip_every)
		flip(in, out);
}

static void on_tick(int number)
{
	(void)number;
	ticks++;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_tick }; /* no SA_RESTART: KVM_RUN returns */
	struct itimerval timer = { { 0, 500000 }, { 0, 500000 } };
	int fd = argc == 2 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;
	char byte;

	if (fd < 0) {
		fprintf(stderr, "usage: kvm_oracle FILE\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	flip_every = strtoul(getenv("FLIP") ?: "0", NULL, 10);
	sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (sh == MAP_FAILED)
		die(argv[1]);
	create();
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	sh->header.magic = 0x3367696e52;
	if (write(1, "r", 1) != 1)
		return 2;
	for (;;) {
		ssize_t got = read(0, &byte, 1);

		if (got < 0 && errno == EINTR)
			continue;
		if (got != 1)
			break;
		/* Pages that are the same stay untouched: what the vCPU has decoded from them is still right. */
		for (u64 at = 0; at < CODE_SIZE; at += 4096)
			if (memcmp(memory + CODE_GPA + at, sh->code + at, 4096))
				memcpy(memory + CODE_GPA + at, sh->code + at, 4096);
		for (u32 n = 0; n < sh->header.count; n++) {
			sh->header.done = n;
			run_one(&sh->in[n], &sh->out[n]);
		}
		sh->header.done = sh->header.count;
		if (write(1, "d", 1) != 1)
			break;
	}
	if (flip_every)
		fprintf(stderr, "kvm_oracle: %lu results changed\n", flipped);
	return 0;
}
