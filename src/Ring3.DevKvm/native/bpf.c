/*
 * Seccomp filters read as the kernel reads them: classic BPF over struct seccomp_data. A program that the kernel would not accept refuses
 * nothing: it is never installed.
 */
#define _GNU_SOURCE
#include "filters.h"

#include <asm/prctl.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static uint32_t alu(uint16_t code, uint32_t a, uint32_t operand)
{
	switch (BPF_OP(code)) {
	case BPF_ADD: return a + operand;
	case BPF_SUB: return a - operand;
	case BPF_MUL: return a * operand;
	case BPF_DIV: return operand ? a / operand : 0;
	case BPF_OR: return a | operand;
	case BPF_AND: return a & operand;
	case BPF_XOR: return a ^ operand;
	case BPF_LSH: return operand < 32 ? a << operand : 0;
	case BPF_RSH: return operand < 32 ? a >> operand : 0;
	case BPF_NEG: return 0 - a;
	default: return a;
	}
}

static bool holds(uint16_t code, uint32_t a, uint32_t operand)
{
	switch (BPF_OP(code)) {
	case BPF_JEQ: return a == operand;
	case BPF_JGT: return a > operand;
	case BPF_JGE: return a >= operand;
	case BPF_JSET: return (a & operand) != 0;
	default: return false;
	}
}

/* The filter's answer: SECCOMP_RET_... with its data. */
static uint32_t run(const struct sock_filter *program, unsigned length, const struct seccomp_data *data)
{
	uint32_t a = 0, x = 0, memory[BPF_MEMWORDS] = { 0 };

	for (unsigned at = 0; at < length; at++) {
		const struct sock_filter *i = program + at;
		uint32_t value = BPF_MODE(i->code) == BPF_IMM ? i->k : BPF_MODE(i->code) == BPF_MEM ? memory[i->k % BPF_MEMWORDS] : (uint32_t)sizeof *data;
		uint32_t operand = BPF_SRC(i->code) == BPF_X ? x : i->k;
		switch (BPF_CLASS(i->code)) {
		case BPF_LD:
			if (BPF_MODE(i->code) == BPF_ABS) {
				if (i->k > sizeof *data - sizeof a)
					return SECCOMP_RET_ALLOW;
				memcpy(&a, (const char *)data + i->k, sizeof a);
			} else {
				a = value;
			}
			break;
		case BPF_LDX:
			x = value;
			break;
		case BPF_ST:
			memory[i->k % BPF_MEMWORDS] = a;
			break;
		case BPF_STX:
			memory[i->k % BPF_MEMWORDS] = x;
			break;
		case BPF_ALU:
			a = alu(i->code, a, operand);
			break;
		case BPF_JMP:
			at += BPF_OP(i->code) == BPF_JA ? i->k : holds(i->code, a, operand) ? i->jt : i->jf;
			break;
		case BPF_RET:
			return BPF_RVAL(i->code) == BPF_A ? a : i->k;
		case BPF_MISC:
			if (BPF_MISCOP(i->code) == BPF_TAX)
				x = a;
			else
				a = x;
			break;
		}
	}
	return SECCOMP_RET_ALLOW;
}

struct need {
	int number;
	bool optional; /* an errno is as good */
	uint64_t arguments[3];
};

static bool refuses(const struct sock_filter *program, unsigned length, const struct need *need)
{
	struct seccomp_data data = { .nr = need->number, .arch = AUDIT_ARCH_X86_64 };

	memcpy(data.args, need->arguments, sizeof need->arguments);
	switch (run(program, length, &data) & SECCOMP_RET_ACTION_FULL) {
	case SECCOMP_RET_ALLOW:
	case SECCOMP_RET_LOG:
		return false;
	case SECCOMP_RET_ERRNO:
		return !need->optional;
	default:
		return true;
	}
}

static bool refuses_any(const struct sock_filter *program, unsigned length, const struct need *needs, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (refuses(program, length, needs + i))
			return true;
	return false;
}

bool filter_confines(const struct sock_filter *program, unsigned length)
{
	static const uint64_t thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	const struct need needs[] = {
		{ .number = SYS_brk }, { .number = SYS_clone, .arguments = { thread } }, { .number = SYS_clone3, .optional = true },
		{ .number = SYS_clock_nanosleep }, { .number = SYS_close }, { .number = SYS_dup3 }, { .number = SYS_epoll_create1 }, { .number = SYS_epoll_ctl },
		{ .number = SYS_epoll_pwait2 }, { .number = SYS_eventfd2 }, { .number = SYS_exit }, { .number = SYS_fcntl }, { .number = SYS_flock, .optional = true },
		{ .number = SYS_fstat, .optional = true }, { .number = SYS_ftruncate }, { .number = SYS_futex }, { .number = SYS_getdents64, .optional = true },
		{ .number = SYS_getpid }, { .number = SYS_getrandom }, { .number = SYS_getrusage, .optional = true }, { .number = SYS_gettid },
		{ .number = SYS_ioctl }, { .number = SYS_kcmp, .optional = true }, { .number = SYS_lseek }, { .number = SYS_madvise }, { .number = SYS_membarrier },
		{ .number = SYS_memfd_create }, { .number = SYS_mmap, .arguments = { 0, 4096, PROT_READ | PROT_WRITE } },
		{ .number = SYS_mmap, .arguments = { 0, 4096, PROT_READ | PROT_EXEC } }, { .number = SYS_mprotect, .arguments = { 4096, 4096, PROT_READ | PROT_WRITE } },
		{ .number = SYS_mprotect, .arguments = { 4096, 4096, PROT_READ | PROT_EXEC } }, { .number = SYS_mremap, .optional = true }, { .number = SYS_munmap },
		{ .number = SYS_nanosleep, .optional = true }, { .number = SYS_newfstatat, .optional = true }, { .number = SYS_openat }, { .number = SYS_poll, .optional = true },
		{ .number = SYS_prctl, .optional = true }, { .number = SYS_pread64 }, { .number = SYS_prlimit64, .optional = true },
		{ .number = SYS_process_vm_readv, .optional = true }, { .number = SYS_process_vm_writev, .optional = true }, { .number = SYS_read },
		{ .number = SYS_readlink, .optional = true }, { .number = SYS_readlinkat, .optional = true }, { .number = SYS_rseq, .optional = true },
		{ .number = SYS_rt_sigaction }, { .number = SYS_rt_sigprocmask }, { .number = SYS_rt_sigreturn }, { .number = SYS_rt_tgsigqueueinfo },
		{ .number = SYS_sched_getaffinity, .optional = true }, { .number = SYS_sched_yield, .optional = true }, { .number = SYS_set_robust_list, .optional = true },
		{ .number = SYS_sigaltstack, .optional = true }, { .number = SYS_statx, .optional = true }, { .number = SYS_sysinfo, .optional = true },
		{ .number = SYS_tgkill }, { .number = SYS_timerfd_create }, { .number = SYS_timerfd_settime }, { .number = SYS_uname, .optional = true }, { .number = SYS_write },
	};
	return refuses_any(program, length, needs, sizeof needs / sizeof *needs);
}

bool filter_hides_paths(const struct sock_filter *program, unsigned length)
{
	static const struct need needs[] = { { .number = SYS_fstat, .optional = true }, { .number = SYS_newfstatat, .optional = true }, { .number = SYS_readlinkat, .optional = true } };
	return refuses_any(program, length, needs, sizeof needs / sizeof *needs);
}

bool filter_refuses_cpuid(const struct sock_filter *program, unsigned length)
{
	static const struct need needs[] = {
		{ .number = SYS_arch_prctl, .arguments = { ARCH_SET_CPUID, 0 } }, { .number = SYS_arch_prctl, .arguments = { ARCH_SET_CPUID, 1 } },
		{ .number = SYS_rt_sigprocmask, .arguments = { SIG_SETMASK } },
	};
	return refuses_any(program, length, needs, sizeof needs / sizeof *needs);
}
