/*
 * What becomes of a system call: most go to the kernel as they are; those on /dev/kvm, its descriptors and memory go to the functions that
 * stand in front of the C library in other clients; those about threads, signals and the process's image are made here.
 */
#include "direct.h"

#include <asm/prctl.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#undef fcntl
#undef mmap
#undef pread
#undef pwrite
#undef fallocate
#undef ftruncate

#define HIGHEST_ADDRESS 0x7ffffffff000ul
#define SYSCALL_BYTES 2

static bool is_ours(long fd)
{
	return r3_tracking && table_get((int)fd);
}

static bool may_be_irqfd(long fd, size_t length)
{
	const volatile uint8_t *hints = r3_irqfd_hints;
	return hints && length == sizeof(uint64_t) && (unsigned long)fd < R3_IRQFD_SLOTS && hints[fd];
}

static bool concerns(uintptr_t at, size_t length)
{
	const volatile uint64_t *bounds = r3_bounds;
	return at < bounds[1] && at + length > bounds[0];
}

static bool is_fixed(long flags)
{
	return (flags & MAP_FIXED) && !(flags & (MAP_FIXED_NOREPLACE & ~MAP_FIXED));
}

/* c: the number and the arguments; may be changed. */
static long call_of_memory(struct direct *self, long *c)
{
	switch (c[0]) {
	case SYS_mmap:
		if ((!(c[4] & MAP_ANONYMOUS) && is_ours(c[5])) || (is_fixed(c[4]) && concerns((uintptr_t)c[1], (size_t)c[2])))
			return HOST(self, mmap((void *)c[1], (size_t)c[2], (int)c[3], (int)c[4], (int)c[5], c[6]));
		break;
	case SYS_munmap:
		if (concerns((uintptr_t)c[1], (size_t)c[2]))
			return HOST(self, munmap((void *)c[1], (size_t)c[2]));
		break;
	case SYS_mprotect:
		if (concerns((uintptr_t)c[1], (size_t)c[2]))
			return HOST(self, mprotect((void *)c[1], (size_t)c[2], (int)c[3]));
		break;
	case SYS_pkey_mprotect:
		if (concerns((uintptr_t)c[1], (size_t)c[2]))
			return HOST(self, pkey_mprotect((void *)c[1], (size_t)c[2], (int)c[3], (int)c[4]));
		break;
	case SYS_madvise:
		if (concerns((uintptr_t)c[1], (size_t)c[2]))
			return HOST(self, madvise((void *)c[1], (size_t)c[2], (int)c[3]));
		break;
	case SYS_mremap:
		if (concerns((uintptr_t)c[1], (size_t)c[2]) || ((c[4] & MREMAP_FIXED) && concerns((uintptr_t)c[5], (size_t)c[3])))
			return HOST(self, mremap((void *)c[1], (size_t)c[2], (size_t)c[3], (int)c[4], (void *)c[5]));
		break;
	case SYS_shmdt:
		return HOST(self, shmdt((void *)c[1]));
	case SYS_fallocate:
		if (r3_tracking)
			return HOST(self, fallocate((int)c[1], (int)c[2], c[3], c[4]));
		break;
	case SYS_ftruncate:
		if (r3_tracking)
			return HOST(self, ftruncate((int)c[1], c[2]));
		break;
	}
	return window_call(self, c);
}

static long received(struct direct *self, const long *c, long result)
{
	struct msghdr message;

	if (!r3_tracking || result < 0)
		return result;
	for (long i = 0; i < (c[0] == SYS_recvmmsg ? result : 1); i++) {
		const void *at = c[0] == SYS_recvmmsg ? (void *)&((struct mmsghdr *)c[2])[i].msg_hdr : (void *)c[2];
		if (copy_guarded(&message, at, sizeof message) && message.msg_control && message.msg_controllen)
			HOST(self, (descriptors_received(&message), 0));
	}
	return result;
}

static long call_of_descriptors(struct direct *self, long *c)
{
	switch (c[0]) {
	case SYS_read:
		if (is_ours(c[1]))
			return HOST(self, read((int)c[1], (void *)c[2], (size_t)c[3]));
		break;
	case SYS_write:
		if (may_be_irqfd(c[1], (size_t)c[3]) || is_ours(c[1]))
			return HOST(self, write((int)c[1], (void *)c[2], (size_t)c[3]));
		break;
	case SYS_pread64:
		if (is_ours(c[1]))
			return HOST(self, pread((int)c[1], (void *)c[2], (size_t)c[3], c[4]));
		break;
	case SYS_pwrite64:
		if (is_ours(c[1]))
			return HOST(self, pwrite((int)c[1], (void *)c[2], (size_t)c[3], c[4]));
		break;
	case SYS_readv:
		if (is_ours(c[1]))
			return HOST(self, readv((int)c[1], (void *)c[2], (int)c[3]));
		break;
	case SYS_writev:
		if (is_ours(c[1]))
			return HOST(self, writev((int)c[1], (void *)c[2], (int)c[3]));
		break;
	case SYS_close:
		if (is_ours(c[1]))
			return HOST(self, close((int)c[1]));
		break;
	case SYS_close_range:
		if (r3_tracking)
			return HOST(self, close_range((unsigned)c[1], (unsigned)c[2], (int)c[3]));
		break;
	case SYS_dup:
		if (is_ours(c[1]))
			return HOST(self, dup((int)c[1]));
		break;
	case SYS_dup2:
		if (is_ours(c[1]) || is_ours(c[2]))
			return HOST(self, dup2((int)c[1], (int)c[2]));
		break;
	case SYS_dup3:
		if (is_ours(c[1]) || is_ours(c[2]))
			return HOST(self, dup3((int)c[1], (int)c[2], (int)c[3]));
		break;
	case SYS_fcntl:
		if ((c[2] == F_DUPFD || c[2] == F_DUPFD_CLOEXEC) && is_ours(c[1]))
			return HOST(self, fcntl((int)c[1], (int)c[2], c[3]));
		break;
	case SYS_recvmsg:
	case SYS_recvmmsg:
		return received(self, c, window_call(self, c));
	}
	return window_call(self, c);
}

/* In strict mode a thread can end, and no more. */
static long set_seccomp(struct direct *self, bool strict, long result)
{
	if (strict && result == 0)
		self->strict = true;
	return result;
}

static long call_of_prctl(struct direct *self, long *c)
{
	if (c[1] == PR_SET_SYSCALL_USER_DISPATCH)
		return -EINVAL;
	if (c[1] == PR_SET_SECCOMP)
		return set_seccomp(self, c[2] == SECCOMP_MODE_STRICT, HOST(self, prctl((int)c[1], c[2], c[3], c[4], c[5])));
	return window_call(self, c);
}

static long call_of_arch_prctl(struct direct *self, long *c)
{
	switch (c[1]) {
	case ARCH_SET_FS:
		if ((uintptr_t)c[2] >= HIGHEST_ADDRESS)
			return -EPERM;
		self->client_fs = (uintptr_t)c[2];
		fs_write(self->client_fs);
		return 0;
	case ARCH_GET_FS:
		return copy_guarded((void *)c[2], &self->client_fs, sizeof self->client_fs) ? 0 : -EFAULT;
	default:
		return window_call(self, c);
	}
}

/* Sets of signals that are waited for: without the runtime's, which would be taken from it. */
static long call_with_set(struct direct *self, long *c, unsigned at, unsigned size_at)
{
	kernel_sigset set;

	if (c[size_at] == sizeof set && copy_guarded(&set, (void *)c[at], sizeof set)) {
		set = signals_kernel_mask(set);
		c[at] = (long)&set;
	}
	return window_call(self, c);
}

static long call_of_timedwait(struct direct *self, long *c)
{
	static const int segv = SIGSEGV;
	long result = call_with_set(self, c, 1, 4);

	if (!stands_in((int)result))
		return result;
	if (c[2])
		copy_guarded(&((siginfo_t *)c[2])->si_signo, &segv, sizeof segv);
	return segv;
}

static long call_of_pending(struct direct *self, long *c)
{
	kernel_sigset set;
	long result = window_call(self, c);

	if (UNLIKELY(r3_cpuid) && result == 0 && (size_t)c[2] == sizeof set && copy_guarded(&set, (void *)c[1], sizeof set)) {
		set = signals_client_mask(set);
		copy_guarded((void *)c[1], &set, sizeof set);
	}
	return result;
}

/* The mask goes on into the new image; SIGSYS is blocked here and was not in the client. */
static long call_of_exec(struct direct *self, struct kernel_ucontext *context, long *c)
{
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&context->mask, 0, sizeof context->mask, 0, 0);
	return client_exec(self, c);
}

static long call(struct direct *self, struct kernel_ucontext *context, long *c)
{
	switch (c[0]) {
	case SYS_ioctl:
		if (_IOC_TYPE(c[2]) == KVMIO)
			return HOST(self, ioctl((int)c[1], (unsigned long)c[2], c[3]));
		break;
	case SYS_mmap: case SYS_munmap: case SYS_mprotect: case SYS_pkey_mprotect: case SYS_madvise: case SYS_mremap: case SYS_shmdt: case SYS_fallocate:
	case SYS_ftruncate:
		return call_of_memory(self, c);
	case SYS_read: case SYS_write: case SYS_pread64: case SYS_pwrite64: case SYS_readv: case SYS_writev: case SYS_close: case SYS_close_range: case SYS_dup:
	case SYS_dup2: case SYS_dup3: case SYS_fcntl: case SYS_recvmsg: case SYS_recvmmsg:
		return call_of_descriptors(self, c);
	case SYS_open: case SYS_openat: case SYS_openat2: case SYS_creat: case SYS_stat: case SYS_lstat: case SYS_newfstatat: case SYS_statx: case SYS_access:
	case SYS_faccessat: case SYS_faccessat2: case SYS_readlink: case SYS_readlinkat:
		return call_of_paths(self, c);
	case SYS_rt_sigaction:
		return HOST(self, client_sigaction(self, (int)c[1], (void *)c[2], (void *)c[3], (size_t)c[4]));
	case SYS_rt_sigprocmask:
		return client_sigprocmask(context, (int)c[1], (void *)c[2], (void *)c[3], (size_t)c[4]);
	case SYS_sigaltstack:
		return client_sigaltstack(self, context, (void *)c[1], (void *)c[2]);
	case SYS_rt_sigtimedwait:
		return call_of_timedwait(self, c);
	case SYS_rt_sigpending:
		return call_of_pending(self, c);
	case SYS_signalfd: case SYS_signalfd4:
		return call_with_set(self, c, 2, 3);
	case SYS_clone: case SYS_clone3: case SYS_fork: case SYS_vfork:
		return client_clone(self, context, c);
	case SYS_execve: case SYS_execveat:
		return call_of_exec(self, context, c);
	case SYS_exit:
		if (!self->strict && !self->in_vfork)
			client_exit(self, c[1]);
		break;
	case SYS_exit_group:
		if (!self->strict && !self->in_vfork)
			HOST(self, (core_report(), 0));
		break;
	case SYS_arch_prctl:
		return call_of_arch_prctl(self, c);
	case SYS_prctl:
		return call_of_prctl(self, c);
	case SYS_seccomp:
		return set_seccomp(self, c[1] == SECCOMP_SET_MODE_STRICT, HOST(self, syscall(SYS_seccomp, c[1], c[2], c[3])));
	case SYS_set_tid_address:
		self->clear_tid = (int *)c[1];
		return self->tid;
	case SYS_brk:
		return HOST(self, client_brk((uintptr_t)c[1]));
	case SYS_rseq:
		return -ENOSYS; /* the host's C library has registered its own */
	}
	return window_call(self, c);
}

void dispatch(struct direct *self, struct kernel_ucontext *context, int number)
{
	greg_t *r = context->registers;
	long c[7] = { number, r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9] };

	if (number == SYS_rt_sigreturn) {
		if (!client_sigreturn(self, context))
			end_by_fault();
		return;
	}
	long result = call(self, context, c);
	if (UNLIKELY(result == RESTART)) {
		r[REG_RIP] -= SYSCALL_BYTES;
		result = number;
	}
	r[REG_RAX] = result;
}
