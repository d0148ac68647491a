/*
 * Clients that confine themselves by seccomp before their first KVM_RUN, to the narrowest list with which a client's loop can do. What they
 * do then is everything that a client does. In three ways: death for any other call, an errno for it, and for all threads at once.
 */
#include "test.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

enum way { KILL, ERRNO, ALL_THREADS };
static enum way way;

#define ALLOW(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void install(const struct sock_filter *filter, size_t count, bool all)
{
	struct sock_fprog program = { (unsigned short)count, (struct sock_filter *)filter };

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	if (all)
		CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
	else
		CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void confine(void)
{
	const struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(ioctl), ALLOW(read), ALLOW(write), ALLOW(futex), ALLOW(mmap), ALLOW(munmap), ALLOW(mprotect), ALLOW(madvise), ALLOW(close),
		ALLOW(exit), ALLOW(exit_group), ALLOW(rt_sigreturn), ALLOW(rt_sigprocmask),
		BPF_STMT(BPF_RET | BPF_K, way == ERRNO ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_KILL_PROCESS),
	};
	install(filter, sizeof filter / sizeof *filter, way == ALL_THREADS);
}

/* A thread that another one's filter has reached, or has not. */
static void confine_thread(void)
{
	if (way != ALL_THREADS)
		confine();
}

/* ---- each kind of exit ---- */

static const char exits_guest[] =
	"\xe4\x20"                 /* in al, 0x20 */
	"\xe6\x21"                 /* out 0x21, al */
	"\x8e\xdb"                 /* mov ds, bx: 0x2000, behind the slot */
	"\xa0\x00\x00"             /* mov al, [0] */
	"\xa2\x01\x00"             /* mov [1], al */
	"\x0f\xa2"                 /* cpuid */
	"\xf4"                     /* hlt */
	"\x2e\x0f\x01\x1e\x00\x50" /* lidt cs:[0x5000]: no vectors */
	"\xcc";                    /* int3: triple fault */

static void exits_of(struct machine *m)
{
	struct kvm_regs regs;

	CHECK(ioctl(m->vcpu, KVM_GET_REGS, &regs) == 0);
	regs.rip = 0x1000;
	regs.rbx = 0x2000;
	CHECK(ioctl(m->vcpu, KVM_SET_REGS, &regs) == 0);
	m->run->immediate_exit = 1;
	CHECK_ERROR(run(m), EINTR);
	m->run->immediate_exit = 0;
	CHECK(run(m) == 0 && m->run->exit_reason == KVM_EXIT_IO && m->run->io.direction == KVM_EXIT_IO_IN && m->run->io.port == 0x20);
	((unsigned char *)m->run)[m->run->io.data_offset] = 0x5a;
	CHECK(run(m) == 0 && m->run->exit_reason == KVM_EXIT_IO && m->run->io.direction == KVM_EXIT_IO_OUT && m->run->io.port == 0x21);
	CHECK(((unsigned char *)m->run)[m->run->io.data_offset] == 0x5a);
	CHECK(run(m) == 0 && m->run->exit_reason == KVM_EXIT_MMIO && !m->run->mmio.is_write && m->run->mmio.phys_addr == 0x20000);
	m->run->mmio.data[0] = 0xa5;
	CHECK(run(m) == 0 && m->run->exit_reason == KVM_EXIT_MMIO && m->run->mmio.is_write && m->run->mmio.phys_addr == 0x20001 && m->run->mmio.data[0] == 0xa5);
	CHECK(run(m) == 0 && m->run->exit_reason == KVM_EXIT_HLT);
	CHECK(run(m) == 0 && m->run->exit_reason == KVM_EXIT_SHUTDOWN);
}

static void exits(void)
{
	struct machine m;

	create(&m, exits_guest, sizeof exits_guest, false);
	confine();
	exits_of(&m);
	destroy(&m);
}

/* A VM from its first call to its last. */
static void whole_life(void)
{
	struct machine m = { .kvm = open_kvm() };

	confine();
	for (int i = 0; i < 20; i++) {
		m.vm = ioctl(m.kvm, KVM_CREATE_VM, 0);
		CHECK(m.vm >= 0);
		m.memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(m.memory != MAP_FAILED);
		memcpy(m.memory + 0x1000, exits_guest, sizeof exits_guest);
		set_slot(&m, m.memory, MEMORY_BYTES);
		add_vcpu(&m);
		exits_of(&m);
		int stats = ioctl(m.vcpu, KVM_GET_STATS_FD, 0);
		struct kvm_stats_header header;
		CHECK(stats >= 0 && read(stats, &header, sizeof header) == sizeof header && header.num_desc > 10);
		CHECK_ERROR(ioctl(m.vcpu, 0xae00 + 0xff, 0), EINVAL);
		CHECK(close(stats) == 0 && munmap(m.run, m.run_bytes) == 0 && close(m.vcpu) == 0 && close(m.vm) == 0 && munmap(m.memory, MEMORY_BYTES) == 0);
		CHECK_ERROR(ioctl(m.vm, KVM_CHECK_EXTENSION, 0), EBADF);
	}
	CHECK(close(m.kvm) == 0);
}

static void many(void)
{
	struct machine m;

	CREATE(&m, GUEST_OUT, false);
	confine();
	for (int i = 0; i < 20000; i++)
		CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	destroy(&m);
}

/* ---- interrupts and timers ---- */

static const char interrupts_guest[] =
	"\xb0\x11\xe6\x20\xb0\x08\xe6\x21\xb0\x04\xe6\x21\xb0\x01\xe6\x21\xb0\xfc\xe6\x21" /* the PIC: vectors from 8, lines 0 and 1 */
	"\xb0\x34\xe6\x43\xb0\x00\xe6\x40\xb0\x08\xe6\x40"                                 /* the PIT: a tick each 1.7 ms */
	"\xfb"                                                                             /* sti */
	"\xf4\xeb\xfd";                                                                    /* again: hlt; jmp again */
static const char tick_handler[] = "\x50\xb0\x20\xe6\x20\xe6\x10\x58\xcf"; /* push ax; end of interrupt; out 0x10, al; pop ax; iret */
static const char line_handler[] = "\x50\xb0\x20\xe6\x20\xe6\x11\x58\xcf"; /* the same to port 0x11 */

static void vector(struct machine *m, unsigned n, uint16_t at, const char *code, size_t bytes)
{
	memcpy(m->memory + at, code, bytes);
	memcpy(m->memory + 4 * n, (uint16_t[]){ at, 0 }, 4);
}

static void interrupts(void)
{
	struct machine m;
	struct kvm_pit_config pit = { 0 };
	int event = eventfd(0, EFD_CLOEXEC), ticks = 0, lines = 0;
	struct kvm_irqfd irqfd = { .fd = (uint32_t)event, .gsi = 1 };

	create(&m, interrupts_guest, sizeof interrupts_guest, true);
	vector(&m, 8, 0x2000, tick_handler, sizeof tick_handler);
	vector(&m, 9, 0x2100, line_handler, sizeof line_handler);
	confine();
	CHECK(ioctl(m.vm, KVM_CREATE_PIT2, &pit) == 0);
	CHECK(ioctl(m.vm, KVM_IRQFD, &irqfd) == 0);
	while (ticks < 20 || lines < 20) {
		if (lines < 20)
			CHECK(write(event, &(uint64_t){ 1 }, 8) == 8);
		CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
		if (m.run->io.port == 0x10)
			ticks++;
		else
			lines++;
	}
	irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
	CHECK(ioctl(m.vm, KVM_IRQFD, &irqfd) == 0 && close(event) == 0);
	destroy(&m);
}

/* ---- signals ---- */

static volatile sig_atomic_t signals;
static volatile pid_t sender;

static void count(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	sender = info->si_code == SI_USER ? info->si_pid : 0;
	signals++;
}

static void handle(int sig)
{
	struct sigaction action = { .sa_sigaction = count, .sa_flags = SA_SIGINFO };
	CHECK(sigaction(sig, &action, NULL) == 0);
}

static void kicked_by_a_timer(void)
{
	struct machine m, halted;
	struct itimerval timer = { { 0, 2000 }, { 0, 2000 } };

	CREATE(&m, GUEST_SPIN, false);
	CREATE(&halted, GUEST_HALT, true);
	handle(SIGALRM);
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
	confine();
	for (int i = 0; i < 100; i++) {
		int before = signals;
		CHECK_ERROR(run(i & 1 ? &m : &halted), EINTR);
		CHECK(signals > before);
	}
	/* With a mask for KVM_RUN alone: the signal is pending afterwards. */
	uint32_t mask[3] = { 8 }; /* struct kvm_signal_mask with an empty set */
	sigset_t alarm, old;
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	CHECK(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, mask) == 0);
	CHECK(sigprocmask(SIG_BLOCK, &alarm, &old) == 0);
	int before = signals;
	for (int i = 0; i < 10; i++)
		CHECK_ERROR(run(&m), EINTR);
	CHECK(signals == before);
	CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
	CHECK(signals > before);
	_exit(0); /* the timer goes on */
}

static void kicked_by_a_process(void)
{
	struct machine m;
	int turns[2];
	char c = 0;

	CREATE(&m, GUEST_SPIN, false);
	handle(SIGUSR1);
	CHECK(pipe(turns) == 0);
	pid_t parent = getpid(), child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		close(turns[1]);
		while (read(turns[0], &c, 1) == 1 && kill(parent, SIGUSR1) == 0)
			;
		_exit(0);
	}
	close(turns[0]);
	confine();
	for (int i = 0; i < 200; i++) {
		int before = signals;
		sender = 0;
		CHECK(write(turns[1], &c, 1) == 1);
		/* It may come before. */
		if (signals == before)
			CHECK_ERROR(run(&m), EINTR);
		CHECK(signals == before + 1 && sender == child);
	}
	CHECK(close(turns[1]) == 0);
	destroy(&m);
}

/* ---- memory ---- */

static void memory(void)
{
	struct machine m;
	enum { BYTES = 0x400000 };

	CREATE(&m, GUEST_STORE GUEST_OUT, false);
	memcpy(m.memory + 0x1000, "\xfe\x07\xe6\x10\x43\xeb\xf9", 7); /* again: inc byte [bx]; out 0x10, al; inc bx; jmp again */
	unsigned char *more = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(more != MAP_FAILED);
	confine();
	struct kvm_userspace_memory_region region = { .slot = 1, .guest_phys_addr = 0x100000, .memory_size = BYTES, .userspace_addr = (uintptr_t)more };
	struct kvm_sregs sregs;
	CHECK(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	CHECK(ioctl(m.vcpu, KVM_GET_SREGS, &sregs) == 0);
	for (unsigned page = 0; page < BYTES / 4096; page += 7) {
		sregs.ds.base = 0x100000 + page * 4096;
		struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
		CHECK(ioctl(m.vcpu, KVM_SET_SREGS, &sregs) == 0 && ioctl(m.vcpu, KVM_SET_REGS, &regs) == 0);
		CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
		CHECK(more[page * 4096] == 1);
	}
	/* Contents that are given back are zero, memory that is gone is an error, and a slot that is gone is MMIO. */
	CHECK(madvise(more, BYTES, MADV_DONTNEED) == 0);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO && more[sregs.ds.base - 0x100000 + 1] == 1);
	CHECK(mprotect(more, BYTES, PROT_NONE) == 0);
	CHECK_ERROR(run(&m), EFAULT);
	CHECK(mprotect(more, BYTES, PROT_READ | PROT_WRITE) == 0);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	CHECK(munmap(more, BYTES) == 0);
	CHECK_ERROR(run(&m), EFAULT);
	region.memory_size = 0;
	CHECK(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_MMIO);
	destroy(&m);
}

/* ---- threads ---- */

static pthread_barrier_t confined_barrier;

static void *runs(void *argument)
{
	struct machine *m = argument;

	pthread_barrier_wait(&confined_barrier);
	confine_thread();
	for (int i = 0; i < 5000; i++) {
		CHECK(run(m) == 0 && m->run->exit_reason == KVM_EXIT_IO);
		if (i % 100 == 0) {
			struct kvm_regs regs;
			CHECK(ioctl(m->vcpu, KVM_GET_REGS, &regs) == 0 && ioctl(m->vcpu, KVM_SET_REGS, &regs) == 0);
		}
	}
	return NULL;
}

/* Two vCPUs on threads that have never called KVM before they were confined. */
static void threads(void)
{
	struct machine m, second;
	pthread_t thread[2];

	CREATE(&m, GUEST_OUT, false);
	second = m;
	second.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, 1);
	CHECK(second.vcpu >= 0);
	second.run = mmap(NULL, m.run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, second.vcpu, 0);
	CHECK(second.run != MAP_FAILED);
	set_real_mode(&second, 0x1000);
	CHECK(ioctl(second.vcpu, KVM_SET_MP_STATE, &(struct kvm_mp_state){ KVM_MP_STATE_RUNNABLE }) == 0 || errno == ENXIO);
	CHECK(pthread_barrier_init(&confined_barrier, NULL, 3) == 0);
	CHECK(pthread_create(&thread[0], NULL, runs, &m) == 0 && pthread_create(&thread[1], NULL, runs, &second) == 0);
	confine();
	pthread_barrier_wait(&confined_barrier);
	CHECK(pthread_join(thread[0], NULL) == 0 && pthread_join(thread[1], NULL) == 0);
	CHECK(munmap(second.run, m.run_bytes) == 0 && close(second.vcpu) == 0);
	destroy(&m);
}

/* The filter is about all threads of the client: each of them gets EPERM for what is not allowed, also one that waits in a system call. */
static void *is_refused(void *argument)
{
	char c;

	CHECK(read(*(int *)argument, &c, 1) == 1);
	CHECK_ERROR(syscall(SYS_getppid), EPERM);
	return NULL;
}

static void reaches_all_threads(void)
{
	struct machine m;
	pthread_t thread[3];
	int turns[2];
	const struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 1, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_timerfd_settime, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};

	CREATE(&m, GUEST_OUT, false);
	CHECK(pipe(turns) == 0);
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&thread[i], NULL, is_refused, &turns[0]) == 0);
	install(filter, sizeof filter / sizeof *filter, true);
	CHECK(write(turns[1], "xxx", 3) == 3);
	for (int i = 0; i < 3; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	destroy(&m);
}

static int count_threads(void)
{
	return count_entries("/proc/self/task");
}

/* A list of what is forbidden, or a filter that only watches, is none of Ring3's business: its calls stay in the client's threads, which are all that there are. */
static void harmless_filters(void)
{
	struct machine m;
	const struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xc000003e, 1, 0), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)), BPF_STMT(BPF_MISC | BPF_TAX, 0), BPF_STMT(BPF_ST, 3),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ptrace, 2, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_execve, 1, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 1, 3),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_LD | BPF_MEM, 3), BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, 1), BPF_STMT(BPF_ALU | BPF_SUB | BPF_X, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};

	CREATE(&m, GUEST_OUT, false);
	CHECK(run(&m) == 0);
	int before = count_threads();
	install(filter, sizeof filter / sizeof *filter, false);
	CHECK(count_threads() == before);
	for (int i = 0; i < 1000; i++)
		CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	CHECK(count_threads() == before);
	install(filter, sizeof filter / sizeof *filter, true);
	CHECK(run(&m) == 0 && count_threads() == before);
	CHECK_ERROR(syscall(SYS_clone3, NULL, 0), ENOSYS);
	destroy(&m);
}

/* A filter that the kernel does not accept changes nothing. */
static void refused_filters(void)
{
	struct machine m;
	struct sock_filter bad = BPF_STMT(BPF_RET | BPF_X, 0), endless = BPF_STMT(BPF_LD | BPF_IMM, 0);
	struct sock_fprog none = { 0, NULL }, wild = { 1, (void *)8 }, wrong = { 1, &bad }, open_end = { 1, &endless };

	CREATE(&m, GUEST_OUT, false);
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK_ERROR(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &none), EINVAL);
	CHECK_ERROR(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL), EFAULT);
	CHECK_ERROR(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 8), EFAULT);
	CHECK_ERROR(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 0x7ffffffff000), EFAULT);
	CHECK_ERROR(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &wild), EFAULT);
	CHECK_ERROR(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &wrong), EINVAL);
	CHECK_ERROR(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &open_end), EINVAL);
	CHECK_ERROR(syscall(SYS_seccomp, 77, 0, NULL), EINVAL);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	destroy(&m);
}

/* A thread cannot be made: the open fails, or works where the C library knows another way. */
static void without_clone3(int error, bool works)
{
	const struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const char *list = getenv("LD_PRELOAD");

	install(filter, sizeof filter / sizeof *filter, false);
	if (works || !list || !strstr(list, "libring3.so"))
		CHECK(open("/dev/kvm", O_RDWR) >= 0);
	else
		CHECK_ERROR(open("/dev/kvm", O_RDWR), error);
}

static void clone3_unknown(void)
{
	without_clone3(ENOSYS, true);
}

static void clone3_refused(void)
{
	without_clone3(EPERM, false);
}

/* A filter that a program installs by its own instruction: what needs no other system calls goes on, from the first KVM_RUN on. */
static void unseen(void)
{
	struct machine m;
	const struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)), ALLOW(ioctl), ALLOW(write), ALLOW(futex), ALLOW(mmap), ALLOW(munmap), ALLOW(mprotect), ALLOW(madvise), ALLOW(exit_group), ALLOW(rt_sigreturn), ALLOW(rt_sigprocmask),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, (struct sock_filter *)filter };
	long result = SYS_seccomp;

	CREATE(&m, GUEST_OUT, false);
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	__asm__ volatile("syscall" : "+a"(result) : "D"(SECCOMP_SET_MODE_FILTER), "S"(0), "d"(&program) : "rcx", "r11", "memory");
	CHECK(result == 0);
	for (int i = 0; i < 1000; i++)
		CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	_exit(0);
}

static void main_returns(void)
{
	struct machine m;

	CREATE(&m, GUEST_OUT, false);
	confine();
	CHECK(run(&m) == 0);
	exit(0);
}

#define IN_ALL_WAYS(name) \
	static void name##_kill(void) { way = KILL; name(); } \
	static void name##_errno(void) { way = ERRNO; name(); } \
	static void name##_all_threads(void) { way = ALL_THREADS; name(); }
IN_ALL_WAYS(exits)
IN_ALL_WAYS(whole_life)
IN_ALL_WAYS(many)
IN_ALL_WAYS(interrupts)
IN_ALL_WAYS(kicked_by_a_timer)
IN_ALL_WAYS(kicked_by_a_process)
IN_ALL_WAYS(memory)
IN_ALL_WAYS(threads)
IN_ALL_WAYS(main_returns)
#define ALL_WAYS(name) { #name "_kill", name##_kill }, { #name "_errno", name##_errno }, { #name "_all_threads", name##_all_threads }

static const struct test tests[] = {
	ALL_WAYS(exits), ALL_WAYS(whole_life), ALL_WAYS(many), ALL_WAYS(interrupts), ALL_WAYS(kicked_by_a_timer), ALL_WAYS(kicked_by_a_process), ALL_WAYS(memory),
	ALL_WAYS(threads), ALL_WAYS(main_returns), { "reaches_all_threads", reaches_all_threads }, { "unseen", unseen }, { "harmless_filters", harmless_filters }, { "refused_filters", refused_filters },
	{ "clone3_unknown", clone3_unknown }, { "clone3_refused", clone3_refused },
};
MAIN(tests)
