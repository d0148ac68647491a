/* Guest memory that goes away unannounced: KVM_RUN fails with EFAULT, the guest goes on when it is back, and the client's own faults stay its own. */
/* The kernel emulates real mode on some machines, and calls an access that it cannot make there MMIO: each_access and own_faults are about Ring3. */
#include "test.h"

#define DATA 0x8000u

/* System calls that no interposer of library functions sees. */
static long raw(long number, long a, long b, long c)
{
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

static void take(struct machine *m)
{
	CHECK(raw(SYS_mprotect, (long)(m->memory + DATA), 0x1000, PROT_NONE) == 0);
}

static void give(struct machine *m)
{
	CHECK(raw(SYS_mprotect, (long)(m->memory + DATA), 0x1000, PROT_READ | PROT_WRITE) == 0);
}

/* Real-mode loops that touch [0x8000] and then write to a port. */
static const struct {
	const char *name, *code;
	size_t bytes;
} accesses[] = {
#define ACCESS(name, code) { name, code, sizeof code - 1 }
	ACCESS("load", "\xa0\x00\x80\xe6\x10\xeb\xf9"),
	ACCESS("store", "\xa2\x00\x80\xe6\x10\xeb\xf9"),
	ACCESS("locked increment", "\xf0\xff\x06\x00\x80\xe6\x10\xeb\xf7"),
	ACCESS("push", "\xbc\x02\x80\x50\xe6\x10\xeb\xf8"),
	ACCESS("rep movsb", "\xbe\x00\x80\xbf\x00\x60\xb9\x40\x00\xf3\xa4\xe6\x10\xeb\xf1"),
	ACCESS("rep stosw", "\xbf\x00\x80\xb9\x40\x00\xf3\xab\xe6\x10\xeb\xf4"),
	ACCESS("fild", "\xdb\xe3\xdf\x06\x00\x80\xe6\x10\xeb\xf6"),
	ACCESS("fistp", "\xdb\xe3\xd9\xe8\xdf\x1e\x00\x80\xe6\x10\xeb\xf4"),
};

static int once(struct machine *m)
{
	errno = 0;
	return ioctl(m->vcpu, KVM_RUN, 0) == 0 ? 0 : errno;
}

static void each_access(void)
{
	for (size_t i = 0; i < sizeof accesses / sizeof accesses[0]; i++) {
		struct machine m;
		create(&m, accesses[i].code, accesses[i].bytes, false);
		for (int round = 0; round < 20; round++) {
			struct kvm_regs before, after;
			take(&m);
			CHECK(once(&m) == EFAULT);
			CHECK(ioctl(m.vcpu, KVM_GET_REGS, &before) == 0);
			CHECK(once(&m) == EFAULT);
			CHECK(ioctl(m.vcpu, KVM_GET_REGS, &after) == 0);
			CHECK(memcmp(&before, &after, sizeof before) == 0);
			CHECK(before.rip >= 0x1000 && before.rip < 0x1000 + accesses[i].bytes);
			give(&m);
			/* An OUT of the last round is still to be finished by the first of these. */
			CHECK(once(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO && m.run->io.port == 0x10);
		}
		destroy(&m);
	}
}

static void *runner(void *argument)
{
	struct machine *m = argument;
	return (void *)(intptr_t)once(m);
}

/* Vector and x87 code at full speed in real mode, while the file behind its data is cut off and grows again. */
static void truncated_at_full_speed(void)
{
	struct machine m;
	int file = memfd_create("guest", MFD_CLOEXEC);
	/* again: movups xmm0, [0x8000]; paddd xmm0, [0x8010]; movups [0x8020], xmm0; fild word [0x8000]; fstp st0; inc word [0x8040]; jmp again */
	static const char code[] = "\x0f\x10\x06\x00\x80\x66\x0f\xfe\x06\x10\x80\x0f\x11\x06\x20\x80\xdf\x06\x00\x80\xdd\xd8\xff\x06\x40\x80\xeb\xe4";
	CHECK(file >= 0 && ftruncate(file, 0x1000) == 0);
	create(&m, code, sizeof code - 1, false);
	CHECK(mmap(m.memory + DATA, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == m.memory + DATA);
	struct kvm_sregs sregs;
	CHECK(ioctl(m.vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cr4 |= 0x200;
	CHECK(ioctl(m.vcpu, KVM_SET_SREGS, &sregs) == 0);
	for (int round = 0; round < 200; round++) {
		pthread_t thread;
		void *result;
		CHECK(pthread_create(&thread, NULL, runner, &m) == 0);
		for (volatile uint16_t *word = (volatile uint16_t *)(m.memory + DATA + 0x40); *word == 0;)
			usleep(100);
		CHECK(raw(SYS_ftruncate, file, 0, 0) == 0);
		CHECK(pthread_join(thread, &result) == 0);
		CHECK((intptr_t)result == EFAULT);
		CHECK(raw(SYS_ftruncate, file, 0x1000, 0) == 0);
	}
	destroy(&m);
}

static __thread sigjmp_buf back;
static __thread void *address;
static __thread int number;

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)context;
	number = signal;
	address = info->si_addr;
	siglongjmp(back, 1);
}

/* The client's faults on the same memory, before, between and after the guest's. */
static void own_faults(void)
{
	struct machine m;
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	volatile unsigned char *volatile nowhere = (unsigned char *)16;
	CREATE(&m, GUEST_LOAD_OUT, false);
	CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
	CHECK(once(&m) == 0);
	for (int round = 0; round < 50; round++) {
		take(&m);
		if (sigsetjmp(back, 1) == 0) {
			*(volatile unsigned char *)(m.memory + DATA + 5) = 1;
			CHECK(!"stored");
		}
		CHECK(number == SIGSEGV && address == m.memory + DATA + 5);
		CHECK(once(&m) == EFAULT);
		if (sigsetjmp(back, 1) == 0) {
			*nowhere = 1;
			CHECK(!"stored");
		}
		CHECK(number == SIGSEGV && address == (void *)16);
		give(&m);
		CHECK(once(&m) == 0);
	}
	destroy(&m);
}

/* Pointers of ioctls that lead nowhere, or half way. */
static void pointers(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	unsigned char *two = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(two != MAP_FAILED && munmap(two + 0x1000, 0x1000) == 0);
	const uintptr_t bad[] = { 0, 1, 0x800000000000, 0xdead00000000beef, ~0ul, (uintptr_t)two + 0x1000 - 8 };
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		CHECK_ERROR(ioctl(m.vcpu, KVM_GET_REGS, bad[i]), EFAULT);
		CHECK_ERROR(ioctl(m.vcpu, KVM_SET_REGS, bad[i]), EFAULT);
		CHECK_ERROR(ioctl(m.vcpu, KVM_GET_SREGS, bad[i]), EFAULT);
		CHECK_ERROR(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, bad[i]), EFAULT);
	}
	destroy(&m);
}

static const struct test tests[] = {
	{ "each_access", each_access },
	{ "truncated_at_full_speed", truncated_at_full_speed },
	{ "own_faults", own_faults },
	{ "pointers", pointers },
};

MAIN(tests)
