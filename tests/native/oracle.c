/*
 * oracle: runs single instructions on the host's processor and reports what they did.
 *
 * usage: oracle FILE
 *
 * FILE is shared with the parent (oracle.h has its layout). The parent writes a batch of cases, then one byte to our stdin;
 * we run the batch and answer one byte on stdout. The code slots and the data pages of FILE appear at fixed linear
 * addresses, so that addresses and results are the same as in the software machine.
 *
 * A fault of the instruction arrives as a signal on the alternate stack. The handler notes the vector, the error code,
 * CR2, RSP and RFLAGS, and lets sigreturn continue at exit_fault with our own stack: the other registers are saved in
 * one place for both outcomes. Nothing of a case is left to sigreturn that a kernel may refuse or change (an RSP that is
 * not canonical, NT). After start-up a seccomp filter allows read, write, rt_sigreturn and exit only.
 *
 * The loop uses no thread-local data: a kernel that does not know FSGSBASE puts bases of its own in at any switch.
 */
#define _GNU_SOURCE
#include "oracle.h"

#include <asm/ldt.h>
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#define NOT_ENTERED_VECTOR 251u /* a fault of our own code on the way into the case */

static struct shared *sh;
static u8 image[DATA_WRITABLE] __attribute__((aligned(4096))); /* what the data pages hold before the case */
static volatile u32 current, ticks;

/* Fixed addresses (the program is not position-independent): the stubs reach them without a register. */
struct input *in_ptr __attribute__((used));
struct output *out_ptr __attribute__((used));
u64 host_rsp __attribute__((used)), host_fs __attribute__((used)), target __attribute__((used)), scratch_rax __attribute__((used));
u32 default_mxcsr __attribute__((used)) = 0x1f80;
struct { u32 offset; unsigned short selector; } target32 __attribute__((used, aligned(8)));
u64 entry __attribute__((used));

u64 fault_rsp __attribute__((used)), fault_rflags __attribute__((used));

void run_case(void);
extern char exit_stub[], exit_fault[], save_rest[];

__asm__(
	".text\n.globl run_case\n.globl exit_stub\n.globl exit_fault\n.globl save_rest\n"
	"run_case:\n"
	" push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
	" mov %rsp, host_rsp\n"
	" mov in_ptr, %rdi\n"
	" mov $7, %eax\n xor %edx, %edx\n xrstor64 192(%rdi)\n"
	" mov 144(%rdi), %rax\n wrfsbase %rax\n mov 152(%rdi), %rax\n wrgsbase %rax\n"
	" mov 128(%rdi), %rax\n mov %rax, target\n mov %eax, target32\n"
	" movq $enter64, entry\n cmpl $64, 176(%rdi)\n je 1f\n"
	" movq $enter32, entry\n mov 180(%rdi), %eax\n mov %ax, target32 + 4\n"
	" mov $0x2b, %eax\n cmpl $32, 176(%rdi)\n je 2f\n mov $0x17, %eax\n mov %eax, %ss\n"
	"2: mov %eax, %ds\n mov %eax, %es\n"
	"1:\n"
	" pushq 136(%rdi)\n popfq\n"
	" mov 0(%rdi), %rax\n mov 8(%rdi), %rcx\n mov 16(%rdi), %rdx\n mov 24(%rdi), %rbx\n mov 32(%rdi), %rsp\n mov 40(%rdi), %rbp\n mov 48(%rdi), %rsi\n"
	" mov 64(%rdi), %r8\n mov 72(%rdi), %r9\n mov 80(%rdi), %r10\n mov 88(%rdi), %r11\n mov 96(%rdi), %r12\n mov 104(%rdi), %r13\n mov 112(%rdi), %r14\n mov 120(%rdi), %r15\n"
	" mov 56(%rdi), %rdi\n"
	/* Flags are the case's own by now: choose the way without changing them. */
	" jmp *entry\n"
	"enter64:\n jmp *target\n"
	"enter32:\n ljmp *target32\n"
	/* After a fault RSP is ours already, and the flags are those that the signal frame had. */
	"exit_fault:\n"
	" mov %rax, scratch_rax\n"
	" mov out_ptr, %rax\n"
	" mov %rcx, 8(%rax)\n"
	" mov fault_rsp, %rcx\n mov %rcx, 32(%rax)\n"
	" mov fault_rflags, %rcx\n mov %rcx, 136(%rax)\n"
	" jmp save_rest\n"
	"exit_stub:\n"
	" mov %rax, scratch_rax\n"
	" mov out_ptr, %rax\n"
	" mov %rcx, 8(%rax)\n mov %rsp, 32(%rax)\n"
	" mov host_rsp, %rsp\n"
	" pushfq\n popq 136(%rax)\n"
	"save_rest:\n"
	" mov %rdx, 16(%rax)\n mov %rbx, 24(%rax)\n mov %rbp, 40(%rax)\n mov %rsi, 48(%rax)\n mov %rdi, 56(%rax)\n"
	" mov %r8, 64(%rax)\n mov %r9, 72(%rax)\n mov %r10, 80(%rax)\n mov %r11, 88(%rax)\n mov %r12, 96(%rax)\n mov %r13, 104(%rax)\n mov %r14, 112(%rax)\n mov %r15, 120(%rax)\n"
	" pushq $0x202\n popfq\n"
	" mov scratch_rax, %rcx\n mov %rcx, 0(%rax)\n"
	" rdfsbase %rcx\n mov %rcx, 144(%rax)\n rdgsbase %rcx\n mov %rcx, 152(%rax)\n"
	" xor %ecx, %ecx\n mov %ecx, %ds\n mov %ecx, %es\n mov $0x2b, %ecx\n mov %ecx, %ss\n"
	" mov host_fs, %rcx\n wrfsbase %rcx\n xor %ecx, %ecx\n wrgsbase %rcx\n"
	" mov %rax, %rdi\n mov $7, %eax\n xor %edx, %edx\n xsave64 192(%rdi)\n"
	" fninit\n ldmxcsr default_mxcsr\n vzeroupper\n"
	" pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
	" ret\n");

/* Without the C library's wrappers, which look at thread-local data. */
static long system_call(long number, long a, const void *b, long c)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
	/* RFLAGS.AC and the guest's FS base are still in force here: aligned accesses only, no thread-local data. */
	ucontext_t *uc = context;
	greg_t *g = uc->uc_mcontext.gregs;
	u64 rip = g[REG_RIP], cs = g[REG_CSGSFS] & 0xffff;
	(void)info;

	if (number == SIGALRM) {
		if ((cs == 0x33 && (rip < CODE_ADDRESS || rip >= CODE_ADDRESS + CODE_SIZE)) || ++ticks < 3)
			return;
		out_ptr->vector = TIMEOUT_VECTOR;
	} else {
		/* Cases that should be refused run with TF set: step through our own code up to the instruction. */
		if (g[REG_TRAPNO] == 1 && ((rip >= (u64)run_case && rip < (u64)exit_fault) || rip == in_ptr->rip))
			return;
		u32 vector = number == SIGSYS ? SYSTEM_CALL_VECTOR : (u32)g[REG_TRAPNO];
		if (cs == 0x33 && rip >= (u64)run_case && rip < (u64)save_rest) {
			vector = NOT_ENTERED_VECTOR; /* the host does not let us into this case, or not out of it */
		} else if (cs == 0x33 && rip - 0x400000 < 0x1000000) {
			/* Between two cases: a defect of this program or of what it was given. out_ptr may still be the case before. */
			sh->header.own_rip = rip;
			sh->header.own_address = g[REG_CR2];
			sh->header.own_vector = vector;
			system_call(SYS_exit_group, 3, 0, 0);
		}
		out_ptr->vector = vector;
		out_ptr->error_code = (u32)g[REG_ERR];
		out_ptr->cr2 = g[REG_CR2];
	}
	out_ptr->signal = number;
	out_ptr->rip = rip;
	fault_rsp = g[REG_RSP];
	fault_rflags = g[REG_EFL];
	g[REG_RSP] = host_rsp;
	g[REG_RIP] = (u64)exit_fault;
	g[REG_CSGSFS] = (g[REG_CSGSFS] & 0x0000ffffffff0000) | 0x33 | 0x2bL << 48;
	g[REG_EFL] &= ~0x100UL;
}

static void run_once(struct input *in, struct output *out)
{
	u8 *data = (u8 *)DATA_ADDRESS;

	if (in->patch_length) {
		memcpy(data + in->patch_offset, in->patch, in->patch_length);
		memcpy(image + in->patch_offset, in->patch, in->patch_length);
	}
	out->rip = in->next_rip;
	out->vector = NO_VECTOR;
	out->error_code = 0;
	out->cr2 = 0;
	out->diffs = 0;
	out->signal = 0;
	in_ptr = in;
	out_ptr = out;
	ticks = 0;
	run_case();
	for (u32 line = 0; line < DATA_WRITABLE / LINE; line++) {
		if (!memcmp(data + line * LINE, image + line * LINE, LINE))
			continue;
		if (out->diffs < MAX_DIFFS) {
			out->diff_line[out->diffs] = line;
			memcpy(out->diff_bytes[out->diffs], data + line * LINE, LINE);
		}
		out->diffs++;
		memcpy(data + line * LINE, sh->data + line * LINE, LINE);
	}
	if (in->patch_length) {
		memcpy(data + in->patch_offset, sh->data + in->patch_offset, in->patch_length);
		memcpy(image + in->patch_offset, sh->data + in->patch_offset, in->patch_length);
	}
}

static int canonical(u64 a)
{
	return (u64)((s64)(a << 16) >> 16) == a;
}

/* A switch of threads has put the kernel's own bases in. */
static int bases_lost(const struct input *in, const struct output *out)
{
	return sh->header.quirks & QUIRK_BASES_LOST && ((out->fs_base == host_fs && in->fs_base != host_fs) || (out->gs_base == GS_MARK && in->gs_base != GS_MARK));
}

/* The outcome may be that of an interrupt in the middle of the case, on a host that shows it. */
static int doubtful(const struct input *in, const struct output *out)
{
	if (sh->header.quirks & QUIRK_NT_LOST && in->rflags & ~out->rflags & 0x4000)
		return 1;
	return sh->header.quirks & QUIRK_STACK_CHECKED && (out->vector == 13 || out->vector == NOT_ENTERED_VECTOR) && !(canonical(in->gpr[4]) && canonical(out->gpr[4]));
}

static void run_one(u32 i)
{
	struct input *in = &sh->in[i];
	struct output *out = &sh->out[i];

	if (in->skip) {
		memset(out, 0, sizeof *out);
		out->vector = SKIPPED_VECTOR;
		return;
	}
	run_once(in, out);
	for (int n = 0, sure = 0; n < 1000 && !sure; n++) {
		static struct output before;

		if (!bases_lost(in, out) && !doubtful(in, out))
			break;
		memcpy(&before, out, sizeof before);
		run_once(in, out);
		/* What the case itself does comes twice in a row; an interrupt does not. */
		sure = !bases_lost(in, out) && !memcmp(&before, out, offsetof(struct output, xsave));
	}
}

static void *map(unsigned long at, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	void *p = mmap((void *)at, bytes, prot, flags | (at ? MAP_FIXED_NOREPLACE : 0), fd, offset);

	if (p == MAP_FAILED || (at && p != (void *)at)) {
		fprintf(stderr, "oracle: cannot map %zu bytes at %#lx: %s\n", bytes, at, strerror(errno));
		_exit(2);
	}
	return p;
}

/* Two code segments, because the slots need 128 KiB, and one for data and stack: the data pages are at 0x4000 in it. */
static void make_segments(void)
{
	struct user_desc d[3] = {
		{ .entry_number = 0, .base_addr = CODE_ADDRESS, .limit = 0xffff, .contents = MODIFY_LDT_CONTENTS_CODE, .useable = 1 },
		{ .entry_number = 1, .base_addr = CODE_ADDRESS + 0x10000, .limit = 0xffff, .contents = MODIFY_LDT_CONTENTS_CODE, .useable = 1 },
		{ .entry_number = 2, .base_addr = DATA_ADDRESS - 0x4000, .limit = 0xffff, .contents = MODIFY_LDT_CONTENTS_DATA, .useable = 1 },
	};

	for (int i = 0; i < 3; i++)
		if (syscall(SYS_modify_ldt, 0x11, &d[i], sizeof d[i]))
			perror("oracle: modify_ldt"); /* 16-bit cases will fault */
}

static void restrict_system_calls(void)
{
#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xc000003e, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_rt_sigreturn), ALLOW(SYS_exit_group), ALLOW(SYS_restart_syscall),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		perror("oracle: seccomp"); /* not fatal: it is a safety net */
}

int main(int argc, char **argv)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGALRM };
	static u8 stack[65536] __attribute__((aligned(64)));
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof stack };
	struct itimerval timer = { { 0, 50000 }, { 0, 50000 } };
	int fd = argc == 2 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;
	char byte;

	if (fd < 0) {
		fprintf(stderr, "usage: oracle FILE\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sh = map(0, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	map(CODE_ADDRESS, CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, offsetof(struct shared, code));
	map(DATA_ADDRESS, DATA_WRITABLE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map(DATA_ADDRESS + DATA_WRITABLE, DATA_SIZE - DATA_WRITABLE, PROT_READ, MAP_SHARED, fd, offsetof(struct shared, data) + DATA_WRITABLE);
	/* Every page is present before a case can touch it: error codes then show the architecture, not demand paging. */
	mlock((void *)DATA_ADDRESS, DATA_SIZE);
	mlock((void *)CODE_ADDRESS, CODE_SIZE);

	sigaltstack(&ss, NULL);
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
		struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART };
		if (signals[i] != SIGALRM)
			sigaddset(&action.sa_mask, SIGALRM);
		sigaction(signals[i], &action, NULL);
	}
	__asm__ volatile("rdfsbase %0" : "=r"(host_fs));
	syscall(SYS_arch_prctl, ARCH_SET_GS, GS_MARK);
	setitimer(ITIMER_REAL, &timer, NULL);
	make_segments();
	sh->header.exit_address = (u64)exit_stub;
	sh->header.magic = 0x3367696e52;
	restrict_system_calls();
	if (write(1, "r", 1) != 1)
		return 2;
	while (system_call(SYS_read, 0, &byte, 1) == 1) {
		u32 a = 0, b, c = 0, d;

		__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory"); /* serialise: the parent wrote new code */
		memcpy((u8 *)DATA_ADDRESS, sh->data, DATA_WRITABLE);
		memcpy(image, sh->data, DATA_WRITABLE);
		/* done counts finished cases: if a case ends this process, the parent knows which. */
		for (current = 0; current < sh->header.count; current++) {
			sh->header.done = current;
			run_one(current);
		}
		sh->header.done = sh->header.count;
		if (system_call(SYS_write, 1, "d", 1) != 1)
			break;
	}
	system_call(SYS_exit_group, 0, 0, 0);
	return 0;
}
