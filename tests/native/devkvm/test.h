/*
 * Checks of /dev/kvm as a client sees it. Each program holds named tests; `PROGRAM NAME` runs one of them, `PROGRAM` lists them.
 * Exit status of a test: 0 passed, 4 skipped, else failed. They pass on the kernel's /dev/kvm as well, except where a test says so.
 */
#ifndef TEST_H
#define TEST_H

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			int error_ = errno; \
			fprintf(stderr, "%s:%d: %s: not true (errno %d, %s)\n", __FILE__, __LINE__, #condition, error_, strerror(error_)); \
			_exit(1); \
		} \
	} while (0)

/* The call fails, and so. */
#define CHECK_ERROR(call, error) \
	do { \
		errno = 0; \
		long result_ = (long)(call); \
		int error_ = errno; \
		if (result_ != -1 || error_ != (error)) { \
			fprintf(stderr, "%s:%d: %s: %ld, errno %d instead of %d\n", __FILE__, __LINE__, #call, result_, error_, error); \
			_exit(1); \
		} \
	} while (0)

#define SKIP(reason) \
	do { \
		fprintf(stderr, "%s\n", reason); \
		_exit(4); \
	} while (0)

struct test {
	const char *name;
	void (*run)(void);
};

#define MEMORY_BYTES 0x10000ul

struct machine {
	int kvm, vm, vcpu;
	unsigned char *memory;
	struct kvm_run *run;
	size_t run_bytes;
};

/* Real-mode programs, at 0x1000. */
#define GUEST_OUT "\xe6\x10\xeb\xfc"          /* again: out 0x10, al; jmp again */
#define GUEST_SPIN "\xeb\xfe"                 /* jmp $ */
#define GUEST_HALT "\xf4\xeb\xfd"             /* again: hlt; jmp again */
#define GUEST_STORE "\xc6\x06\x00\x80\x01\xeb\xf9" /* again: mov byte [0x8000], 1; jmp again */
#define GUEST_LOAD_OUT "\xa0\x00\x80\xe6\x10\xeb\xf9" /* again: mov al, [0x8000]; out 0x10, al; jmp again */

static inline int open_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		perror("/dev/kvm");
	CHECK(kvm >= 0);
	return kvm;
}

static inline void set_slot(struct machine *m, void *memory, size_t bytes)
{
	struct kvm_userspace_memory_region region = { .memory_size = bytes, .userspace_addr = (uintptr_t)memory };
	CHECK(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
}

static inline void set_real_mode(struct machine *m, uint16_t rip)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = rip, .rflags = 2, .rsp = 0x7000 };

	CHECK(ioctl(m->vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	CHECK(ioctl(m->vcpu, KVM_SET_SREGS, &sregs) == 0);
	CHECK(ioctl(m->vcpu, KVM_SET_REGS, &regs) == 0);
}

static inline void add_vcpu(struct machine *m)
{
	m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
	CHECK(m->vcpu >= 0);
	m->run_bytes = (size_t)ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	m->run = mmap(NULL, m->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	CHECK(m->run != MAP_FAILED);
	set_real_mode(m, 0x1000);
}

static inline void create(struct machine *m, const char *code, size_t bytes, bool irqchip)
{
	m->kvm = open_kvm();
	m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	CHECK(m->vm >= 0);
	if (irqchip)
		CHECK(ioctl(m->vm, KVM_CREATE_IRQCHIP, 0) == 0);
	m->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(m->memory != MAP_FAILED);
	memcpy(m->memory + 0x1000, code, bytes);
	set_slot(m, m->memory, MEMORY_BYTES);
	add_vcpu(m);
}
#define CREATE(m, code, irqchip) create(m, code, sizeof code - 1, irqchip)

static inline void destroy(struct machine *m)
{
	CHECK(munmap(m->run, m->run_bytes) == 0);
	CHECK(close(m->vcpu) == 0);
	CHECK(close(m->vm) == 0);
	CHECK(close(m->kvm) == 0);
	CHECK(munmap(m->memory, MEMORY_BYTES) == 0);
}

static inline int run(struct machine *m)
{
	return ioctl(m->vcpu, KVM_RUN, 0);
}

static inline uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void sleep_ms(unsigned ms)
{
	struct timespec t = { ms / 1000, (long)(ms % 1000) * 1000000 };
	while (nanosleep(&t, &t) != 0 && errno == EINTR)
		;
}

static inline int count_entries(const char *directory)
{
	int n = 0;
	DIR *d = opendir(directory);
	CHECK(d != NULL);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static inline long status_field(const char *field)
{
	char line[256];
	long value = -1;
	FILE *f = fopen("/proc/self/status", "r");
	CHECK(f != NULL);
	while (fgets(line, sizeof line, f)) {
		if (strncmp(line, field, strlen(field)) == 0)
			value = strtol(line + strlen(field) + 1, NULL, 10);
	}
	fclose(f);
	return value;
}

/* What must not grow. */
struct resources {
	int descriptors, threads;
	long resident_kib;
};

static inline struct resources resources(void)
{
	return (struct resources){ count_entries("/proc/self/fd"), count_entries("/proc/self/task"), status_field("VmRSS:") };
}

static inline int main_of(const struct test *tests, size_t count, int argc, char **argv)
{
	for (size_t i = 0; i < count; i++) {
		if (argc < 2)
			puts(tests[i].name);
		else if (strcmp(argv[1], tests[i].name) == 0) {
			tests[i].run();
			return 0;
		}
	}
	return argc < 2 ? 0 : 2;
}
#define MAIN(tests) \
	int main(int argc, char **argv) \
	{ \
		return main_of(tests, sizeof tests / sizeof *tests, argc, argv); \
	}

#endif
