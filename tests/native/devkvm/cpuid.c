/* The processor that CPUID shows under ring3 exec --cpuid, and what else a SIGSEGV is. */
#include "test.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <ucontext.h>

struct registers {
	unsigned a, b, c, d;
};

static struct registers cpuid(unsigned leaf, unsigned subleaf)
{
	struct registers r;
	__cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
	return r;
}

static bool is_amd(void)
{
	struct registers r = cpuid(0, 0);
	return r.b == signature_AMD_ebx || r.b == 0x6f677948; /* "Hygo" */
}

/* As kvmtool looks. */
static bool has_virtualisation(void)
{
	if (!is_amd())
		return cpuid(1, 0).c & (1 << 5);
	return cpuid(0x80000000, 0).a >= 0x8000000A && (cpuid(0x80000001, 0).c & (1 << 2));
}

static bool seen_by_constructor;
__attribute__((constructor(101))) static void look_early(void)
{
	seen_by_constructor = has_virtualisation();
}

static int wait_status(pid_t pid)
{
	int status;
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

#define IN_CHILD(body) \
	({ \
		pid_t pid_ = fork(); \
		CHECK(pid_ >= 0); \
		if (!pid_) { \
			body; \
			_exit(0); \
		} \
		wait_status(pid_); \
	})

/* ---- what is shown ---- */

static void shown(void)
{
	CHECK(seen_by_constructor);
	CHECK(has_virtualisation());
	if (is_amd())
		CHECK(cpuid(0x8000000A, 0).a & 0xFF);
}

/* Where a leaf says which processor executes it, or how far its clocks are. */
static struct registers without_the_processor(unsigned leaf, struct registers r)
{
	if (leaf == 1) {
		r.b &= 0xFFFFFF;
		r.c &= ~(1u << 5);
	} else if (leaf == 0xB || leaf == 0x1F || leaf == 0x80000026) {
		r.d = 0;
	} else if (leaf == 0x8000001E) {
		r.a = r.b = r.c = 0;
	} else if (leaf == 0x80000001) {
		r.c &= ~(1u << 2);
	}
	return r;
}

static void other_leaves(void)
{
	static const unsigned ranges[] = { 0, 0x40000000, 0x80000000 };
	struct {
		unsigned leaf, subleaf;
		struct registers r;
	} *leaves = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned *count = (unsigned *)leaves + (1 << 18) - 1;

	CHECK(leaves != MAP_FAILED);
	/* The child lets the instruction through. */
	CHECK(IN_CHILD({
		CHECK(syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1) == 0);
		for (unsigned i = 0; i < 3; i++) {
			unsigned last = cpuid(ranges[i], 0).a;
			for (unsigned leaf = ranges[i]; leaf <= last && leaf < ranges[i] + 64; leaf++) {
				for (unsigned subleaf = 0; subleaf < 4; subleaf++) {
					leaves[*count].leaf = leaf;
					leaves[*count].subleaf = subleaf;
					leaves[(*count)++].r = cpuid(leaf, subleaf);
				}
			}
		}
	}) == 0);
	CHECK(*count > 20);
	for (unsigned i = 0; i < *count; i++) {
		unsigned leaf = leaves[i].leaf;
		struct registers host = without_the_processor(leaf, leaves[i].r), here = without_the_processor(leaf, cpuid(leaf, leaves[i].subleaf));
		if (is_amd() && (leaf == 0x80000000 || leaf == 0x8000000A))
			continue;
		if (leaf == 0xD && leaves[i].subleaf < 2)
			host.b = here.b;
		if (memcmp(&host, &here, sizeof host) != 0) {
			fprintf(stderr, "leaf %x.%x: %x %x %x %x, the host's: %x %x %x %x\n", leaf, leaves[i].subleaf,
				here.a, here.b, here.c, here.d, host.a, host.b, host.c, host.d);
			_exit(1);
		}
	}
}

/* REX and an operand-size prefix do nothing; what is not CPUID is the client's. */
static void prefixes(void)
{
	unsigned a, b, c, d;
	__asm__ volatile(".byte 0x48, 0x0f, 0xa2" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
	CHECK(a == cpuid(0, 0).a && b == cpuid(0, 0).b);
	__asm__ volatile(".byte 0x66, 0x2e, 0x0f, 0xa2" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
	CHECK(a == cpuid(0, 0).a && d == cpuid(0, 0).d);
	CHECK(IN_CHILD(__asm__ volatile("hlt")) == 256 + SIGSEGV);
	CHECK(IN_CHILD(*(volatile char *)0x8000000000000000 = 0) == 256 + SIGSEGV);
}

static unsigned count_words(int fd, const char *word)
{
	static char text[1 << 20];
	size_t held = 0;
	ssize_t n;
	unsigned found = 0;

	while ((n = read(fd, text + held, sizeof text - 1 - held)) > 0)
		held += (size_t)n;
	text[held] = 0;
	for (char *at = text; (at = strstr(at, word)) != NULL; at++) {
		char after = at[strlen(word)];
		found += at[-1] == ' ' && (after == ' ' || after == '\n');
	}
	return found;
}

static void cpuinfo(void)
{
	const char *flag = is_amd() ? "svm" : "vmx";
	unsigned processors = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
	char command[128];

	int fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && count_words(fd, flag) == processors);
	CHECK_ERROR(write(fd, "x", 1), EBADF);
	CHECK(close(fd) == 0);
	int directory = open("/proc", O_RDONLY | O_DIRECTORY);
	fd = openat(directory, "cpuinfo", O_RDONLY);
	CHECK(fd >= 0 && count_words(fd, flag) == processors && (fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0);
	FILE *stream = fopen("/proc/cpuinfo", "r");
	CHECK(stream && count_words(fileno(stream), flag) == processors);
	snprintf(command, sizeof command, "test $(grep -cw %s /proc/cpuinfo) -eq %u", flag, processors);
	CHECK(system(command) == 0);
}

/* ---- the client's own faults ---- */

static sigjmp_buf back;
static volatile int handled;
static volatile bool virtualisation_in_handler;

static void jump(int sig, siginfo_t *info, void *context)
{
	(void)context;
	handled++;
	CHECK(sig == SIGSEGV && info->si_code > 0);
	virtualisation_in_handler = has_virtualisation();
	siglongjmp(back, 1);
}

static void handle(int sig, void (*function)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = function, .sa_flags = SA_SIGINFO | flags };
	CHECK(sigaction(sig, &action, NULL) == 0);
}

static volatile char *volatile nowhere = (char *)16;

static void own_handler(void)
{
	sigset_t mask;

	handle(SIGSEGV, jump, 0);
	for (int i = 0; i < 3; i++) {
		if (!sigsetjmp(back, 1))
			*nowhere = 1;
		CHECK(handled == i + 1 && virtualisation_in_handler && has_virtualisation());
		CHECK(sigprocmask(SIG_BLOCK, NULL, &mask) == 0 && !sigismember(&mask, SIGSEGV));
	}
	struct sigaction now;
	CHECK(sigaction(SIGSEGV, NULL, &now) == 0 && now.sa_sigaction == jump);
}

static void step_over(int sig, siginfo_t *info, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
	sigset_t mask;

	handled++;
	CHECK(sig == SIGSEGV && info->si_code == SI_KERNEL && *(unsigned char *)g[REG_RIP] == 0xF4);
	CHECK(sigprocmask(SIG_BLOCK, NULL, &mask) == 0 && sigismember(&mask, SIGSEGV));
	CHECK(!sigismember(&((ucontext_t *)context)->uc_sigmask, SIGSEGV));
	CHECK(has_virtualisation());
	g[REG_RIP]++;
}

static void own_general_protection(void)
{
	handle(SIGSEGV, step_over, 0);
	__asm__ volatile("hlt");
	__asm__ volatile("hlt");
	CHECK(handled == 2 && has_virtualisation());
}

static void fault_again(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	(void)context;
	if (++handled > 1)
		_exit(1);
	*nowhere = 1;
}

/* A fault in the handler of faults ends the process, unless it said SA_NODEFER; SA_RESETHAND ends it at the second. */
static void fault_in_handler(void)
{
	CHECK(IN_CHILD({ handle(SIGSEGV, fault_again, 0); *nowhere = 1; }) == 256 + SIGSEGV);
	CHECK(IN_CHILD({ handle(SIGSEGV, fault_again, SA_NODEFER); *nowhere = 1; }) == 1);
	CHECK(IN_CHILD({
		handle(SIGSEGV, jump, SA_RESETHAND);
		if (!sigsetjmp(back, 1))
			*nowhere = 1;
		CHECK(handled == 1 && has_virtualisation());
		*nowhere = 1;
	}) == 256 + SIGSEGV);
	CHECK(IN_CHILD({ signal(SIGSEGV, SIG_IGN); CHECK(has_virtualisation()); *nowhere = 1; }) == 256 + SIGSEGV);
}

static __attribute__((noinline)) int deep(int n)
{
	volatile char page[4096];
	page[0] = (char)n;
	return n ? deep(n + 1) + page[0] : 0;
}

static void overflown(int sig, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	_exit(sig == SIGSEGV && has_virtualisation() ? 0 : 1);
}

static void alternate_stack(void)
{
	stack_t stack = { .ss_sp = malloc(1 << 16), .ss_size = 1 << 16 };

	CHECK(sigaltstack(&stack, NULL) == 0);
	CHECK(has_virtualisation());
	handle(SIGSEGV, overflown, SA_ONSTACK);
	CHECK(IN_CHILD(deep(1)) == 0);
}

/* ---- masks ---- */

static void look(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	(void)context;
	handled++;
	virtualisation_in_handler = has_virtualisation();
}

static sigset_t one(int sig)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, sig);
	return set;
}

static void *blocked_thread(void *argument)
{
	sigset_t mask;
	CHECK(pthread_sigmask(SIG_BLOCK, NULL, &mask) == 0 && sigismember(&mask, SIGSEGV));
	CHECK(has_virtualisation());
	return argument;
}

static void blocked(void)
{
	sigset_t all, mask, segv = one(SIGSEGV), none;
	pthread_attr_t attributes;
	pthread_t thread;

	sigfillset(&all);
	sigemptyset(&none);
	CHECK(pthread_sigmask(SIG_SETMASK, &all, &mask) == 0 && !sigismember(&mask, SIGSEGV));
	CHECK(has_virtualisation());
	CHECK(pthread_create(&thread, NULL, blocked_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
	CHECK(IN_CHILD(blocked_thread(NULL)) == 0);
	CHECK(pthread_sigmask(SIG_UNBLOCK, &segv, &mask) == 0 && sigismember(&mask, SIGSEGV) && sigismember(&mask, SIGUSR1));
	CHECK(pthread_sigmask(SIG_SETMASK, &none, &mask) == 0 && !sigismember(&mask, SIGSEGV) && sigismember(&mask, SIGUSR1));
	CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setsigmask_np(&attributes, &all) == 0);
	CHECK(pthread_create(&thread, &attributes, blocked_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
	/* A handler that blocks everything. */
	struct sigaction action = { .sa_sigaction = look, .sa_flags = SA_SIGINFO, .sa_mask = all }, now;
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGUSR1, NULL, &now) == 0 && sigismember(&now.sa_mask, SIGSEGV));
	CHECK(raise(SIGUSR1) == 0 && handled == 1 && virtualisation_in_handler);
	CHECK(pthread_sigmask(SIG_BLOCK, NULL, &mask) == 0 && !sigismember(&mask, SIGSEGV));
	/* A fault that is blocked ends the process, whatever handler there is. */
	handle(SIGSEGV, look, 0);
	CHECK(IN_CHILD({ pthread_sigmask(SIG_BLOCK, &segv, NULL); *nowhere = 1; }) == 256 + SIGSEGV);
}

static void sent(int sig, siginfo_t *info, void *context)
{
	(void)context;
	CHECK(sig == SIGSEGV && info->si_signo == SIGSEGV && info->si_code <= 0);
	handled++;
}

/* SIGSEGV that somebody sends is a signal like others. */
static void sent_while_blocked(void)
{
	sigset_t segv = one(SIGSEGV), pending;
	siginfo_t info;
	struct timespec soon = { 5, 0 };

	handle(SIGSEGV, sent, 0);
	CHECK(kill(getpid(), SIGSEGV) == 0 && handled == 1);
	CHECK(sigprocmask(SIG_BLOCK, &segv, NULL) == 0);
	CHECK(kill(getpid(), SIGSEGV) == 0 && handled == 1);
	CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGSEGV));
	CHECK(has_virtualisation());
	CHECK(sigprocmask(SIG_UNBLOCK, &segv, NULL) == 0 && handled == 2);
	CHECK(sigprocmask(SIG_BLOCK, &segv, NULL) == 0);
	CHECK(pthread_kill(pthread_self(), SIGSEGV) == 0 && handled == 2);
	CHECK(sigtimedwait(&segv, &info, &soon) == SIGSEGV && info.si_signo == SIGSEGV && info.si_pid == getpid());
	CHECK(sigprocmask(SIG_UNBLOCK, &segv, NULL) == 0 && handled == 2);
	CHECK(IN_CHILD({ signal(SIGSEGV, SIG_DFL); raise(SIGSEGV); }) == 256 + SIGSEGV);
	CHECK(IN_CHILD({ signal(SIGSEGV, SIG_IGN); CHECK(raise(SIGSEGV) == 0); }) == 0);
	CHECK(SIGRTMAX == 63);
	CHECK_ERROR(sigaction(64, NULL, NULL), EINVAL);
}

/* ---- threads and processes ---- */

static void *looks_often(void *argument)
{
	for (int i = 0; i < 200; i++)
		CHECK(has_virtualisation());
	return argument;
}

static void threads(void)
{
	pthread_t thread[8];
	struct itimerval often = { { 0, 300 }, { 0, 300 } }, never = { 0 };

	handle(SIGALRM, look, SA_RESTART);
	CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
	for (int i = 0; i < 8; i++)
		CHECK(pthread_create(thread + i, NULL, looks_often, NULL) == 0);
	for (int i = 0; i < 8; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	CHECK(handled > 0 && virtualisation_in_handler);
}

extern char **environ;

static int in_clone(void *argument)
{
	(void)argument;
	return has_virtualisation() ? 0 : 1;
}

static void processes(void)
{
	char *const again[] = { "/proc/self/exe", "shown", NULL };
	static char stack[1 << 16] __attribute__((aligned(16)));
	sigset_t all;
	pid_t pid;

	CHECK(IN_CHILD(CHECK(has_virtualisation()); CHECK(IN_CHILD(CHECK(has_virtualisation())) == 0)) == 0);
	CHECK(IN_CHILD(execv(again[0], again)) == 0);
	CHECK(posix_spawn(&pid, again[0], NULL, NULL, again, environ) == 0 && wait_status(pid) == 0);
	pid = clone(in_clone, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
	CHECK(pid > 0 && wait_status(pid) == 0);
	/* The mask goes on through exec, SIGSEGV in it or not. */
	sigfillset(&all);
	CHECK(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
	CHECK(IN_CHILD(execv(again[0], again)) == 0);
	/* A child of vfork puts the default actions back, as shells and launchers do. */
	handle(SIGUSR1, look, 0);
	if (!(pid = vfork())) {
		for (int sig = 1; sig < NSIG; sig++)
			signal(sig, SIG_DFL);
		execv(again[0], again);
		_exit(1);
	}
	CHECK(wait_status(pid) == 0 && has_virtualisation());
}

/* ---- KVM ---- */

static void kvm(void)
{
	struct machine m;
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[256];
	} supported = { .head = { .nent = 256 } };

	handle(SIGSEGV, jump, 0);
	CREATE(&m, GUEST_OUT, true);
	CHECK(ioctl(m.kvm, KVM_GET_SUPPORTED_CPUID, &supported) == 0);
	/* Virtualisation inside the guest is not offered, whatever the client is shown. */
	for (unsigned i = 0; i < supported.head.nent; i++) {
		if (supported.entries[i].function == 1)
			CHECK(!(supported.entries[i].ecx & (1 << 5)));
		if (supported.entries[i].function == 0x80000001)
			CHECK(!(supported.entries[i].ecx & (1 << 2)));
	}
	for (int i = 0; i < 100; i++) {
		CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
		CHECK(has_virtualisation());
	}
	if (!sigsetjmp(back, 1))
		*nowhere = 1;
	CHECK(handled == 1 && virtualisation_in_handler);
	threads();
	CHECK(IN_CHILD(CHECK(has_virtualisation())) == 0);
	destroy(&m);
}

/* ---- filters ---- */

#define REFUSE(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

static void confine(bool all)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)), REFUSE(arch_prctl), REFUSE(openat), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, filter };

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	if (all)
		CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
	else
		CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static pthread_barrier_t barrier;

static void *looks_before_and_after(void *argument)
{
	struct registers before = cpuid(7, 0);

	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	struct registers after = cpuid(7, 0);
	CHECK(memcmp(&before, &after, sizeof before) == 0 && has_virtualisation());
	return argument;
}

static void filtered(bool all)
{
	struct registers before = cpuid(0, 0), after, d = cpuid(0xD, 1), cache = cpuid(4, 1);
	pthread_t thread;

	CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0 && pthread_create(&thread, NULL, looks_before_and_after, NULL) == 0);
	pthread_barrier_wait(&barrier);
	confine(all);
	pthread_barrier_wait(&barrier);
	CHECK(pthread_join(thread, NULL) == 0);
	after = cpuid(0, 0);
	CHECK(memcmp(&before, &after, sizeof before) == 0 && has_virtualisation());
	after = cpuid(0xD, 1);
	CHECK(d.a == after.a && d.c == after.c);
	after = cpuid(4, 1);
	CHECK(memcmp(&cache, &after, sizeof cache) == 0);
	after = cpuid(4, 77);
	CHECK((after.a & 0x1F) == 0);
	looks_often(NULL);
}

static void filter_before_kvm(void)
{
	CHECK(IN_CHILD(filtered(false)) == 0);
	CHECK(IN_CHILD(filtered(true)) == 0);
}

static void filter_after_kvm(void)
{
	struct machine m;

	CREATE(&m, GUEST_OUT, true);
	CHECK(run(&m) == 0);
	filtered(true);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
}

/* read, write and the end are all that is left. */
static void strict(void)
{
	CHECK(IN_CHILD({
		CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0) == 0);
		syscall(SYS_exit, has_virtualisation() ? 3 : 1);
	}) == 3);
}

static const struct test tests[] = {
	{ "shown", shown },
	{ "other_leaves", other_leaves },
	{ "prefixes", prefixes },
	{ "cpuinfo", cpuinfo },
	{ "own_handler", own_handler },
	{ "own_general_protection", own_general_protection },
	{ "fault_in_handler", fault_in_handler },
	{ "alternate_stack", alternate_stack },
	{ "blocked", blocked },
	{ "sent_while_blocked", sent_while_blocked },
	{ "threads", threads },
	{ "processes", processes },
	{ "kvm", kvm },
	{ "filter_before_kvm", filter_before_kvm },
	{ "filter_after_kvm", filter_after_kvm },
	{ "strict", strict },
};
MAIN(tests)
