/* Signals and KVM_RUN. */
#include "test.h"

static volatile sig_atomic_t handled;
static volatile int last_signal, last_code, last_value;
static volatile pthread_t handled_by;

static void note(int sig, siginfo_t *info, void *context)
{
	(void)context;
	handled++;
	last_signal = sig;
	last_code = info->si_code;
	last_value = info->si_value.sival_int;
	handled_by = pthread_self();
}

static void handle(int sig, int flags)
{
	struct sigaction action = { .sa_sigaction = note, .sa_flags = SA_SIGINFO | flags };
	CHECK(sigaction(sig, &action, NULL) == 0);
}

static void block(int sig)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, sig);
	CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
}

static bool is_pending(int sig)
{
	sigset_t set;
	CHECK(sigpending(&set) == 0);
	return sigismember(&set, sig);
}

struct kicker {
	pthread_t target;
	int sig, delay_ms;
};

static void *kick_once(void *argument)
{
	struct kicker *k = argument;
	sleep_ms((unsigned)k->delay_ms);
	CHECK(pthread_kill(k->target, k->sig) == 0);
	return NULL;
}

/* KVM_RUN returns EINTR when `sig` comes while the guest does what it does. */
static void interrupted_by(struct machine *m, int sig)
{
	pthread_t thread;
	struct kicker k = { pthread_self(), sig, 30 };
	int before = handled;

	CHECK(pthread_create(&thread, NULL, kick_once, &k) == 0);
	CHECK_ERROR(run(m), EINTR);
	CHECK(m->run->exit_reason == KVM_EXIT_INTR);
	CHECK(handled == before + 1);
	CHECK(last_signal == sig);
	CHECK(pthread_equal(handled_by, pthread_self()));
	CHECK(pthread_join(thread, NULL) == 0);
}

static void spinning_guest(void)
{
	struct machine m;
	CREATE(&m, GUEST_SPIN, false);
	handle(SIGUSR1, 0);
	for (int i = 0; i < 5; i++)
		interrupted_by(&m, SIGUSR1);
	destroy(&m);
}

static void halted_guest(void)
{
	struct machine m;
	CREATE(&m, GUEST_HALT, true);
	handle(SIGUSR1, SA_RESTART);
	for (int i = 0; i < 5; i++)
		interrupted_by(&m, SIGUSR1);
	destroy(&m);
}

/* Handlers that were there before /dev/kvm was opened, and every number. */
static void every_signal(void)
{
	struct machine m;
	for (int sig = 1; sig <= SIGRTMAX; sig++) {
		if (sig != SIGKILL && sig != SIGSTOP && (sig < 32 || sig >= SIGRTMIN) && sig % 2)
			handle(sig, 0);
	}
	CREATE(&m, GUEST_SPIN, false);
	for (int sig = 1; sig <= SIGRTMAX; sig++) {
		if (sig == SIGKILL || sig == SIGSTOP || (sig >= 32 && sig < SIGRTMIN))
			continue;
		if (sig % 2 == 0)
			handle(sig, 0);
		interrupted_by(&m, sig);
	}
	destroy(&m);
}

static void real_time_signals(void)
{
	struct machine m;
	union sigval value = { .sival_int = 4711 };
	CHECK(SIGRTMIN >= 34 && SIGRTMAX == 64);
	CREATE(&m, GUEST_SPIN, false);
	handle(SIGRTMIN, 0);
	interrupted_by(&m, SIGRTMIN);
	/* Outside KVM_RUN: at once, with its value. */
	handled = 0;
	CHECK(sigqueue(getpid(), SIGRTMIN, value) == 0);
	CHECK(handled == 1 && last_code == SI_QUEUE && last_value == 4711);
	destroy(&m);
}

static void alarms(void)
{
	struct machine m;
	struct itimerval timer = { .it_value = { 0, 30000 } };
	CREATE(&m, GUEST_SPIN, false);
	handle(SIGALRM, 0);
	for (int i = 0; i < 3; i++) {
		handled = 0;
		CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
		CHECK_ERROR(run(&m), EINTR);
		CHECK(handled == 1);
	}
	destroy(&m);
}

static void child_ends(void)
{
	struct machine m;
	CREATE(&m, GUEST_SPIN, false);
	handle(SIGCHLD, 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		sleep_ms(30);
		_exit(3);
	}
	CHECK_ERROR(run(&m), EINTR);
	CHECK(handled == 1 && last_code == CLD_EXITED);
	CHECK(waitpid(pid, NULL, 0) == pid);
	destroy(&m);
}

/* A signal to the process goes to a thread of the client, whatever other threads the process has. */
static void to_the_process(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	handle(SIGUSR2, 0);
	for (int i = 0; i < 200; i++) {
		handled = 0;
		CHECK(run(&m) == 0);
		CHECK(kill(getpid(), SIGUSR2) == 0);
		CHECK(handled == 1 && pthread_equal(handled_by, pthread_self()));
	}
	destroy(&m);
}

/* No handler, no interruption. */
static void ignored(void)
{
	struct machine m;
	struct kicker k = { pthread_self(), SIGURG, 10 }, last = { pthread_self(), SIGUSR1, 60 };
	pthread_t a, b;
	CREATE(&m, GUEST_SPIN, false);
	handle(SIGUSR1, 0);
	CHECK(pthread_create(&a, NULL, kick_once, &k) == 0 && pthread_create(&b, NULL, kick_once, &last) == 0);
	uint64_t start = now_ns();
	CHECK_ERROR(run(&m), EINTR);
	CHECK(now_ns() - start > 50000000);
	CHECK(handled == 1 && last_signal == SIGUSR1);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	destroy(&m);
}

static void blocked_stays_pending(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	handle(SIGUSR1, 0);
	block(SIGUSR1);
	CHECK(pthread_kill(pthread_self(), SIGUSR1) == 0);
	for (int i = 0; i < 100; i++)
		CHECK(run(&m) == 0);
	CHECK(handled == 0 && is_pending(SIGUSR1));
	destroy(&m);
}

/* QEMU's vCPU threads block everything. The core's own signal must get through, or its garbage collector hangs. */
static void *run_with_all_blocked(void *argument)
{
	struct machine *m = argument;
	sigset_t all;
	sigfillset(&all);
	CHECK(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
	for (int i = 0; i < 20000; i++)
		CHECK(run(m) == 0);
	return NULL;
}

static void all_blocked(void)
{
	struct machine m, other;
	pthread_t thread;
	sigset_t all;
	/* Blocked before the first open, and inherited by the thread. */
	sigfillset(&all);
	CHECK(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
	CREATE(&m, GUEST_OUT, false);
	CHECK(pthread_create(&thread, NULL, run_with_all_blocked, &m) == 0);
	for (int i = 0; i < 50; i++) {
		CREATE(&other, GUEST_OUT, true);
		CHECK(run(&other) == 0);
		destroy(&other);
	}
	CHECK(pthread_join(thread, NULL) == 0);
	destroy(&m);
}

/* ---- KVM_SET_SIGNAL_MASK ---- */

static void set_run_mask(struct machine *m, int without)
{
	struct {
		struct kvm_signal_mask head;
		uint64_t set;
	} __attribute__((packed)) mask;
	sigset_t set;

	CHECK(pthread_sigmask(SIG_SETMASK, NULL, &set) == 0);
	sigdelset(&set, without);
	memset(&mask, 0, sizeof mask);
	mask.head.len = 8;
	memcpy(mask.head.sigset, &set, 8);
	CHECK(ioctl(m->vcpu, KVM_SET_SIGNAL_MASK, &mask) == 0);
}

static void mask_errors(void)
{
	struct machine m;
	struct kvm_signal_mask head = { .len = 7 };
	CREATE(&m, GUEST_OUT, false);
	CHECK_ERROR(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, &head), EINVAL);
	CHECK_ERROR(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, (void *)8), EFAULT);
	CHECK(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, NULL) == 0);
	destroy(&m);
}

/* Let through by KVM_RUN's mask only: EINTR, and pending afterwards, its handler not called. */
static void mask_lets_through(int sig, bool with_handler)
{
	struct machine m;
	pthread_t thread;
	struct kicker k = { pthread_self(), sig, 30 };
	sigset_t set;
	siginfo_t info;
	struct timespec none = { 0, 0 };

	CREATE(&m, GUEST_SPIN, false);
	if (with_handler)
		handle(sig, 0);
	block(sig);
	set_run_mask(&m, sig);
	for (int i = 0; i < 4; i++) {
		CHECK(pthread_create(&thread, NULL, kick_once, &k) == 0);
		CHECK_ERROR(run(&m), EINTR);
		CHECK(m.run->exit_reason == KVM_EXIT_INTR);
		CHECK(handled == 0);
		CHECK(is_pending(sig));
		/* As long as it is pending, KVM_RUN returns at once. */
		CHECK_ERROR(run(&m), EINTR);
		CHECK_ERROR(run(&m), EINTR);
		sigemptyset(&set);
		sigaddset(&set, sig);
		CHECK(sigtimedwait(&set, &info, &none) == sig);
		CHECK(info.si_code <= 0 && info.si_pid == getpid());
		CHECK(!is_pending(sig));
		CHECK(pthread_join(thread, NULL) == 0);
	}
	/* Unblocked afterwards, the handler runs. */
	if (with_handler) {
		CHECK(pthread_kill(pthread_self(), sig) == 0);
		CHECK_ERROR(run(&m), EINTR);
		sigemptyset(&set);
		sigaddset(&set, sig);
		CHECK(handled == 0);
		CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
		CHECK(handled == 1);
	}
	destroy(&m);
}

static void mask_with_handler(void)
{
	mask_lets_through(SIGUSR1, true);
}

static void mask_without_handler(void)
{
	mask_lets_through(SIGUSR1, false);
}

static void mask_real_time(void)
{
	mask_lets_through(SIGRTMIN + 1, true);
}

static void mask_is_restored(void)
{
	struct machine m;
	sigset_t before, after;
	CREATE(&m, GUEST_OUT, false);
	block(SIGUSR1);
	block(SIGTERM);
	CHECK(pthread_sigmask(SIG_SETMASK, NULL, &before) == 0);
	set_run_mask(&m, SIGUSR1);
	for (int i = 0; i < 100; i++)
		CHECK(run(&m) == 0);
	CHECK(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
	CHECK(memcmp(&before, &after, 8) == 0);
	/* Taken back: the signal stays where it is. */
	CHECK(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, NULL) == 0);
	CHECK(pthread_kill(pthread_self(), SIGUSR1) == 0);
	CHECK(run(&m) == 0 && is_pending(SIGUSR1));
	destroy(&m);
}

/* Default action, sent while no KVM_RUN masks it: the process ends, as always. */
static void default_still_ends(void)
{
	int status;
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct machine m;
		sigset_t set;
		siginfo_t info;
		CREATE(&m, GUEST_SPIN, false);
		block(SIGUSR1);
		set_run_mask(&m, SIGUSR1);
		CHECK(pthread_kill(pthread_self(), SIGUSR1) == 0);
		CHECK_ERROR(run(&m), EINTR);
		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		CHECK(sigwaitinfo(&set, &info) == SIGUSR1);
		CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
		CHECK(raise(SIGUSR1) == 0);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1);
}

/* ---- the client's handlers ---- */

static sigjmp_buf back;
static struct machine *machine_of_handler;
static volatile int handler_result;

static void jump(int sig)
{
	siglongjmp(back, sig);
}

static void jump_out(void)
{
	struct machine m;
	pthread_t thread;
	CREATE(&m, GUEST_SPIN, false);
	CHECK(signal(SIGUSR1, jump) != SIG_ERR);
	for (int i = 0; i < 20; i++) {
		struct kicker k = { pthread_self(), SIGUSR1, 5 };
		CHECK(pthread_create(&thread, NULL, kick_once, &k) == 0);
		if (sigsetjmp(back, 1) == 0) {
			run(&m);
			CHECK(!"KVM_RUN returned past the handler");
		}
		CHECK(pthread_join(thread, NULL) == 0);
	}
	destroy(&m);
}

static void use_kvm(int sig)
{
	struct kvm_regs regs;
	(void)sig;
	handler_result = ioctl(machine_of_handler->vcpu, KVM_GET_REGS, &regs);
	machine_of_handler->run->immediate_exit = 1;
}

static void kvm_in_handler(void)
{
	struct machine m;
	pthread_t thread;
	struct kicker k = { pthread_self(), SIGUSR1, 20 };
	CREATE(&m, GUEST_SPIN, false);
	machine_of_handler = &m;
	handler_result = -1;
	CHECK(signal(SIGUSR1, use_kvm) != SIG_ERR);
	CHECK(pthread_create(&thread, NULL, kick_once, &k) == 0);
	CHECK_ERROR(run(&m), EINTR);
	CHECK(handler_result == 0);
	CHECK_ERROR(run(&m), EINTR); /* immediate_exit */
	m.run->immediate_exit = 0;
	CHECK(pthread_join(thread, NULL) == 0);
	destroy(&m);
}

/* sigaction tells what was set, before and after the open. */
static void actions_are_told(void)
{
	struct machine m;
	struct sigaction action = { .sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK }, old;
	sigaddset(&action.sa_mask, SIGUSR2);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
	CREATE(&m, GUEST_OUT, false);
	static const int signals[] = { SIGUSR1, SIGSEGV };
	for (int i = 0; i < 2; i++) {
		CHECK(sigaction(signals[i], NULL, &old) == 0);
		CHECK(old.sa_sigaction == note && (old.sa_flags & (SA_SIGINFO | SA_RESTART | SA_ONSTACK)) == (SA_SIGINFO | SA_RESTART | SA_ONSTACK));
		CHECK(sigismember(&old.sa_mask, SIGUSR2) == 1 && sigismember(&old.sa_mask, SIGHUP) == 0);
	}
	CHECK(sigaction(SIGPIPE, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
	CHECK(sigaction(SIGTERM, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
	CHECK((void *)signal(SIGUSR1, SIG_IGN) == (void *)note);
	CHECK(signal(SIGUSR1, SIG_DFL) == SIG_IGN);
	CHECK_ERROR(sigaction(SIGKILL, &action, NULL), EINVAL);
	destroy(&m);
}

static volatile sigset_t mask_in_handler;

static void note_mask(int sig)
{
	(void)sig;
	handled++;
	pthread_sigmask(SIG_SETMASK, NULL, (sigset_t *)&mask_in_handler);
}

static void mask_of_handler(void)
{
	struct machine m;
	struct sigaction action = { .sa_handler = note_mask };
	sigset_t *in = (sigset_t *)&mask_in_handler;
	CREATE(&m, GUEST_OUT, false);
	sigaddset(&action.sa_mask, SIGUSR2);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	CHECK(raise(SIGUSR1) == 0 && handled == 1);
	CHECK(sigismember(in, SIGUSR1) && sigismember(in, SIGUSR2) && !sigismember(in, SIGTERM));
	CHECK(pthread_sigmask(SIG_SETMASK, NULL, in) == 0 && !sigismember(in, SIGUSR1) && !sigismember(in, SIGUSR2));
	action.sa_flags = SA_NODEFER;
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	CHECK(raise(SIGUSR1) == 0 && handled == 2 && !sigismember(in, SIGUSR1));
	action.sa_flags = SA_RESETHAND;
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	CHECK(raise(SIGUSR1) == 0 && handled == 3);
	CHECK(sigaction(SIGUSR1, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
	destroy(&m);
}

/* Faults of the client itself reach its handler, also with the core's handlers in front. */
static void *volatile fault_address;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	(void)context;
	fault_address = info->si_addr;
	siglongjmp(back, sig);
}

static void own_faults(void)
{
	struct machine m;
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	volatile char *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (volatile int after = 0; after < 2; after++) {
		if (after == 0)
			CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
		CREATE(&m, GUEST_OUT, false);
		if (after == 1)
			CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
		for (volatile int i = 0; i < 3; i++) {
			if (sigsetjmp(back, 1) == 0) {
				*page = 1;
				CHECK(!"no fault");
			}
			CHECK(fault_address == (void *)page);
			CHECK(run(&m) == 0);
		}
		/* Guest memory that is not there is an answer, not a signal. */
		CHECK(mprotect(m.memory + 0x1000, 4096, PROT_NONE) == 0);
		CHECK_ERROR(run(&m), EFAULT);
		CHECK(mprotect(m.memory + 0x1000, 4096, PROT_READ | PROT_WRITE) == 0);
		CHECK(run(&m) == 0);
		destroy(&m);
	}
}

static volatile char *volatile fault_target = (volatile char *)16;

static void fault_ends(void)
{
	int status;
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct machine m;
		CREATE(&m, GUEST_OUT, false);
		*fault_target = 1;
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* ---- cancellation ---- */

static void *run_until_cancelled(void *argument)
{
	int old;
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
	for (;;)
		run(argument);
	return NULL;
}

static void *run_deferred(void *argument)
{
	for (int i = 0; i < 1000000000; i++) {
		run(argument);
		pthread_testcancel();
	}
	return NULL;
}

static void cancel(void)
{
	void *(*const kinds[])(void *) = { run_until_cancelled, run_deferred };
	for (int i = 0; i < 6; i++) {
		struct machine m;
		pthread_t thread;
		void *result;
		if (i / 2 == 0)
			CREATE(&m, GUEST_OUT, false);
		else if (i / 2 == 1 && i % 2 == 0)
			CREATE(&m, GUEST_SPIN, false);
		else if (i % 2 == 0)
			CREATE(&m, GUEST_HALT, true);
		else
			continue; /* deferred: KVM_RUN is no cancellation point */
		CHECK(pthread_create(&thread, NULL, kinds[i % 2], &m) == 0);
		sleep_ms(30);
		CHECK(pthread_cancel(thread) == 0);
		CHECK(pthread_join(thread, &result) == 0);
		CHECK(result == PTHREAD_CANCELED);
		/* The vCPU is free. */
		struct kvm_regs regs;
		CHECK(ioctl(m.vcpu, KVM_GET_REGS, &regs) == 0);
		destroy(&m);
	}
}

/* ---- speed ---- */

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

/* Processor time of the vCPU's thread: what it waits for a processor on a busy machine is not ours. */
static volatile uint64_t sent_at;
static clockid_t thread_clock;

static uint64_t thread_ns(void)
{
	struct timespec t;

	CHECK(clock_gettime(thread_clock, &t) == 0);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void *kick_many(void *argument)
{
	struct kicker *k = argument;
	for (int i = 0; i < 200; i++) {
		sleep_ms(1);
		sent_at = thread_ns();
		pthread_kill(k->target, k->sig);
		while (sent_at)
			sched_yield();
	}
	return NULL;
}

/* A signal between two runs must end the next one: the kicker waits for it. */
static struct kvm_run *latency_run;

static void exit_at_once(int sig)
{
	(void)sig;
	latency_run->immediate_exit = 1;
}

static void latency(void)
{
	struct machine m;
	struct sigaction action = { .sa_handler = exit_at_once };
	pthread_t thread;
	uint64_t took[200];
	struct kicker k = { pthread_self(), SIGUSR1, 0 };
	CREATE(&m, GUEST_SPIN, false);
	latency_run = m.run;
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	CHECK(pthread_getcpuclockid(pthread_self(), &thread_clock) == 0);
	CHECK(pthread_create(&thread, NULL, kick_many, &k) == 0);
	for (int i = 0; i < 200; i++) {
		CHECK_ERROR(run(&m), EINTR);
		took[i] = thread_ns() - sent_at;
		m.run->immediate_exit = 0;
		sent_at = 0;
	}
	CHECK(pthread_join(thread, NULL) == 0);
	qsort(took, 200, sizeof *took, compare);
	fprintf(stderr, "half within %llu ns, 90 %% within %llu ns of processor time\n", (unsigned long long)took[100], (unsigned long long)took[180]);
	CHECK(took[180] < 2000000);
	destroy(&m);
}

/*
 * Signals in every place of the way in and out: none is lost, none is doubled. 3000 of them, or as many as a busy host lets through in half a minute: each waits for the
 * other thread to get a processor.
 */
static int storm_sent;

static void *kick_storm(void *argument)
{
	struct kicker *k = argument;
	uint64_t begin = now_ns();
	for (; storm_sent < 300 || (storm_sent < 3000 && now_ns() - begin < 30000000000u); storm_sent++) {
		int before = handled;
		CHECK(pthread_kill(k->target, k->sig) == 0);
		for (uint64_t start = now_ns(); handled == before;) {
			CHECK(now_ns() - start < 20000000000u);
			sched_yield();
		}
	}
	k->sig = 0;
	CHECK(pthread_kill(k->target, SIGUSR2) == 0);
	return NULL;
}

static void storm(void)
{
	struct machine m;
	pthread_t thread;
	struct kicker k = { pthread_self(), SIGUSR1, 0 };
	CREATE(&m, GUEST_OUT, false);
	handle(SIGUSR1, 0);
	handle(SIGUSR2, 0);
	CHECK(pthread_create(&thread, NULL, kick_storm, &k) == 0);
	while (*(volatile int *)&k.sig) {
		struct kvm_regs regs;
		int r = run(&m);
		CHECK(r == 0 || errno == EINTR);
		CHECK(ioctl(m.vcpu, KVM_GET_REGS, &regs) == 0);
	}
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(handled == storm_sent + 1);
	destroy(&m);
}

static const struct test tests[] = {
	{ "spinning_guest", spinning_guest }, { "halted_guest", halted_guest }, { "every_signal", every_signal },
	{ "real_time_signals", real_time_signals }, { "alarms", alarms }, { "child_ends", child_ends }, { "to_the_process", to_the_process },
	{ "ignored", ignored }, { "blocked_stays_pending", blocked_stays_pending }, { "all_blocked", all_blocked },
	{ "mask_errors", mask_errors }, { "mask_with_handler", mask_with_handler }, { "mask_without_handler", mask_without_handler },
	{ "mask_real_time", mask_real_time }, { "mask_is_restored", mask_is_restored }, { "default_still_ends", default_still_ends },
	{ "jump_out", jump_out }, { "kvm_in_handler", kvm_in_handler }, { "actions_are_told", actions_are_told },
	{ "mask_of_handler", mask_of_handler }, { "own_faults", own_faults }, { "fault_ends", fault_ends }, { "cancel", cancel },
	{ "latency", latency }, { "storm", storm },
};
MAIN(tests)
