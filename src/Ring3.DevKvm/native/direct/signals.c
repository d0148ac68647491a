/*
 * The client's signals: actions are in the interposer's table, as for every client; frames are made here, as the kernel makes them, because
 * the kernel's own are on the alternate stack of the host.
 */
#include "direct.h"

#include <string.h>
#include <sys/syscall.h>

#define RED_ZONE 128
#define EFLAGS_DF 0x400
#define EFLAGS_TF 0x100
#define EFLAGS_RF 0x10000
#define SHORTEST_STACK 2048
#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif
#define FPU_MAGIC 0x46505853u
#define FPU_LEGACY_BYTES 512

/* What the kernel's frame has of the floating-point state: struct _fpx_sw_bytes is in its last bytes that the processor leaves alone. */
size_t fpu_bytes(const void *fpu)
{
	uint32_t software[2];

	if (!fpu)
		return 0;
	__builtin_memcpy(software, (const char *)fpu + FPU_LEGACY_BYTES - 48, sizeof software);
	return software[0] == FPU_MAGIC ? software[1] : FPU_LEGACY_BYTES;
}

/* A mask for client code. */
static kernel_sigset to_host(kernel_sigset mask)
{
	return signals_kernel_mask(mask) & ~SIGNAL_BIT(SIGSYS);
}

static bool on_client_stack(const struct direct *self, uintptr_t at)
{
	return at > (uintptr_t)self->client_stack.ss_sp && at - (uintptr_t)self->client_stack.ss_sp <= self->client_stack.ss_size;
}

/* The default action for a fault that cannot be delivered; the instruction, executed again, raises it again. */
void end_by_fault(void)
{
	raw_call(SYS_tkill, raw_call(SYS_gettid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
}

/* The context becomes the first instruction of the client's handler, and what it was is in a frame on the client's stack. */
void deliver(struct direct *self, struct kernel_ucontext *context, int sig, siginfo_t *info)
{
	struct sigaction action;
	struct kernel_frame frame;
	kernel_sigset mask;

	if (UNLIKELY(r3_confined || r3_cpuid)) {
		host_begin(self);
		signals_take_carried(sig, info);
		bool taken = signals_take_blocked(sig, info, (ucontext_t *)context);
		host_end(self);
		if (taken)
			return;
	}
	if (stands_in(sig))
		info->si_signo = sig = SIGSEGV;
	if (!signals_plain_action(sig, &action)) {
		host_begin(self);
		bool handled = signals_take_action(sig, info, &action);
		host_end(self);
		if (!handled)
			return;
	}
	uintptr_t sp = (uintptr_t)context->registers[REG_RSP] - RED_ZONE;
	if ((action.sa_flags & SA_ONSTACK) && !(self->client_stack.ss_flags & SS_DISABLE) && !on_client_stack(self, sp))
		sp = (uintptr_t)self->client_stack.ss_sp + self->client_stack.ss_size;
	size_t fpu = fpu_bytes(context->fpu);
	uintptr_t fpu_at = (sp - fpu) & ~63ul;
	uintptr_t at = ((fpu_at - sizeof frame) & ~15ul) - 8;

	frame.restorer = (const void *)action.sa_restorer;
	frame.context = *context;
	frame.context.fpu = fpu ? (void *)fpu_at : NULL;
	frame.context.stack = self->client_stack;
	if (!(self->client_stack.ss_flags & SS_DISABLE))
		frame.context.stack.ss_flags = on_client_stack(self, (uintptr_t)context->registers[REG_RSP]) ? SS_ONSTACK : 0;
	frame.info = *info;
	frame.context.mask = signals_client_mask(context->mask);
	if (!copy_guarded((void *)at, &frame, sizeof frame) || (fpu && !copy_guarded((void *)fpu_at, context->fpu, fpu))) {
		end_by_fault();
		return;
	}
	mask = frame.context.mask | to_kernel(&action.sa_mask);
	if (!(action.sa_flags & SA_NODEFER))
		mask |= SIGNAL_BIT(sig);
	context->mask = to_host(mask);
	if (self->client_stack.ss_flags & (int)SS_AUTODISARM)
		self->client_stack = (stack_t){ .ss_flags = SS_DISABLE };
	context->fpu = NULL; /* as it is in a new program */
	greg_t *r = context->registers;
	r[REG_RIP] = (greg_t)action.sa_sigaction;
	r[REG_RSP] = (greg_t)at;
	r[REG_RAX] = 0;
	r[REG_RDI] = sig;
	r[REG_RSI] = (greg_t)(at + offsetof(struct kernel_frame, info));
	r[REG_RDX] = (greg_t)(at + offsetof(struct kernel_frame, context));
	r[REG_EFL] &= ~(EFLAGS_DF | EFLAGS_TF | EFLAGS_RF);
}

/* rt_sigreturn of the client: the context becomes what its frame says. The stack is the host's in any case. */
bool client_sigreturn(struct direct *self, struct kernel_ucontext *context)
{
	struct kernel_ucontext frame;
	stack_t own = context->stack;

	if (!copy_guarded(&frame, (const void *)context->registers[REG_RSP], sizeof frame))
		return false;
	/* As the kernel: what sigaltstack() would refuse is not taken. */
	client_sigaltstack(self, &frame, &frame.stack, NULL);
	*context = frame;
	context->stack = own;
	context->mask = to_host(frame.mask);
	return true;
}

long client_sigaltstack(struct direct *self, const struct kernel_ucontext *context, const stack_t *new, stack_t *old)
{
	bool on = !(self->client_stack.ss_flags & (SS_DISABLE | (int)SS_AUTODISARM)) && on_client_stack(self, (uintptr_t)context->registers[REG_RSP]);
	stack_t wanted = { 0 }, before = self->client_stack;

	if (new && !copy_guarded(&wanted, new, sizeof wanted))
		return -EFAULT;
	if (new) {
		int mode = wanted.ss_flags & ~(int)SS_AUTODISARM;
		if (on)
			return -EPERM;
		if (mode != SS_DISABLE && mode != SS_ONSTACK && mode != 0)
			return -EINVAL;
		if (mode == SS_DISABLE) {
			wanted.ss_sp = NULL;
			wanted.ss_size = 0;
		} else if (wanted.ss_size < SHORTEST_STACK) {
			return -ENOMEM;
		}
		wanted.ss_flags &= ~SS_ONSTACK;
		self->client_stack = wanted;
	}
	if (on)
		before.ss_flags |= SS_ONSTACK;
	return !old || copy_guarded(old, &before, sizeof before) ? 0 : -EFAULT;
}

long client_sigprocmask(struct kernel_ucontext *context, int how, const void *new, void *old, size_t size)
{
	kernel_sigset set = 0, before = signals_client_mask(context->mask);

	if (size != sizeof set)
		return -EINVAL;
	if (new) {
		if (!copy_guarded(&set, new, sizeof set))
			return -EFAULT;
		if (how == SIG_BLOCK)
			set |= before;
		else if (how == SIG_UNBLOCK)
			set = before & ~set;
		else if (how != SIG_SETMASK)
			return -EINVAL;
		/* The way back to the client sets it. */
		context->mask = to_host(set & ~(SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(SIGSTOP)));
	}
	return !old || copy_guarded(old, &before, sizeof before) ? 0 : -EFAULT;
}

/* The kernel's struct sigaction. */
struct given_action {
	void *handler;
	unsigned long flags;
	void *restorer;
	kernel_sigset mask;
};

/* A child of vfork has actions of its own in the kernel and its parent's in the table. SIGSYS stays what it is. */
static long action_of_vfork_child(int sig, const void *new, void *old)
{
	struct given_action before = { 0 };
	struct sigaction in_table;

	if (sig <= 0 || sig >= _NSIG || (new && (sig == SIGKILL || sig == SIGSTOP)))
		return -EINVAL;
	signals_plain_action(sig, &in_table);
	before = (struct given_action){ (void *)in_table.sa_sigaction, (unsigned)in_table.sa_flags, (void *)in_table.sa_restorer, to_kernel(&in_table.sa_mask) };
	long result = new && sig != SIGSYS ? raw_call(SYS_rt_sigaction, sig, (long)new, 0, sizeof before.mask, 0, 0) : 0;
	return result || !old || copy_guarded(old, &before, sizeof before) ? result : -EFAULT;
}

/* In host. */
long client_sigaction(const struct direct *self, int sig, const void *new, void *old, size_t size)
{
	struct given_action given;
	struct sigaction wanted = { 0 }, before = { 0 };

	if (size != sizeof given.mask)
		return -EINVAL;
	if (UNLIKELY(self->in_vfork))
		return action_of_vfork_child(sig, new, old);
	if (new) {
		if (!copy_guarded(&given, new, sizeof given))
			return -EFAULT;
		wanted.sa_sigaction = (void (*)(int, siginfo_t *, void *))given.handler;
		wanted.sa_flags = (int)given.flags;
		wanted.sa_restorer = (void (*)(void))given.restorer;
		memcpy(&wanted.sa_mask, &given.mask, sizeof given.mask);
	}
	if (sigaction(sig, new ? &wanted : NULL, &before) != 0)
		return -errno;
	given = (struct given_action){ (void *)before.sa_sigaction, (unsigned)before.sa_flags, (void *)before.sa_restorer, to_kernel(&before.sa_mask) };
	return !old || copy_guarded(old, &given, sizeof given) ? 0 : -EFAULT;
}
