/*
 * ring3-selftest: a small KVM client for `ring3 doctor`. Creates a VM, lets it leave for a port as often as it can for a second, then
 * checks that a signal gets a looping guest to return. One line on standard output; status 0 when all went well.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t alarms;

static void on_alarm(int sig)
{
	(void)sig;
	alarms++;
}

static int failed(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

static double seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(void)
{
	/* Real mode, at 0: out 0x10, al; jmp 0. At 8: jmp 8. */
	static const unsigned char code[] = { 0xe6, 0x10, 0xeb, 0xfc, 0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe };
	struct kvm_userspace_memory_region region = { .memory_size = 4096 };
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rflags = 2 };
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval timer = { .it_value = { 0, 50000 } };

	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return failed("open /dev/kvm");
	int version = ioctl(kvm, KVM_GET_API_VERSION, 0);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		return failed("KVM_CREATE_VM");
	void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return failed("mmap");
	memcpy(memory, code, sizeof code);
	region.userspace_addr = (unsigned long)memory;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) != 0)
		return failed("KVM_SET_USER_MEMORY_REGION");
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return failed("KVM_CREATE_VCPU");
	struct kvm_run *run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		return failed("mmap of the vCPU");
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs) != 0)
		return failed("KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) != 0 || ioctl(vcpu, KVM_SET_REGS, &regs) != 0)
		return failed("KVM_SET_REGS");

	long exits = 0;
	double start = seconds();
	while (seconds() - start < 0.9) {
		for (int i = 0; i < 1000; i++, exits++) {
			if (ioctl(vcpu, KVM_RUN, 0) != 0)
				return failed("KVM_RUN");
			if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x10) {
				printf("KVM_RUN: exit %u instead of a port access\n", run->exit_reason);
				return 1;
			}
		}
	}
	double rate = (double)exits / (seconds() - start);

	regs.rip = 8;
	if (ioctl(vcpu, KVM_SET_REGS, &regs) != 0)
		return failed("KVM_SET_REGS");
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	if (ioctl(vcpu, KVM_RUN, 0) != -1 || errno != EINTR || !alarms)
		return failed("a signal does not interrupt KVM_RUN");
	printf("API version %d, %.1f million port exits a second, signals arrive\n", version, rate / 1e6);
	return version != KVM_API_VERSION;
}
