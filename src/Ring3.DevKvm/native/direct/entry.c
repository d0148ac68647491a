/*
 * The ways between the client and the host. Everything here, and what it calls before host_begin(), runs with the client's FS: no
 * thread-local variable, no errno, no function of the C library.
 */
#include "direct.h"

#include <asm/prctl.h>
#include <linux/audit.h>
#include <linux/prctl.h>
#include <sys/auxv.h>
#include <sys/syscall.h>

#ifndef SYS_USER_DISPATCH
#define SYS_USER_DISPATCH 2
#endif
#define HWCAP2_FSGSBASE 2

uintptr_t r3_zone_begin;
static bool has_fsgsbase;
__attribute__((used)) static const char selector = 1; /* SYSCALL_DISPATCH_FILTER_BLOCK */

void entry_prepare(void)
{
	has_fsgsbase = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;
}

uintptr_t fs_read(void)
{
	uintptr_t base;

	if (LIKELY(has_fsgsbase))
		__asm__ volatile("rdfsbase %0" : "=r"(base));
	else
		raw_call(SYS_arch_prctl, ARCH_GET_FS, (long)&base, 0, 0, 0, 0);
	return base;
}

void fs_write(uintptr_t base)
{
	if (LIKELY(has_fsgsbase))
		__asm__ volatile("wrfsbase %0" : : "r"(base) : "memory");
	else
		raw_call(SYS_arch_prctl, ARCH_SET_FS, (long)base, 0, 0, 0, 0);
}

bool dispatch_on(void)
{
	long begin = (long)r3_zone_begin, bytes = 0x7ffffffff000 - begin;
	return raw_call(SYS_prctl, PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, begin, bytes, (long)&selector, 0) == 0;
}

/*
 * window_call: a signal between entry_window_begin and the instruction is held and goes to entry_window_abort (signals.c), so a call never
 * waits while a signal does. Behind the instruction its result counts.
 *
 * finish: likewise a signal that comes after the last look at held_count. Below the context nothing of the stack is needed any more.
 */
#define GLOBAL(name) ".globl " #name "\n.hidden " #name "\n"
_Static_assert(SYS_clone == 56 && SYS_prctl == 157 && SYS_rt_sigreturn == 15 && SYS_sigaltstack == 131, "the numbers below");
_Static_assert(PR_SET_SYSCALL_USER_DISPATCH == 59 && PR_SYS_DISPATCH_ON == 1, "the numbers below");
_Static_assert(offsetof(struct kernel_ucontext, stack) == 16 && offsetof(struct kernel_ucontext, registers) + REG_RSP * sizeof(greg_t) == 160, "vfork_call");
__asm__(".text\n"
	GLOBAL(window_call)
	GLOBAL(finish)
	GLOBAL(resume)
	GLOBAL(vfork_call)
	GLOBAL(leave_begin)
	GLOBAL(leave_for)
	GLOBAL(copy_guarded)
	GLOBAL(entry_restorer)
	GLOBAL(entry_copy_instruction)
	GLOBAL(entry_copy_failed)
	GLOBAL(entry_window_begin)
	GLOBAL(entry_window_syscall)
	GLOBAL(entry_window_abort)
	GLOBAL(entry_finish_begin)
	GLOBAL(entry_finish_syscall)
	GLOBAL(entry_finish_retry)
	".p2align 4\n"
	"window_call:\n"
	"	mov %rdi, %r11\n"
	"	mov (%rsi), %rax\n"
	"	mov 8(%rsi), %rdi\n"
	"	mov 24(%rsi), %rdx\n"
	"	mov 32(%rsi), %r10\n"
	"	mov 40(%rsi), %r8\n"
	"	mov 48(%rsi), %r9\n"
	"	mov 16(%rsi), %rsi\n"
	"entry_window_begin:\n"
	"	cmpl $0, (%r11)\n"
	"	jne entry_window_abort\n"
	"entry_window_syscall:\n"
	"	syscall\n"
	"	ret\n"
	"entry_window_abort:\n"
	"	mov $-100000, %rax\n"
	"	ret\n"
	".p2align 4\n"
	"finish:\n"
	"entry_finish_begin:\n"
	"	cmpl $0, (%rdi)\n"
	"	jne entry_finish_retry\n"
	"	mov %rsi, %rsp\n"
	"	mov $15, %eax\n"
	"entry_finish_syscall:\n"
	"	syscall\n"
	"	ud2\n"
	"entry_finish_retry:\n"
	"	lea -8(%rsi), %rsp\n"
	"	and $-16, %rsp\n"
	"	push %rdi\n"
	"	push %rsi\n"
	"	call deliver_held\n"
	"	pop %rsi\n"
	"	pop %rdi\n"
	"	jmp finish\n"
	".p2align 4\n"
	"resume:\n"
	"	mov %rdi, %rsp\n"
	"	mov $15, %eax\n"
	"	syscall\n"
	"	ud2\n"
	/* The child has this stack as well, and nothing on it may change for the parent: it goes on in the client at once. RAX of the context is 0. */
	".p2align 4\n"
	"vfork_call:\n"
	"	mov %r8, %r9\n"
	"	mov %rcx, %r8\n"
	"	mov %rdx, %r10\n"
	"	mov %rsi, %rdx\n"
	"	xor %esi, %esi\n"
	"	mov $56, %eax\n"
	"	syscall\n"
	"	test %rax, %rax\n"
	"	jz 1f\n"
	"	ret\n"
	"1:	mov 160(%r9), %rsp\n" /* the alternate stack can be changed from another stack only */
	"	lea 16(%r9), %rdi\n"
	"	xor %esi, %esi\n"
	"	mov $131, %eax\n"
	"	syscall\n"
	"	mov $157, %eax\n" /* dispatch_on() */
	"	mov $59, %edi\n"
	"	mov $1, %esi\n"
	"	mov r3_zone_begin(%rip), %rdx\n"
	"	mov $0x7ffffffff000, %r10\n"
	"	sub %rdx, %r10\n"
	"	lea selector(%rip), %r8\n"
	"	syscall\n"
	"	mov %r9, %rsp\n"
	"	mov $15, %eax\n"
	"	syscall\n"
	"	ud2\n"
	".p2align 4\n"
	"leave_begin:\n"
	"	mov %rbx, (%rdi)\n"
	"	mov %rbp, 8(%rdi)\n"
	"	mov %r12, 16(%rdi)\n"
	"	mov %r13, 24(%rdi)\n"
	"	mov %r14, 32(%rdi)\n"
	"	mov %r15, 40(%rdi)\n"
	"	lea 8(%rsp), %rax\n"
	"	mov %rax, 48(%rdi)\n"
	"	mov (%rsp), %rax\n"
	"	mov %rax, 56(%rdi)\n"
	"	xor %eax, %eax\n"
	"	ret\n"
	".p2align 4\n"
	"leave_for:\n"
	"	mov (%rdi), %rbx\n"
	"	mov 8(%rdi), %rbp\n"
	"	mov 16(%rdi), %r12\n"
	"	mov 24(%rdi), %r13\n"
	"	mov 32(%rdi), %r14\n"
	"	mov 40(%rdi), %r15\n"
	"	mov 48(%rdi), %rsp\n"
	"	mov $1, %eax\n"
	"	jmp *56(%rdi)\n"
	".p2align 4\n"
	"entry_restorer:\n"
	"	mov $15, %eax\n"
	"	syscall\n"
	".p2align 4\n"
	"copy_guarded:\n"
	"	mov %rdx, %rcx\n"
	"	mov $1, %eax\n"
	"entry_copy_instruction:\n"
	"	rep movsb\n"
	"	ret\n"
	"entry_copy_failed:\n"
	"	xor %eax, %eax\n"
	"	ret\n");

/* Whether the signal came in dispatch or host: then the stack is the block's, in client code (the vDSO's as well) it never is. */
static bool on_own_stack(const struct direct *self, const struct kernel_ucontext *context)
{
	return ((uintptr_t)context->registers[REG_RSP] & ~(BLOCK_BYTES - 1)) == ((uintptr_t)self & ~(BLOCK_BYTES - 1));
}

__attribute__((used)) void deliver_held(struct direct *self, struct kernel_ucontext *context);
__attribute__((used)) void deliver_held(struct direct *self, struct kernel_ucontext *context)
{
	/* All signals are blocked since the first was held, except what somebody may have sent of FAULT_SIGNALS. */
	struct held held = self->held[0];

	for (int i = 1; i < self->held_count; i++)
		self->held[i - 1] = self->held[i];
	self->held_count--;
	deliver(self, context, held.sig, &held.info);
}

/* In dispatch: everything is blocked until the way back to the client, which delivers. */
static void hold(struct direct *self, int sig, const siginfo_t *info, struct kernel_ucontext *context)
{
	greg_t *rip = context->registers + REG_RIP;

	if (self->held_count < MOST_HELD) {
		self->held[self->held_count].sig = sig;
		self->held[self->held_count].info = *info;
		self->held_count++;
	}
	context->mask |= ~(FAULT_SIGNALS | SIGNAL_BIT(RUNTIME_SIGNAL));
	if (*rip >= (greg_t)entry_window_begin && *rip <= (greg_t)entry_window_syscall)
		*rip = (greg_t)entry_window_abort;
	else if (*rip >= (greg_t)entry_finish_begin && *rip <= (greg_t)entry_finish_syscall)
		*rip = (greg_t)entry_finish_retry;
}

struct kernel_action {
	handler_function handler;
	unsigned long flags;
	const void *restorer;
	kernel_sigset mask;
};

/* The C library refuses to set an action for the signals that it keeps for itself. */
void direct_internal_action(int sig, const struct sigaction *action)
{
	struct kernel_action a = { action->sa_sigaction, (unsigned)action->sa_flags | FLAG_RESTORER, entry_restorer, to_kernel(&action->sa_mask) };
	raw_call(SYS_rt_sigaction, sig, (long)&a, 0, sizeof a.mask, 0, 0);
}

static void system_call(struct direct *self, const siginfo_t *info, struct kernel_ucontext *context)
{
	kernel_sigset blocked = context->mask & FAULT_SIGNALS;

	self->client_fs = fs_read();
	/* The host's own instructions may raise them. */
	if (UNLIKELY(blocked))
		raw_call(SYS_rt_sigprocmask, SIG_UNBLOCK, (long)&blocked, 0, sizeof blocked, 0, 0);
	if (LIKELY(info->si_arch == AUDIT_ARCH_X86_64))
		dispatch(self, context, info->si_syscall);
	else
		context->registers[REG_RAX] = -ENOSYS; /* int $0x80 */
}

/* Code of the host outside the zone: a second core, in a child. */
static void call_of_host(const siginfo_t *info, struct kernel_ucontext *context)
{
	greg_t *r = context->registers;
	stack_t own = context->stack;

	if (info->si_syscall == SYS_rt_sigreturn) {
		*context = *(struct kernel_ucontext *)r[REG_RSP];
		context->stack = own;
	} else {
		r[REG_RAX] = raw_call(info->si_syscall, r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]);
	}
}

/* The kernel's action for every signal that the client handles, for SIGSYS, and behind the core's handler for faults. */
void direct_handler(int sig, siginfo_t *info, void *ucontext)
{
	struct direct *self = direct_self();
	struct kernel_ucontext *context = ucontext;
	uintptr_t rip = (uintptr_t)context->registers[REG_RIP];

	if (UNLIKELY(!block_is_known(self))) { /* a thread of the host, or the first one before the client begins */
		if (sig == RUNTIME_SIGNAL)
			signals_stop(sig, info, ucontext);
		else
			signals_trampoline(sig, info, ucontext);
		return;
	}
	if (LIKELY(sig == SIGSYS && info->si_code == SYS_USER_DISPATCH)) {
		if (UNLIKELY(self->in_host)) {
			call_of_host(info, context);
			return;
		}
		system_call(self, info, context);
		finish(self, context);
	}
	if (UNLIKELY(sig == SIGSYS)) { /* sent, or of a filter: handled like others, whose actions block everything */
		kernel_sigset all = ~(FAULT_SIGNALS | SIGNAL_BIT(RUNTIME_SIGNAL));
		raw_call(SYS_rt_sigprocmask, SIG_BLOCK, (long)&all, 0, sizeof all, 0, 0);
	}
	if (UNLIKELY(rip == (uintptr_t)entry_copy_instruction && (sig == SIGSEGV || sig == SIGBUS) && info->si_code > 0)) {
		context->registers[REG_RIP] = (greg_t)entry_copy_failed;
	} else if (self->in_host) {
		if (sig == RUNTIME_SIGNAL)
			signals_stop(sig, info, ucontext);
		else
			signals_trampoline(sig, info, ucontext);
	} else if (sig == RUNTIME_SIGNAL) {
		uintptr_t before = fs_read();
		host_begin(self);
		signals_stop(sig, info, ucontext);
		host_end(self);
		fs_write(before);
	} else if (on_own_stack(self, context)) {
		hold(self, sig, info, context);
	} else if (!(UNLIKELY(r3_cpuid) && sig == SIGSEGV && cpuid_emulate(info, ucontext))) {
		self->client_fs = fs_read();
		deliver(self, context, sig, info);
		finish(self, context);
	}
}
