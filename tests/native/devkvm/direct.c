/*
 * What a program that is loaded beside the core may expect of its system calls: the suite links this statically. They pass without Ring3 as
 * well, where there is KVM.
 */
#include "test.h"

#include <linux/futex.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <ucontext.h>

static int wait_status(pid_t pid)
{
	int status;
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static volatile int handled;
static siginfo_t last;

static void note(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	last = *info;
	handled++;
}

static void handle(int sig, void (*function)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = function, .sa_flags = SA_SIGINFO | flags };
	CHECK(sigaction(sig, &action, NULL) == 0);
}

static sigset_t one(int sig)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, sig);
	return set;
}

static void alarm_in(unsigned ms)
{
	struct itimerval timer = { .it_value = { ms / 1000, (int)(ms % 1000) * 1000 } };
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

/* ---- the beginning ---- */

extern char **environ;

static void beginning(void)
{
	char path[4096], name[4096];
	uintptr_t sp = (uintptr_t)__builtin_frame_address(0);

	CHECK(getenv("RING3_DIRECT_TEST") && strcmp(getenv("RING3_DIRECT_TEST"), "a value") == 0);
	CHECK(getauxval(AT_PAGESZ) == 4096 && getauxval(AT_RANDOM) && getauxval(AT_PHDR) && getauxval(AT_ENTRY));
	CHECK(getpid() == (pid_t)syscall(SYS_gettid));
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
	CHECK(n > 0);
	path[n] = 0;
	CHECK(strcmp(strrchr(path, '/'), "/direct") == 0 && access(path, X_OK) == 0);
	snprintf(name, sizeof name, "/proc/%d/exe", getpid());
	int fd = open(name, O_RDONLY), other = open(path, O_RDONLY);
	struct stat a, b;
	CHECK(fd >= 0 && other >= 0 && fstat(fd, &a) == 0 && fstat(other, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev);
	CHECK(readlink("/proc/self/exe", path, 3) == 3);
	fd = open("/proc/self/comm", O_RDONLY);
	CHECK(read(fd, name, sizeof name) == 7 && memcmp(name, "direct\n", 7) == 0);
	CHECK(sp % 8 == 0 && (uintptr_t)environ > sp);
}

static void heap(void)
{
	char *begin = sbrk(0);

	CHECK(begin != (void *)-1 && sbrk(1 << 20) == begin);
	memset(begin, 1, 1 << 20);
	CHECK(sbrk(-(1 << 19)) == begin + (1 << 20) && sbrk(1 << 19) == begin + (1 << 19));
	CHECK(begin[0] == 1 && begin[(1 << 19) - 1] == 1 && begin[(1 << 20) - 1] == 0);
	CHECK(syscall(SYS_brk, 0) == (long)(begin + (1 << 20)) && syscall(SYS_brk, 1) == (long)(begin + (1 << 20)));
}

static void errors(void)
{
	CHECK_ERROR(syscall(SYS_openat, AT_FDCWD, (char *)8, O_RDONLY), EFAULT);
	CHECK_ERROR(syscall(SYS_rt_sigaction, SIGUSR1, (void *)8, NULL, 8), EFAULT);
	CHECK_ERROR(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4), EINVAL);
	CHECK_ERROR(syscall(SYS_rt_sigaction, SIGKILL, &(uint64_t[4]){ 0 }, NULL, 8), EINVAL);
	CHECK_ERROR(syscall(SYS_rt_sigprocmask, SIG_BLOCK, (void *)8, NULL, 8), EFAULT);
	CHECK_ERROR(syscall(SYS_rt_sigprocmask, 77, &(uint64_t){ 0 }, NULL, 8), EINVAL);
	CHECK_ERROR(syscall(SYS_sigaltstack, (void *)8, NULL), EFAULT);
	CHECK_ERROR(syscall(SYS_arch_prctl, 0x1002, 1ul << 63), EPERM);
	CHECK_ERROR(syscall(SYS_clone, CLONE_THREAD | CLONE_VM, 0, 0, 0, 0), EINVAL);
	CHECK_ERROR(syscall(9999), ENOSYS);
	CHECK_ERROR(syscall(SYS_readlink, "/proc/self/exe", (char *)8, 100), EFAULT);
}

/* ---- signals and system calls that wait ---- */

static void restarted(void)
{
	int p[2];
	char c;

	CHECK(pipe(p) == 0);
	handle(SIGALRM, note, 0);
	for (int i = 1; i <= 10; i++) {
		alarm_in(5);
		CHECK_ERROR(read(p[0], &c, 1), EINTR);
		CHECK(handled == i);
	}
	handle(SIGALRM, note, SA_RESTART);
	for (int i = 11; i <= 20; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			sleep_ms(40);
			CHECK(write(p[1], "x", 1) == 1);
			_exit(0);
		}
		alarm_in(5);
		CHECK(read(p[0], &c, 1) == 1 && c == 'x');
		CHECK(handled == i && wait_status(pid) == 0);
	}
	struct timespec t = { 0, 50000000 }, rest = { 0 };
	alarm_in(5);
	CHECK_ERROR(nanosleep(&t, &rest), EINTR);
	CHECK(rest.tv_nsec > 0 && rest.tv_nsec < 50000000);
}

/* A signal that is let through for one call only is handled, and its mask is back in the handler's frame. */
static void masks_of_a_call(void)
{
	sigset_t alarm = one(SIGALRM), none, mask;

	sigemptyset(&none);
	handle(SIGALRM, note, 0);
	CHECK(sigprocmask(SIG_BLOCK, &alarm, NULL) == 0);
	for (int i = 1; i <= 10; i++) {
		alarm_in(3);
		if (i % 2)
			CHECK_ERROR(sigsuspend(&none), EINTR);
		else
			CHECK_ERROR(ppoll(NULL, 0, NULL, &none), EINTR);
		CHECK(handled == i);
		CHECK(sigprocmask(SIG_BLOCK, NULL, &mask) == 0 && sigismember(&mask, SIGALRM) && !sigismember(&mask, SIGUSR1));
	}
	alarm_in(3);
	siginfo_t info;
	CHECK(sigwaitinfo(&alarm, &info) == SIGALRM && handled == 10);
}

static sigjmp_buf back;

static void jump(int sig, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	handled++;
	siglongjmp(back, sig);
}

static void jumps_out(void)
{
	int p[2];
	char c;
	volatile char *volatile nowhere = (char *)16;

	CHECK(pipe(p) == 0);
	handle(SIGALRM, jump, SA_RESTART);
	handle(SIGSEGV, jump, 0);
	for (int i = 1; i <= 20; i++) {
		if (!sigsetjmp(back, 1)) {
			alarm_in(2);
			CHECK(read(p[0], &c, 1) == -2);
		}
		CHECK(handled == 2 * i - 1);
		if (!sigsetjmp(back, 1))
			*nowhere = 1;
		CHECK(handled == 2 * i);
	}
}

/* The registers of the interrupted code, the vector ones as well, are its own again; the handler may change them. */
static void scramble(int sig, siginfo_t *info, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)sig;
	(void)info;
	handled++;
	__asm__ volatile("vpxor %%ymm0, %%ymm0, %%ymm0; vpxor %%ymm15, %%ymm15, %%ymm15; mov $0, %%r10; mov $0, %%r9" : : : "xmm0", "xmm15", "r9", "r10");
	CHECK(getppid() > 0);
	g[REG_R11] = 4711;
}

static void registers(void)
{
	uint64_t in[4] = { 1, 2, 3, 4 }, out[4], r9 = 99, r11;

	handle(SIGUSR1, scramble, 0);
	__asm__ volatile("vmovdqu %[in], %%ymm15\n"
		"mov $99, %%r9\n"
		"mov %[pid], %%edi\n"
		"mov %[sig], %%esi\n"
		"mov %[number], %%eax\n"
		"syscall\n"
		"vmovdqu %%ymm15, %[out]\n"
		"mov %%r9, %[r9]\n"
		"mov %%r11, %[r11]\n"
		: [out] "=m"(out), [r9] "=m"(r9), [r11] "=m"(r11)
		: [in] "m"(in), [pid] "r"(getpid()), [sig] "i"(SIGUSR1), [number] "i"(SYS_kill)
		: "rax", "rcx", "rdi", "rsi", "r9", "r10", "r11", "xmm0", "xmm15", "memory");
	CHECK(handled == 1 && memcmp(in, out, sizeof in) == 0 && r9 == 99 && r11 == 4711);
}

static void on_stack(int sig, siginfo_t *info, void *context)
{
	stack_t now;

	(void)sig;
	(void)info;
	CHECK(sigaltstack(NULL, &now) == 0 && (now.ss_flags & SS_ONSTACK));
	CHECK((char *)&now > (char *)now.ss_sp && (char *)&now < (char *)now.ss_sp + now.ss_size);
	CHECK(((ucontext_t *)context)->uc_stack.ss_sp == now.ss_sp);
	CHECK_ERROR(sigaltstack(&(stack_t){ .ss_flags = SS_DISABLE }, NULL), EPERM);
	if (++handled == 1)
		CHECK(raise(SIGUSR1) == 0); /* on the same stack, below */
}

static __attribute__((noinline)) int deep(int n)
{
	volatile char page[4096];
	page[0] = (char)n;
	return n ? deep(n + 1) + page[0] : 0;
}

static void ends(int sig, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	_exit(sig == SIGSEGV ? 0 : 1);
}

static void alternate_stack(void)
{
	stack_t stack = { .ss_sp = malloc(1 << 16), .ss_size = 1 << 16 }, old;

	CHECK(sigaltstack(NULL, &old) == 0 && old.ss_flags == SS_DISABLE);
	CHECK_ERROR(sigaltstack(&(stack_t){ .ss_sp = stack.ss_sp, .ss_size = 100 }, NULL), ENOMEM);
	CHECK(sigaltstack(&stack, NULL) == 0 && sigaltstack(NULL, &old) == 0 && old.ss_sp == stack.ss_sp && old.ss_flags == 0);
	handle(SIGUSR1, on_stack, SA_ONSTACK | SA_NODEFER);
	CHECK(raise(SIGUSR1) == 0 && handled == 2);
	handle(SIGSEGV, ends, SA_ONSTACK);
	pid_t pid = fork();
	if (!pid)
		_exit(deep(1));
	CHECK(wait_status(pid) == 0);
	/* No room for a frame: the end. */
	handle(SIGSEGV, ends, 0);
	pid = fork();
	if (!pid)
		_exit(deep(1));
	CHECK(wait_status(pid) > 256);
}

static void information(void)
{
	union sigval value = { .sival_int = 4711 };

	handle(SIGRTMIN, note, 0);
	CHECK(sigqueue(getpid(), SIGRTMIN, value) == 0);
	CHECK(handled == 1 && last.si_code == SI_QUEUE && last.si_value.sival_int == 4711 && last.si_pid == getpid());
	handle(SIGSYS, note, 0);
	CHECK(raise(SIGSYS) == 0 && handled == 2);
	for (int sig = 32; sig < 34; sig++) { /* another C library's own */
		uint64_t action[4] = { 0 }, old[4];
		CHECK(syscall(SYS_rt_sigaction, sig, NULL, old, 8) == 0);
		CHECK(syscall(SYS_rt_sigaction, sig, action, NULL, 8) == 0);
	}
}

/* ---- threads ---- */

static __thread int own = 5;
static volatile bool stop;

static void *works(void *argument)
{
	long id = (long)argument;

	CHECK(own == 5);
	own = (int)id;
	for (int i = 0; i < 300; i++) {
		void *p = malloc(1000 + (size_t)i * 100);
		CHECK(p != NULL);
		memset(p, (int)id, 1000);
		CHECK(syscall(SYS_gettid) != getpid());
		free(p);
		errno = 0;
		CHECK(read(-1, &i, 1) == -1 && errno == EBADF);
	}
	CHECK(own == id);
	return (void *)(id * 2);
}

static void threads(void)
{
	pthread_t thread[8];
	void *result;

	for (int round = 0; round < 20; round++) {
		for (long i = 0; i < 8; i++)
			CHECK(pthread_create(thread + i, NULL, works, (void *)i) == 0);
		for (long i = 0; i < 8; i++)
			CHECK(pthread_join(thread[i], &result) == 0 && result == (void *)(i * 2));
	}
	for (unsigned i = 0; count_entries("/proc/self/task") > 12 && i < 1000; i++)
		sleep_ms(5);
	CHECK(count_entries("/proc/self/task") <= 12); /* . and .., this one, and some of the core */
}

static _Atomic uint32_t cleared;
static pid_t parent_tid;
static long stack_of_clone[8192] __attribute__((aligned(16)));

static int in_clone(void *argument)
{
	while (!stop)
		sched_yield();
	return *(int *)argument;
}

/* As a language without a C library does it. */
static void raw_threads(void)
{
	const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	int status = 0;

	for (int i = 0; i < 50; i++) {
		stop = false;
		atomic_store(&cleared, 77);
		int tid = clone(in_clone, stack_of_clone + 8192, flags, &status, &parent_tid, NULL, &cleared);
		CHECK(tid > 0 && parent_tid == tid);
		CHECK(syscall(SYS_tgkill, getpid(), tid, 0) == 0);
		stop = true;
		for (uint32_t now; (now = atomic_load(&cleared)) != 0;)
			syscall(SYS_futex, &cleared, FUTEX_WAIT, now, NULL, NULL, 0);
	}
}

static pthread_mutex_t robust;

static void *dies_with_it(void *argument)
{
	CHECK(pthread_mutex_lock(&robust) == 0);
	return argument;
}

static void robust_mutex(void)
{
	pthread_mutexattr_t attributes;
	pthread_t thread;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &attributes);
	for (int i = 0; i < 20; i++) {
		CHECK(pthread_create(&thread, NULL, dies_with_it, NULL) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
		CHECK(pthread_mutex_lock(&robust) == EOWNERDEAD);
		CHECK(pthread_mutex_consistent(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
	}
}

static void *waits(void *argument)
{
	char c;
	read(*(int *)argument, &c, 1);
	return NULL;
}

static void cancellation(void)
{
	int p[2];
	pthread_t thread;
	void *result;

	CHECK(pipe(p) == 0);
	for (int i = 0; i < 20; i++) {
		CHECK(pthread_create(&thread, NULL, waits, p) == 0);
		if (i % 2)
			sleep_ms(2);
		CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
	}
}

static void *stormed(void *argument)
{
	int p[2];
	char c = 0;

	CHECK(pipe(p) == 0);
	for (int i = 0; i < 2000 && !stop; i++) {
		CHECK(write(p[1], &c, 1) == 1);
		CHECK(read(p[0], &c, 1) == 1);
		free(malloc(5000));
	}
	close(p[0]);
	close(p[1]);
	return argument;
}

/* Signals at every instruction of the way in and out. */
static void storm(void)
{
	struct itimerval often = { { 0, 100 }, { 0, 100 } }, never = { 0 };
	pthread_t thread[4];

	handle(SIGALRM, note, SA_RESTART);
	handle(SIGUSR1, note, SA_RESTART);
	CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(thread + i, NULL, stormed, NULL) == 0);
	for (int i = 0; i < 3000; i++)
		CHECK(pthread_kill(thread[i % 4], SIGUSR1) == 0 || errno == ESRCH);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	CHECK(handled > 100);
}

static void *outlives(void *argument)
{
	sleep_ms(20);
	syscall(SYS_exit, 4);
	return argument;
}

/* The process ends with its last thread, and with the status of its first. */
static void last_thread(void)
{
	pthread_t thread;

	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			if (i == 1)
				CHECK(pthread_create(&thread, NULL, outlives, NULL) == 0);
			if (i == 2) {
				struct machine m;
				CREATE(&m, GUEST_OUT, true); /* which has threads of its own */
				CHECK(run(&m) == 0);
			}
			syscall(SYS_exit, 9);
		}
		CHECK(wait_status(pid) == 9);
	}
}

/* ---- processes ---- */

static void children(void)
{
	char program[4096];
	char *const again[] = { program, "beginning", NULL };
	pid_t pid;

	ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
	CHECK(n > 0);
	program[n] = 0;
	for (int i = 0; i < 5; i++) {
		pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			CHECK(getpid() == syscall(SYS_gettid));
			threads();
			_exit(33);
		}
		CHECK(wait_status(pid) == 33);
	}
	/* A static program again, by exec in a child of fork and of vfork; and one that is not. */
	pid = fork();
	if (!pid) {
		execv(again[0], again);
		_exit(1);
	}
	CHECK(wait_status(pid) == 0);
	for (int i = 0; i < 20; i++) {
		CHECK(posix_spawn(&pid, again[0], NULL, NULL, again, environ) == 0 && wait_status(pid) == 0);
		CHECK(own == 5);
	}
	CHECK(posix_spawn(&pid, "/nowhere", NULL, NULL, again, environ) == ENOENT);
	CHECK(system("test -n \"$RING3_DIRECT_TEST\" && exit 5") == 5 << 8);
	handle(SIGUSR1, note, 0);
	pid = vfork();
	if (!pid) {
		raise(SIGUSR1);
		signal(SIGUSR1, SIG_DFL);
		raise(SIGUSR1);
		_exit(2);
	}
	CHECK(wait_status(pid) == 256 + SIGUSR1 && handled == 1);
	CHECK(raise(SIGUSR1) == 0 && handled == 2);
}

/* ---- with KVM ---- */

static void *runs(void *argument)
{
	struct machine *m = argument;

	for (int i = 0; i < 2000; i++)
		CHECK((run(m) == 0 && m->run->exit_reason == KVM_EXIT_IO) || errno == EINTR);
	return NULL;
}

static void machines_in_threads(void)
{
	struct itimerval often = { { 0, 500 }, { 0, 500 } }, never = { 0 };
	struct machine m[4];
	pthread_t thread[4];

	handle(SIGALRM, note, SA_RESTART);
	CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
	for (int i = 0; i < 4; i++) {
		CREATE(m + i, GUEST_OUT, i % 2);
		CHECK(pthread_create(thread + i, NULL, runs, m + i) == 0);
	}
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	for (int i = 0; i < 4; i++)
		destroy(m + i);
	CHECK(handled > 0);
}

static const struct test tests[] = {
	{ "beginning", beginning }, { "heap", heap }, { "errors", errors }, { "restarted", restarted }, { "masks_of_a_call", masks_of_a_call },
	{ "jumps_out", jumps_out }, { "registers", registers }, { "alternate_stack", alternate_stack }, { "information", information },
	{ "threads", threads }, { "raw_threads", raw_threads }, { "robust_mutex", robust_mutex }, { "cancellation", cancellation },
	{ "storm", storm }, { "last_thread", last_thread }, { "children", children }, { "machines_in_threads", machines_in_threads },
};
MAIN(tests)
