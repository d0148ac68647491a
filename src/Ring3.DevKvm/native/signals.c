/*
 * Signals, so that the client and the core's runtime do not notice each other.
 *
 *   kernel's action of a signal that the client handles:  trampoline() below, which calls the client's handler or defers it
 *   kernel's action of SIGSEGV, SIGBUS, SIGFPE:           the core's fix-ups of guest accesses, which chain to fault_trampoline() below;
 *                                                         that one calls the runtime for faults in its code, and else the client
 *   client's view:                                        actions[], which sigaction() reads and writes
 *
 * Invariants
 *   - A thread that is inside (ring3.h) never runs a handler of the client. The trampoline queues the signal to the thread again and
 *     blocks everything, so that it is pending; leaving restores the mask, and the kernel delivers it there. So handlers may use KVM,
 *     longjmp, or find the signal still pending because the client itself had it blocked: just as behind the real ioctl.
 *   - RUNTIME_SIGNAL is never blocked on a thread that can be inside.
 */
#include "ring3.h"

#include <limits.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define LAST_SIGNAL 64

static struct sigaction actions[LAST_SIGNAL + 1];
static _Atomic uint32_t versions[LAST_SIGNAL + 1]; /* odd: being written */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool actions_known;
static kernel_sigset caught_default;               /* default actions that are trampolines in the kernel, for KVM_SET_SIGNAL_MASK */

static struct sigaction runtime_faults[3];         /* what the core's runtime asked sigaction() for: SIGSEGV, SIGBUS, SIGFPE */

static struct sigaction runtime_stop;              /* and for RUNTIME_SIGNAL */

#define NEVER_DEFERRED (FAULT_SIGNALS | SIGNAL_BIT(RUNTIME_SIGNAL))

/* The actions that belong to the core's handlers in the kernel. */
static bool is_chained(int sig)
{
	return sig == SIGSEGV || sig == SIGBUS || sig == SIGFPE;
}

static int fault_index(int sig)
{
	return sig == SIGSEGV ? 0 : sig == SIGBUS ? 1 : 2;
}

/* Those that the C library keeps for itself. */
static bool is_internal(int sig)
{
	return sig == 32 || sig == 33;
}

/* Signals whose action the client owns but not the kernel. A client that is loaded directly has a C library of its own. */
static bool is_ours(int sig)
{
	return sig > 0 && !stands_in(sig) && sig <= LAST_SIGNAL && sig != SIGKILL && sig != SIGSTOP && (!is_internal(sig) || r3_direct);
}

static void set_mask(kernel_sigset mask)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
}

static void read_action(int sig, struct sigaction *to)
{
	uint32_t version;

	do {
		while ((version = atomic_load_explicit(&versions[sig], memory_order_acquire)) & 1)
			;
		memcpy(to, &actions[sig], sizeof *to);
		atomic_thread_fence(memory_order_acquire);
	} while (atomic_load_explicit(&versions[sig], memory_order_relaxed) != version);
}

/* Caller: inside, so that no handler of this thread can wait for the version to become even. */
static void write_action(int sig, const struct sigaction *from)
{
	atomic_fetch_add(&versions[sig], 1);
	atomic_thread_fence(memory_order_release);
	memcpy(&actions[sig], from, sizeof *from);
	atomic_fetch_add_explicit(&versions[sig], 1, memory_order_release);
}

struct queued {
	pid_t thread;
	int sig;
	siginfo_t *info;
	bool poor; /* only the number could be sent */
};

static void queue_borne(void *context)
{
	struct queued *q = context;

	q->poor = syscall(SYS_rt_tgsigqueueinfo, r3_owner, q->thread, q->sig, q->info) != 0;
	if (q->poor)
		syscall(SYS_tgkill, r3_owner, q->thread, q->sig);
}

/* From another thread the kernel takes only what no kernel and no kill() says. The rest waits here for the number. All signals are blocked. */
static void queue_to_confined_self(int sig, siginfo_t *info)
{
	struct thread *self = &r3_self;
	struct queued q = { .thread = thread_id(self->id), .sig = sig, .info = info };

	porter_run(queue_borne, &q);
	for (unsigned i = 0; q.poor && i < sizeof self->carried / sizeof *self->carried; i++) {
		if (!self->carried[i].si_signo) {
			self->carried[i] = *info;
			break;
		}
	}
}

static void take_carried(struct thread *self, int sig, siginfo_t *info)
{
	if (LIKELY(info->si_code != SI_TKILL) || info->si_pid != r3_owner)
		return;
	for (unsigned i = 0; i < sizeof self->carried / sizeof *self->carried; i++) {
		if (self->carried[i].si_signo == sig) {
			*info = self->carried[i];
			self->carried[i].si_signo = 0;
			return;
		}
	}
}

static void queue_to_self(int sig, siginfo_t *info)
{
	if (is_confined()) {
		queue_to_confined_self(sig, info);
		return;
	}
	pid_t pid = (pid_t)syscall(SYS_getpid), tid = (pid_t)syscall(SYS_gettid);

	if (syscall(SYS_rt_tgsigqueueinfo, pid, tid, sig, info) != 0)
		syscall(SYS_tgkill, pid, tid, sig);
}

void vcpu_poke(struct r3_vcpu_signal *run)
{
	/* PAIRS-WITH: Vcpu's run loop, which reads wake_word, then the others, before it enters the guest or sleeps. */
	__atomic_store_n(&run->signalled, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(run->exit_request, 1, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(run->wake_word, 1, __ATOMIC_SEQ_CST);
}

struct action_call {
	int sig;
	const struct sigaction *action;
};

typedef void (*handler_function)(int, siginfo_t *, void *);

/* The kernel's handler: where signals may find the client's FS, what puts the host's there first. */
static handler_function entry(handler_function ours)
{
	return r3_direct ? direct_handler : ours;
}

static void set_action_here(int sig, const struct sigaction *action)
{
	if (is_internal(sig))
		direct_internal_action(sig, action);
	else
		NEXT(sigaction)(sig, action, NULL);
}

static void set_action_borne(void *context)
{
	struct action_call *call = context;
	set_action_here(call->sig, call->action);
}

/* The kernel's action for a signal, where the client has not asked for it. */
static void set_action(int sig, const struct sigaction *action)
{
	struct action_call call = { sig, action };

	if (is_confined())
		porter_run(set_action_borne, &call);
	else
		set_action_borne(&call);
}

static void default_action(int sig)
{
	struct sigaction action = { .sa_handler = SIG_DFL };
	set_action(sig, &action);
}

/* ---- trampolines ---- */

static void defer(struct thread *self, int sig, siginfo_t *info, ucontext_t *context)
{
	if (is_chained(sig))
		self->held[fault_index(sig)] = *info;
	else
		queue_to_self(sig, info);
	if (!self->deferred) {
		self->resume = to_kernel(&context->uc_sigmask);
		self->deferred = 1;
	}
	kernel_sigset all = ~NEVER_DEFERRED;
	memcpy(&context->uc_sigmask, &all, sizeof all);
	if (self->run) {
		vcpu_poke(self->run);
		if (UNLIKELY(r3_confined)) /* its helper sleeps, not this thread */
			syscall(SYS_futex, self->run->wake_word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
	}
}

/* Whether the client has a handler for it; else what is to be done is done. */
static bool take_action(int sig, siginfo_t *info, struct sigaction *action)
{
	const struct sigaction none = { .sa_handler = SIG_DFL };

	read_action(sig, action);
	bool fault = is_chained(sig) && info->si_code > 0;
	if (action->sa_handler == SIG_IGN && !fault)
		return false;
	if (action->sa_handler == SIG_DFL || action->sa_handler == SIG_IGN) {
		/* Again, with the default action: the instruction that faults is executed again; others are queued again. */
		default_action(sig);
		if (!fault)
			queue_to_self(sig, info);
		return false;
	}
	if (action->sa_flags & SA_RESETHAND) {
		write_action(sig, &none);
		if (!is_chained(sig))
			default_action(sig);
	}
	return true;
}

/* Calls the client's handler with the mask that the kernel would have set. */
static void run_client(int sig, siginfo_t *info, ucontext_t *context)
{
	struct sigaction action;

	if (!take_action(sig, info, &action))
		return;
	mask_to_client(&context->uc_sigmask);
	kernel_sigset mask = to_kernel(&context->uc_sigmask) | to_kernel(&action.sa_mask);
	if (!(action.sa_flags & SA_NODEFER))
		mask |= SIGNAL_BIT(sig);
	set_mask(signals_kernel_mask(mask));
	struct thread *self = &r3_self;
	self->handlers++;
	action.sa_sigaction(sig, info, context);
	self->handlers--;
	mask_from_client(&context->uc_sigmask);
}

static void trampoline(int sig, siginfo_t *info, void *context)
{
	struct thread *self = &r3_self;
	int error = errno;

	if (UNLIKELY(r3_confined))
		take_carried(self, sig, info);
	if (stands_in(sig))
		info->si_signo = sig = SIGSEGV;
	if (self->inside)
		defer(self, sig, info, context);
	else
		run_client(sig, info, context);
	errno = error;
}

static bool has_blocked(const ucontext_t *context, int sig)
{
	return sig == SIGSEGV && UNLIKELY(r3_cpuid) && (to_kernel(&context->uc_sigmask) & SIGNAL_BIT(BLOCKED_SEGV));
}

/* Somebody sent SIGSEGV to a client that blocks it: the signal that is blocked in its place is pending, for this thread or for all. */
static void keep_segv(siginfo_t *info)
{
	info->si_signo = BLOCKED_SEGV;
	if (info->si_code == SI_TKILL || is_confined() || syscall(SYS_rt_sigqueueinfo, r3_owner, BLOCKED_SEGV, info) != 0)
		queue_to_self(BLOCKED_SEGV, info);
}

/* What no fix-up of the core wanted. */
static void fault_trampoline(int sig, siginfo_t *info, void *context)
{
	if (UNLIKELY(r3_cpuid) && sig == SIGSEGV && cpuid_emulate(info, context))
		return;
	struct thread *self = &r3_self;
	const struct sigaction *runtime = &runtime_faults[fault_index(sig)];
	uintptr_t at = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	int error = errno;

	if (info->si_code <= 0 && !self->inside && has_blocked(context, sig))
		keep_segv(info);
	else if (info->si_code <= 0) /* sent, not raised */
		trampoline(sig, info, context);
	else if (runtime->sa_sigaction && at - r3_core_begin < r3_core_end - r3_core_begin)
		runtime->sa_sigaction(sig, info, context);
	else if (!self->inside && !has_blocked(context, sig))
		run_client(sig, info, context);
	else
		default_action(sig); /* blocked, or a defect of the core: end where it happened */
	errno = error;
}

/* The runtime stops a thread; or filters.c asks it. */
static void stop_trampoline(int sig, siginfo_t *info, void *context)
{
	int error = errno;

	if (!filter_signalled(info) && runtime_stop.sa_sigaction)
		runtime_stop.sa_sigaction(sig, info, context);
	errno = error;
}

/* The kernel's action for the client's. */
static void install(int sig, const struct sigaction *action)
{
	struct sigaction ours = *action;

	if (is_chained(sig) || sig == RUNTIME_SIGNAL || stands_in(sig) || (sig == SIGSYS && r3_direct))
		return;
	if (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN) {
		kernel_sigset all = ~NEVER_DEFERRED;
		ours.sa_sigaction = entry(trampoline);
		ours.sa_flags = (action->sa_flags & ~SA_RESETHAND) | SA_SIGINFO | (r3_direct ? SA_ONSTACK : 0);
		memcpy(&ours.sa_mask, &all, sizeof all);
	}
	caught_default &= ~SIGNAL_BIT(sig);
	set_action_here(sig, &ours);
}

static void install_faults(void)
{
	static const int faults[] = { SIGSEGV, SIGBUS, SIGFPE };
	struct sigaction action = { .sa_sigaction = entry(fault_trampoline), .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };

	for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++)
		NEXT(sigaction)(faults[i], &action, NULL);
}

/* ---- life of the core ---- */

void signals_install(void)
{
	if (!actions_known) {
		for (int sig = 1; sig <= LAST_SIGNAL; sig++) {
			if (!is_ours(sig))
				continue;
			if (!is_internal(sig))
				NEXT(sigaction)(sig, NULL, &actions[sig]);
			if (actions[sig].sa_handler != SIG_DFL && actions[sig].sa_handler != SIG_IGN)
				install(sig, &actions[sig]);
		}
		actions_known = true;
	}
	install_faults();
}

/* The process is new and CPUID is to fault: SIGSEGV is unblocked from now on, and may have been blocked by who executed the program. */
void signals_stand_in(void)
{
	struct sigaction action = { .sa_sigaction = entry(trampoline), .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	kernel_sigset all = ~NEVER_DEFERRED, before;

	memcpy(&action.sa_mask, &all, sizeof all);
	NEXT(sigaction)(BLOCKED_SEGV, &action, NULL);
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &before, sizeof before);
	if (before & SIGNAL_BIT(SIGSEGV))
		set_mask((before & ~SIGNAL_BIT(SIGSEGV)) | SIGNAL_BIT(BLOCKED_SEGV));
}

/* The handlers of the parent's core would look into an instance that has no threads. */
void signals_after_fork(void)
{
	if (!actions_known)
		return;
	pthread_mutex_init(&lock, NULL);
	memset(runtime_faults, 0, sizeof runtime_faults);
	for (int sig = 1; sig <= LAST_SIGNAL; sig++) {
		if (atomic_load(&versions[sig]) & 1)
			atomic_fetch_add(&versions[sig], 1);
	}
	install_faults();
	default_action(RUNTIME_SIGNAL);
}

void signals_unblock_runtime(void)
{
	kernel_sigset runtime = SIGNAL_BIT(RUNTIME_SIGNAL);
	syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, &runtime, NULL, sizeof runtime);
}

/* Faults that somebody sent while the thread was inside. */
static void queue_held(struct thread *self)
{
	for (int i = 0; i < 3; i++) {
		if (UNLIKELY(self->held[i].si_signo)) {
			siginfo_t info = self->held[i];
			self->held[i].si_signo = 0;
			queue_to_self(info.si_signo, &info);
		}
	}
}

/* Everything is blocked and the thread is outside: what is pending and not blocked by the client comes now. */
void signals_deliver(struct thread *self)
{
	kernel_sigset mask = self->resume & ~SIGNAL_BIT(RUNTIME_SIGNAL);

	self->deferred = 0;
	COMPILER_BARRIER();
	queue_held(self);
	set_mask(mask);
}

/*
 * A signal that only the mask of KVM_SET_SIGNAL_MASK lets through makes KVM_RUN return and is pending afterwards, also when its action is
 * the default one, which would end the process now.
 */
static void catch_default(kernel_sigset set)
{
	const kernel_sigset harmless = SIGNAL_BIT(SIGCHLD) | SIGNAL_BIT(SIGCONT) | SIGNAL_BIT(SIGURG) | SIGNAL_BIT(SIGWINCH) | SIGNAL_BIT(SIGSTOP) |
		SIGNAL_BIT(SIGTSTP) | SIGNAL_BIT(SIGTTIN) | SIGNAL_BIT(SIGTTOU) | SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(32) | SIGNAL_BIT(33);
	struct sigaction ours = { .sa_sigaction = entry(trampoline), .sa_flags = SA_SIGINFO | SA_RESTART | (r3_direct ? SA_ONSTACK : 0) };
	kernel_sigset all = ~NEVER_DEFERRED;

	set &= ~(harmless | NEVER_DEFERRED);
	if (LIKELY(!(set & ~__atomic_load_n(&caught_default, __ATOMIC_RELAXED))))
		return;
	memcpy(&ours.sa_mask, &all, sizeof all);
	pthread_mutex_lock(&lock);
	for (int sig = 1; sig <= LAST_SIGNAL; sig++) {
		if ((set & ~caught_default & SIGNAL_BIT(sig)) && actions[sig].sa_handler == SIG_DFL)
			set_action(sig, &ours);
	}
	caught_default |= set;
	pthread_mutex_unlock(&lock);
}

void signals_begin_masked_run(struct thread *self, struct object *vcpu)
{
	kernel_sigset mask = vcpu->mask, before;

	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &before, sizeof before);
	/* A signal since enter() has blocked everything. */
	COMPILER_BARRIER();
	if (self->deferred)
		before = self->resume;
	catch_default(before & ~mask);
	self->run = vcpu->signal;
	COMPILER_BARRIER();
	set_mask(mask);
	/* signals_end_masked_run() puts this one back. */
	self->before_run = before;
}

void signals_end_masked_run(struct thread *self, struct object *vcpu)
{
	set_mask(~NEVER_DEFERRED);
	COMPILER_BARRIER();
	if (self->deferred)
		vcpu->signal->signalled = 0;
	self->resume = self->before_run;
	self->deferred = 1;
}

/* ---- clients that are loaded directly ---- */

void signals_enter_direct(void)
{
	enter();
}

/* Out of the host: what is deferred is pending, and the way back to the client restores the mask. */
void signals_leave_direct(void)
{
	struct thread *self = &r3_self;

	self->inside = 0;
	COMPILER_BARRIER();
	if (LIKELY(!self->deferred))
		return;
	self->deferred = 0;
	queue_held(self);
}

void signals_trampoline(int sig, siginfo_t *info, void *context)
{
	if (is_chained(sig))
		fault_trampoline(sig, info, context);
	else
		trampoline(sig, info, context);
}

void signals_stop(int sig, siginfo_t *info, void *context)
{
	stop_trampoline(sig, info, context);
}

/* SIGSEGV where the client blocks it and the kernel does not (cpuid.c): a fault ends the process, a signal is pending. Whether it was one. */
bool signals_take_blocked(int sig, siginfo_t *info, const ucontext_t *context)
{
	if (!has_blocked(context, sig))
		return false;
	if (info->si_code > 0)
		default_action(sig);
	else
		keep_segv(info);
	return true;
}

/* The action, if nothing but a call of the handler is to be done. No thread-local storage. */
bool signals_plain_action(int sig, struct sigaction *action)
{
	read_action(sig, action);
	return action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN && !(action->sa_flags & SA_RESETHAND);
}

/* The sender's information, where a confined thread could not keep it with the signal. */
void signals_take_carried(int sig, siginfo_t *info)
{
	take_carried(&r3_self, sig, info);
}

/* Whether there is a handler to be called; else what is to be done is done. */
bool signals_take_action(int sig, siginfo_t *info, struct sigaction *action)
{
	return take_action(sig, info, action);
}

/* ---- sigaction and its kin ---- */

/*
 * A child of vfork has actions of its own in the kernel and its parent's table in memory. SIGSEGV is not given away where CPUID may fault
 * before the child executes a program.
 */
static int action_of_vfork_child(int sig, const struct sigaction *new, struct sigaction *old)
{
	struct sigaction before;

	read_action(sig, &before);
	if (!(UNLIKELY(r3_cpuid) && sig == SIGSEGV) && NEXT(sigaction)(sig, new, NULL) != 0)
		return -1;
	if (old)
		*old = before;
	return 0;
}

EXPORT int sigaction(int sig, const struct sigaction *restrict new, struct sigaction *restrict old)
{
	if (CALLED_BY_CORE()) {
		/* The runtime gets its faults from the trampoline, and its own signal; the dispositions of all others are the client's. */
		if (is_chained(sig)) {
			if (old)
				memset(old, 0, sizeof *old);
			if (new)
				runtime_faults[fault_index(sig)] = *new;
			return 0;
		}
		if (sig == RUNTIME_SIGNAL && new) {
			struct sigaction ours = *new;
			runtime_stop = *new;
			ours.sa_sigaction = entry(stop_trampoline);
			ours.sa_flags |= r3_direct ? SA_ONSTACK : 0;
			return NEXT(sigaction)(sig, &ours, old);
		}
		return new ? 0 : NEXT(sigaction)(sig, NULL, old);
	}
	if (stands_in(sig))
		return fail(EINVAL);
	if (!actions_known || !is_ours(sig))
		return NEXT(sigaction)(sig, new, old);
	struct sigaction wanted = { 0 }, before;
	if (new)
		wanted = *new;
	check_fork();
	if (new && UNLIKELY(shares_parent_memory()))
		return action_of_vfork_child(sig, &wanted, old);
	struct thread *self = enter();
	pthread_mutex_lock(&lock);
	before = actions[sig];
	if (new) {
		/* In this order: the trampoline may come at once, and it may still be there a little later. */
		bool handled = wanted.sa_handler != SIG_DFL && wanted.sa_handler != SIG_IGN;
		if (handled)
			write_action(sig, &wanted);
		install(sig, &wanted);
		if (!handled)
			write_action(sig, &wanted);
	}
	pthread_mutex_unlock(&lock);
	leave(self);
	if (old)
		*old = before;
	return 0;
}

typedef void (*handler)(int);

static handler simple(int sig, handler function, int flags)
{
	struct sigaction new = { .sa_handler = function, .sa_flags = flags }, old;

	sigemptyset(&new.sa_mask);
	if (!(flags & SA_NODEFER) && sig > 0 && sig <= LAST_SIGNAL)
		sigaddset(&new.sa_mask, sig);
	return sigaction(sig, &new, &old) != 0 ? SIG_ERR : old.sa_handler;
}

handler bsd_signal(int sig, handler function);
handler ssignal(int sig, handler function);
handler __sysv_signal(int sig, handler function);

static kernel_sigset interrupting; /* siginterrupt() */

static int bsd_flags(int sig)
{
	return sig > 0 && sig <= LAST_SIGNAL && (interrupting & SIGNAL_BIT(sig)) ? 0 : SA_RESTART;
}

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

EXPORT handler signal(int sig, handler function)
{
	if (CALLED_BY_CORE())
		return SIG_DFL; /* the runtime would ignore SIGPIPE for the whole process */
	return actions_known ? simple(sig, function, bsd_flags(sig)) : NEXT(signal)(sig, function);
}

EXPORT handler bsd_signal(int sig, handler function)
{
	return actions_known ? simple(sig, function, bsd_flags(sig)) : NEXT(bsd_signal)(sig, function);
}

EXPORT handler ssignal(int sig, handler function)
{
	return actions_known ? simple(sig, function, bsd_flags(sig)) : NEXT(ssignal)(sig, function);
}

EXPORT handler __sysv_signal(int sig, handler function)
{
	return actions_known ? simple(sig, function, SA_RESETHAND | SA_NODEFER) : NEXT(__sysv_signal)(sig, function);
}

EXPORT handler sysv_signal(int sig, handler function)
{
	return actions_known ? simple(sig, function, SA_RESETHAND | SA_NODEFER) : NEXT(sysv_signal)(sig, function);
}

EXPORT int sigignore(int sig)
{
	if (!actions_known)
		return NEXT(sigignore)(sig);
	return simple(sig, SIG_IGN, SA_NODEFER) == SIG_ERR ? -1 : 0;
}

EXPORT handler sigset(int sig, handler function)
{
	sigset_t set, old;

	if (!actions_known)
		return NEXT(sigset)(sig, function);
	sigemptyset(&set);
	if (sigaddset(&set, sig) != 0)
		return SIG_ERR;
	struct sigaction now;
	if (function == SIG_HOLD) {
		if (sigprocmask(SIG_BLOCK, &set, &old) != 0 || sigaction(sig, NULL, &now) != 0)
			return SIG_ERR;
		return sigismember(&old, sig) ? SIG_HOLD : now.sa_handler;
	}
	handler before = simple(sig, function, SA_NODEFER);
	if (before == SIG_ERR || sigprocmask(SIG_UNBLOCK, &set, &old) != 0)
		return SIG_ERR;
	return sigismember(&old, sig) ? SIG_HOLD : before;
}

EXPORT int siginterrupt(int sig, int interrupt)
{
	struct sigaction action;

	if (!actions_known)
		return NEXT(siginterrupt)(sig, interrupt);
	if (sigaction(sig, NULL, &action) != 0)
		return -1;
	if (interrupt) {
		action.sa_flags &= ~SA_RESTART;
		__atomic_fetch_or(&interrupting, SIGNAL_BIT(sig), __ATOMIC_RELAXED);
	} else {
		action.sa_flags |= SA_RESTART;
		__atomic_fetch_and(&interrupting, ~SIGNAL_BIT(sig), __ATOMIC_RELAXED);
	}
	return sigaction(sig, &action, NULL);
}

/* ---- cancellation ---- */

/*
 * A thread must not be cancelled while it is inside: neither by the C library's signal nor in a call that the core makes. Each side of
 * { cancelled = 1; membarrier; read inside } and { inside++; read cancelled } is sure to see the other's store.
 */
enum { REQUESTED = 1, PENDING = 2 };

EXPORT int pthread_cancel(pthread_t id)
{
	bool taken = false;

	if (!r3_active)
		return NEXT(pthread_cancel)(id);
	struct thread *self = enter();
	thread_registry_lock();
	for (struct thread *t = r3_threads; t; t = t->next) {
		if (!pthread_equal(t->id, id) || t->cancelled)
			continue;
		t->cancelled = REQUESTED;
		call_host(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
		if (t != self && t->inside) {
			struct r3_vcpu_signal *run = t->run;
			taken = true;
			if (run) {
				vcpu_poke(run);
				syscall(SYS_futex, run->wake_word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
			}
		}
		break;
	}
	thread_registry_unlock();
	leave(self);
	return taken ? 0 : NEXT(pthread_cancel)(id);
}

/* The thread is outside. Does not return if the thread is to be cancelled at once. */
static void cancel_self(struct thread *self)
{
	if (self->cancelled == REQUESTED) {
		self->cancelled = PENDING;
		NEXT(pthread_cancel)(pthread_self());
	}
}

/* A cancelled thread enters, on its way to its next cancellation point: the core's calls are none. */
void signals_shield(struct thread *self)
{
	self->inside = 0;
	cancel_self(self);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &self->cancel_state);
	self->shielded = true;
	self->inside = 1;
	COMPILER_BARRIER();
}

void signals_unshield(struct thread *self)
{
	if (self->shielded) {
		self->shielded = false;
		pthread_setcancelstate(self->cancel_state, NULL);
	}
	cancel_self(self);
}
