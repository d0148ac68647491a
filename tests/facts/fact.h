/*
 * Facts about KVM: one small client a file, named by the rule that it checks. A file holds the guest (GUEST), how its machine is made (FACT) and `round`, which checks the rule
 * once. The program makes the machine, calls `round` once, and then in a loop so that warm paths are reached as well.
 *
 * The same program runs on Ring3 and on the kernel's /dev/kvm. Where the latter may differ, the file says why with FACT_ON. Compiled with FACT_LIBRARY it is a library whose calls
 * of KVM go through the function pointers that it is given: FactTests.cs runs it on the Ring3 that is in its own process.
 * Environment: FACT_ROUNDS, rounds of the loop (10,000); FACT_MS, after which it ends early (20,000); FACT_ON, `ring3`, `hardware` (kvm_intel, kvm_amd) or `other` (KVM without either).
 * Exit status: 0 holds, 4 skipped, else it does not hold.
 */
#ifndef FACT_H
#define FACT_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifdef FACT_LIBRARY
#include <setjmp.h>

/* FactTests.cs: FactCalls. Results are >= 0 or -errno. */
struct fact_calls {
	long (*open)(void);
	long (*ioctl)(int fd, uint32_t request, uint64_t argument);
	long (*close)(int fd);
	long (*munmap)(uint64_t address, uint64_t bytes);
};

static const struct fact_calls *fact_calls;
static FILE *fact_messages;
static jmp_buf fact_end;

static inline int fact_result(long result)
{
	if (result >= 0)
		return (int)result;
	errno = (int)-result;
	return -1;
}

static inline int fact_ioctl(int fd, uint32_t request, uint64_t argument)
{
	return fact_result(fact_calls->ioctl(fd, request, argument));
}

static inline int fact_close(int fd)
{
	return fact_result(fact_calls->close(fd));
}

static inline int fact_munmap(void *address, size_t bytes)
{
	return fact_result(fact_calls->munmap((uintptr_t)address, bytes));
}

/* Only frames of this library lie between here and fact_run. */
static inline _Noreturn void fact_exit(int status)
{
	longjmp(fact_end, status + 1);
}

#define open(path, flags) fact_result(fact_calls->open())
#define ioctl(fd, request, argument) fact_ioctl(fd, (uint32_t)(request), (uintptr_t)(argument))
#define close fact_close
#define munmap fact_munmap
#define exit(status) fact_exit(status)
#undef stderr
#define stderr fact_messages
#endif

enum mode { REAL, PROTECTED, LONG };
enum irqchip { CLIENT, KERNEL, SPLIT };
enum host { RING3 = 1, HARDWARE = 2, OTHER = 4 };

/* Guest-physical addresses, which are the linear ones. Memory ends where a PC's does; what is above is nobody's. */
enum {
	GDT = 0x500, TSS = 0x600, IDT = 0x1000, PML4 = 0x2000, PDPT = 0x3000, PD = 0x4000,
	STUBS = 0x6000,   /* one of four bytes for each vector: OUT to STUB_PORT */
	CODE = 0x8000, DATA = 0x20000, STACK = 0x80000,
	MEMORY_BYTES = 0xa0000, DEVICE = 0xb0000,
	STUB_PORT = 0xe9,
	CODE32 = 0x08, DATA32 = 0x10, CODE64 = 0x18, TASK = 0x20, CODE32_USER = 0x33, DATA32_USER = 0x3b, CODE64_USER = 0x43,
};

enum { TF = 1 << 8, IF = 1 << 9, RF = 1 << 16 };

struct machine {
	enum mode mode;
	int kvm, vm, cpu, rounds;
	struct kvm_run *run;
	size_t run_bytes;
	uint8_t *memory;
	const char *code;
	size_t code_bytes;
};

struct fact {
	enum mode mode;
	enum irqchip irqchip;
	bool cpuid;                        /* the vCPU has all of KVM_GET_SUPPORTED_CPUID */
	void (*prepare)(struct machine *); /* before the vCPU */
};

extern const struct fact fact;
void round_of(struct machine *m);

/* Marks which machines know the rule; elsewhere it is skipped with the reason. */
extern const int fact_hosts;
extern const char *const fact_reason;

/* GUEST(bits, "assembly"): the guest of the file. */
extern const char guest_code[], guest_code_end[];
#define GUEST(bits, text) \
	__asm__(".pushsection .rodata\n.code" #bits "\nguest_code:\n" text "\nguest_code_end:\n.code64\n.popsection")
/* Address of the guest's label `guest_NAME`. */
#define AT(name) ({ extern const char guest_##name[]; (uint64_t)(CODE + (guest_##name - guest_code)); })

static inline enum host host(void)
{
	const char *on = getenv("FACT_ON");
	return on && !strcmp(on, "hardware") ? HARDWARE : on && !strcmp(on, "other") ? OTHER : RING3;
}

/* What needs VMX or SVM has been compared with neither so far: a difference there is told, and is no failure. */
static inline int failure(void)
{
	return host() == HARDWARE && !(fact_hosts & OTHER) ? 4 : 1;
}

#define EXPECT(condition) \
	do { \
		if (!(condition)) { \
			int error_ = errno; \
			fprintf(stderr, "%s:%d: %s: not true (errno %d)\n", __FILE__, __LINE__, #condition, error_); \
			exit(failure()); \
		} \
	} while (0)

#define EXPECT_EQ(value, expected) \
	do { \
		long long value_ = (long long)(value), expected_ = (long long)(expected); \
		if (value_ != expected_) { \
			fprintf(stderr, "%s:%d: %s: 0x%llx instead of 0x%llx (errno %d)\n", __FILE__, __LINE__, #value, value_, expected_, errno); \
			exit(failure()); \
		} \
	} while (0)

#define EXPECT_ERROR(call, error) \
	do { \
		errno = 0; \
		long result_ = (long)(call); \
		int error_ = errno; \
		if (result_ != -1 || error_ != (error)) { \
			fprintf(stderr, "%s:%d: %s: %ld, errno %d instead of %d\n", __FILE__, __LINE__, #call, result_, error_, error); \
			exit(failure()); \
		} \
	} while (0)

/* ---- State ---- */

static inline struct kvm_regs get_regs(struct machine *m)
{
	struct kvm_regs regs;
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_REGS, &regs), 0);
	return regs;
}

static inline void set_regs(struct machine *m, struct kvm_regs regs)
{
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_REGS, &regs), 0);
}

static inline struct kvm_sregs get_sregs(struct machine *m)
{
	struct kvm_sregs sregs;
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_SREGS, &sregs), 0);
	return sregs;
}

static inline void set_sregs(struct machine *m, struct kvm_sregs sregs)
{
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_SREGS, &sregs), 0);
}

static inline struct kvm_vcpu_events get_events(struct machine *m)
{
	struct kvm_vcpu_events events;
	memset(&events, 0, sizeof events);
	EXPECT_EQ(ioctl(m->cpu, KVM_GET_VCPU_EVENTS, &events), 0);
	return events;
}

static inline void set_events(struct machine *m, struct kvm_vcpu_events events)
{
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_VCPU_EVENTS, &events), 0);
}

static inline int set_msr(struct machine *m, uint32_t index, uint64_t value)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msr = { { .nmsrs = 1 }, { .index = index, .data = value } };
	return ioctl(m->cpu, KVM_SET_MSRS, &msr);
}

static inline int get_msr(struct machine *m, uint32_t index, uint64_t *value)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msr = { { .nmsrs = 1 }, { .index = index } };
	int r = ioctl(m->cpu, KVM_GET_MSRS, &msr);
	*value = msr.entry.data;
	return r;
}

static inline int enable_cap(int fd, uint32_t cap, uint64_t argument)
{
	struct kvm_enable_cap enable = { .cap = cap, .args = { argument } };
	return ioctl(fd, KVM_ENABLE_CAP, &enable);
}

/* ---- The machine ---- */

static inline void put64(struct machine *m, uint64_t gpa, uint64_t value)
{
	memcpy(m->memory + gpa, &value, sizeof value);
}

static inline uint64_t peek64(struct machine *m, uint64_t gpa)
{
	uint64_t value;
	memcpy(&value, m->memory + gpa, sizeof value);
	return value;
}

/* An interrupt gate of the mode; `dpl` 3 lets INT n in user mode through. */
static inline void set_gate(struct machine *m, int vector, uint64_t handler, int dpl)
{
	uint64_t low = (handler & 0xffff) | (uint64_t)(m->mode == LONG ? CODE64 : CODE32) << 16 | (0x8e00ull | (uint64_t)dpl << 13) << 32 | (handler >> 16 & 0xffff) << 48;

	if (m->mode == REAL) {
		m->memory[4 * vector] = (uint8_t)handler;
		m->memory[4 * vector + 1] = (uint8_t)(handler >> 8);
		m->memory[4 * vector + 2] = m->memory[4 * vector + 3] = 0;
	} else if (m->mode == PROTECTED)
		put64(m, IDT + 8 * (uint64_t)vector, low);
	else {
		put64(m, IDT + 16 * (uint64_t)vector, low);
		put64(m, IDT + 16 * (uint64_t)vector + 8, 0);
	}
}

static inline void fill_memory(struct machine *m)
{
	static const uint64_t descriptors[] = {
		0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff, 0x00008b0006000067, 0, 0x00cffb000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff,
	};

	memset(m->memory, 0, 0x8000);
	memcpy(m->memory + GDT, descriptors, sizeof descriptors);
	put64(m, TSS + 4, (STACK - 0x1000ull) | (m->mode == PROTECTED ? (uint64_t)DATA32 << 32 : 0));
	put64(m, PML4, PDPT | 7);
	put64(m, PDPT, PD | 7);
	for (uint64_t i = 0; i < 512; i++)
		put64(m, PD + 8 * i, i << 21 | 0x87);
	for (int v = 0; v < 256; v++) {
		static const uint8_t stub[] = { 0xe6, STUB_PORT, 0xeb, 0xfc };
		memcpy(m->memory + STUBS + 4 * v, stub, sizeof stub);
		set_gate(m, v, STUBS + 4 * (uint64_t)v, 0);
	}
	memset(m->memory + CODE, 0xf4, 0x8000);
	memcpy(m->memory + CODE, m->code, m->code_bytes);
}

static inline struct kvm_segment segment(uint16_t selector, uint8_t type, bool l, bool db)
{
	return (struct kvm_segment){ .limit = ~0u, .selector = selector, .type = type, .present = 1, .s = 1, .db = db, .l = l, .g = 1, .dpl = selector & 3 };
}

/* The segments, control registers and tables of a mode at privilege 0. */
static inline void enter_mode(struct machine *m, struct kvm_sregs *s)
{
	struct kvm_segment data = segment(DATA32, 3, false, true);

	s->cr2 = s->cr3 = s->cr4 = s->cr8 = s->efer = 0;
	memset(s->interrupt_bitmap, 0, sizeof s->interrupt_bitmap);
	s->gdt.base = GDT;
	s->gdt.limit = 9 * 8 - 1;
	s->idt.base = m->mode == REAL ? 0 : IDT;
	s->idt.limit = m->mode == REAL ? 0x3ff : 0xfff;
	s->ldt = (struct kvm_segment){ .type = 2, .unusable = 1 };
	s->tr = (struct kvm_segment){ .base = TSS, .limit = 0x67, .selector = TASK, .type = 11, .present = 1 };
	if (m->mode == REAL) {
		data = (struct kvm_segment){ .limit = 0xffff, .type = 3, .present = 1, .s = 1 };
		s->cs = data;
		s->cs.type = 11;
		s->cr0 = 0x10;
	} else if (m->mode == PROTECTED) {
		s->cs = segment(CODE32, 11, false, true);
		s->cr0 = 0x11;
	} else {
		s->cs = segment(CODE64, 11, true, false);
		s->cr0 = 0x80000011;
		s->cr3 = PML4;
		s->cr4 = 0x20 | 0x600;
		s->efer = 0x500;
	}
	s->ds = s->es = s->fs = s->gs = s->ss = data;
}

/* Everything as at the start of a round: registers, events, debug registers and the first 64 KiB of memory. */
static inline void restart(struct machine *m)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rsp = m->mode == REAL ? 0x7ff0 : STACK };
	struct kvm_debugregs debug = { .dr6 = 0xffff0ff0, .dr7 = 0x400 };
	struct kvm_guest_debug none = { 0 };
	struct kvm_vcpu_events events = { .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW };
	struct kvm_sregs sregs = get_sregs(m);

	/* An exit that the client has answered is finished by the next KVM_RUN. */
	m->run->immediate_exit = 1;
	(void)ioctl(m->cpu, KVM_RUN, 0);
	m->run->immediate_exit = 0;
	fill_memory(m);
	enter_mode(m, &sregs);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_GUEST_DEBUG, &none), 0);
	set_sregs(m, sregs);
	set_regs(m, regs);
	set_events(m, events);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_DEBUGREGS, &debug), 0);
}

static inline void supported_cpuid(struct machine *m)
{
	enum { ENTRIES = 256 };
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + ENTRIES * sizeof cpuid->entries[0]);

	cpuid->nent = ENTRIES;
	EXPECT_EQ(ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, cpuid), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_CPUID2, cpuid), 0);
	free(cpuid);
}

static inline int open_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	EXPECT(kvm >= 0);
	return kvm;
}

static inline void create(struct machine *m, const struct fact *f)
{
	m->mode = f->mode;
	m->kvm = open_kvm();
	m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	EXPECT(m->vm >= 0);
	m->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	EXPECT(m->memory != MAP_FAILED);
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY_BYTES, .userspace_addr = (uintptr_t)m->memory };
	EXPECT_EQ(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
	EXPECT_EQ(ioctl(m->vm, KVM_SET_TSS_ADDR, 0xfffbd000ul), 0);
	if (f->irqchip == KERNEL)
		EXPECT_EQ(ioctl(m->vm, KVM_CREATE_IRQCHIP, 0), 0);
	if (f->irqchip == SPLIT)
		EXPECT_EQ(enable_cap(m->vm, KVM_CAP_SPLIT_IRQCHIP, 24), 0);
	if (f->prepare)
		f->prepare(m);
	m->cpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
	EXPECT(m->cpu >= 0);
	m->run_bytes = (size_t)ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	m->run = mmap(NULL, m->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->cpu, 0);
	EXPECT(m->run != MAP_FAILED);
	if (f->cpuid)
		supported_cpuid(m);
	restart(m);
}

static inline void destroy(struct machine *m)
{
	munmap(m->run, m->run_bytes);
	close(m->cpu);
	close(m->vm);
	close(m->kvm);
	munmap(m->memory, MEMORY_BYTES);
}

/* A machine that lives for one round: for rules about calls before the vCPU. */
#define WITH(m, ...) for (struct machine m##_ = { .code = guest_code, .code_bytes = (size_t)(guest_code_end - guest_code) }, *m = (create(&m##_, &(struct fact){ __VA_ARGS__ }), &m##_); m; destroy(&m##_), m = NULL)

/* ---- Running ---- */

/* KVM_RUN must succeed and leave with this reason. */
static inline void run_to(struct machine *m, uint32_t reason)
{
	int r = ioctl(m->cpu, KVM_RUN, 0);
	if (r != 0 || m->run->exit_reason != reason) {
		struct kvm_regs regs = get_regs(m);
		fprintf(stderr, "KVM_RUN: %d (errno %d), exit reason %u instead of %u, rip 0x%llx", r, errno, m->run->exit_reason, reason, regs.rip);
		if (m->run->exit_reason == KVM_EXIT_IO)
			fprintf(stderr, ", port 0x%x%s", m->run->io.port, m->run->io.port == STUB_PORT ? " of a stub" : "");
		if (m->run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
			fprintf(stderr, ", suberror %u", m->run->internal.suberror);
		fprintf(stderr, "\n");
		exit(failure());
	}
}

static inline void run_to_port(struct machine *m, uint16_t port)
{
	run_to(m, KVM_EXIT_IO);
	EXPECT_EQ(m->run->io.port, port);
}

static inline uint32_t io_data(struct machine *m)
{
	uint32_t value = 0;
	memcpy(&value, (uint8_t *)m->run + m->run->io.data_offset, m->run->io.size);
	return value;
}

/* Runs to the stub of a vector. */
static inline void run_to_vector(struct machine *m, int vector)
{
	run_to_port(m, STUB_PORT);
	EXPECT_EQ((get_regs(m).rip - STUBS) / 4, vector);
}

/* The instruction that the handler at a stub returns to: below the frame's error code, when the vector has one. */
static inline uint64_t returns_to(struct machine *m, bool error_code)
{
	uint64_t rsp = get_regs(m).rsp;
	if (m->mode == REAL)
		return peek64(m, rsp) & 0xffff;
	if (m->mode == PROTECTED)
		return peek64(m, rsp + (error_code ? 4 : 0)) & 0xffffffff;
	return peek64(m, rsp + (error_code ? 8 : 0));
}

static inline uint64_t milliseconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static inline long number(const char *name, long otherwise)
{
	const char *text = getenv(name);
	return text ? strtol(text, NULL, 10) : otherwise;
}

/* Once, then in the loop. */
static inline int check_fact(struct machine *m, const struct fact *f, long rounds, uint64_t ms)
{
	m->code = guest_code;
	m->code_bytes = (size_t)(guest_code_end - guest_code);
	create(m, f);
	round_of(m);
	uint64_t end = milliseconds() + ms;
	for (; rounds > 0 && milliseconds() < end; rounds--) {
		m->rounds++;
		restart(m);
		round_of(m);
	}
	destroy(m);
	return 0;
}

#ifdef FACT_LIBRARY
/* As main; `message` (4096 bytes) has what it would print. The rounds that were made are told. */
int fact_run(const struct fact_calls *calls, char *message, long rounds, long ms, long *made)
{
	static struct machine m;

	fact_calls = calls;
	fact_messages = fmemopen(message, 4096, "w");
	if (!fact_messages)
		return 1;
	int status = setjmp(fact_end);
	if (status == 0)
		status = check_fact(&m, &fact, rounds, (uint64_t)ms);
	else
		status--;
	*made = m.rounds;
	fclose(fact_messages);
	return status;
}
#define FACT_MAIN
#else
#define FACT_MAIN \
	int main(void) \
	{ \
		static struct machine m; \
		if (!(host() & fact_hosts)) { \
			fprintf(stderr, "%s\n", fact_reason); \
			return 4; \
		} \
		return check_fact(&m, &fact, number("FACT_ROUNDS", 10000), (uint64_t)number("FACT_MS", 20000)); \
	}
#endif

/* FACT(.mode = LONG, ...) { the body of a round } */
#define FACT_ON(hosts, reason, ...) \
	const int fact_hosts = hosts; \
	const char *const fact_reason = reason; \
	const struct fact fact = { __VA_ARGS__ }; \
	FACT_MAIN \
	void round_of(struct machine *m)
/* What every KVM does. */
#define FACT(...) FACT_ON(RING3 | HARDWARE | OTHER, "", __VA_ARGS__)
/* What a guest sees: KVM on VMX or SVM. Without either, KVM's emulator runs the guest, which knows no debug traps, says other RIPs and has no privilege changes. */
#define GUEST_FACT(...) FACT_ON(RING3 | HARDWARE, "needs kvm_intel or kvm_amd: KVM's emulator alone does not have this", __VA_ARGS__)
/* Only calls: no guest. */
#define NO_GUEST GUEST(16, "hlt")

#endif
