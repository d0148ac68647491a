/*
 * Seccomp filters that the client installs, by prctl, syscall or a library that calls them. A filter is about the client's own system calls:
 * behind the kernel's KVM there are none. So a filter that refuses what the core needs is installed as it is, and the core's work is from
 * then on done by helpers.c.
 *
 * Invariant: r3_confined is set before the filter is there, and is never cleared while a filter may be there.
 */
#include "ring3.h"
#include "filters.h"

#include <dirent.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

volatile bool r3_paths_hidden, r3_filtered;

static long seccomp(unsigned flags, const struct sock_fprog *program)
{
	return raw_call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, (long)program, 0, 0, 0);
}

/* ---- all threads at once ---- */

/*
 * SECCOMP_FILTER_FLAG_TSYNC would confine the core's threads as well. The threads of the client are asked one by one, by the signal that
 * nobody blocks, and install the filter themselves.
 */
struct sync {
	pid_t caller;
	unsigned flags;
	bool no_new_privileges;
	const struct sock_fprog *program;
	_Atomic uint32_t answers;
	_Atomic long error;
	pid_t failed; /* the first thread that could not */
};

static void install_here(struct sync *sync)
{
	long result = sync->no_new_privileges ? raw_call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0) : 0;

	if (!result)
		result = seccomp(sync->flags, sync->program);
	if (result)
		atomic_store(&sync->error, result);
	atomic_fetch_add(&sync->answers, 1);
	raw_call(SYS_futex, (long)&sync->answers, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
}

bool filter_signalled(const siginfo_t *info)
{
	if (LIKELY(info->si_code != SI_QUEUE) || info->si_pid != r3_owner || !info->si_value.sival_ptr)
		return false;
	struct sync *sync = info->si_value.sival_ptr;
	if (r3_self.own) { /* it was not known yet when it was asked */
		atomic_fetch_add(&sync->answers, 1);
		raw_call(SYS_futex, (long)&sync->answers, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
	} else {
		install_here(sync);
	}
	return true;
}

static void ask(struct sync *sync, pid_t id)
{
	siginfo_t info = { .si_signo = RUNTIME_SIGNAL, .si_code = SI_QUEUE };
	struct timespec while_it_lives = { 0, 10000000 };
	uint32_t before = atomic_load(&sync->answers);

	info.si_pid = r3_owner;
	info.si_uid = getuid();
	info.si_value.sival_ptr = sync;
	if (syscall(SYS_rt_tgsigqueueinfo, r3_owner, id, RUNTIME_SIGNAL, &info) != 0)
		return;
	while (atomic_load(&sync->answers) == before && syscall(SYS_tgkill, r3_owner, id, 0) == 0)
		syscall(SYS_futex, &sync->answers, FUTEX_WAIT_PRIVATE, before, &while_it_lives, NULL, 0);
	if (atomic_load(&sync->error) && !sync->failed)
		sync->failed = id;
}

/* On the porter. Threads that are made meanwhile inherit the filter or are found by the next look. */
static void ask_all(void *context)
{
	struct sync *sync = context;
	pid_t asked[4096];
	unsigned count = 0;
	bool again = true;

	while (again) {
		again = false;
		DIR *tasks = opendir("/proc/self/task");
		struct dirent *entry;
		while (tasks && (entry = readdir(tasks)) != NULL) {
			pid_t id = (pid_t)atoi(entry->d_name);
			bool known = id <= 0 || id == sync->caller || thread_is_own(id);
			for (unsigned i = 0; i < count && !known; i++)
				known = asked[i] == id;
			if (known || count == sizeof asked / sizeof *asked)
				continue;
			asked[count++] = id;
			ask(sync, id);
			again = true;
		}
		if (tasks)
			closedir(tasks);
	}
}

static long install_in_all(unsigned flags, const struct sock_fprog *program)
{
	struct sync sync = { .caller = thread_id(pthread_self()), .flags = flags & ~(unsigned)(SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH), .program = program };

	sync.no_new_privileges = raw_call(SYS_prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, 0) == 1;
	long result = seccomp(sync.flags, program);
	if (result)
		return result;
	porter_run(ask_all, &sync);
	if (!sync.failed)
		return 0;
	return flags & SECCOMP_FILTER_FLAG_TSYNC_ESRCH ? -ESRCH : sync.failed;
}

/* ---- the client's calls ---- */

enum { LOWEST = 0x10000 }; /* below it nothing is mapped */

/* Results as the kernel's. */
static long install(unsigned flags, const struct sock_fprog *given)
{
	struct sock_fprog program;
	bool confined = r3_confined;

	/* Programs ask with NULL whether there are filters. */
	if (r3_self.own || (uintptr_t)given < LOWEST)
		return seccomp(flags, given);
	r3_filtered = true;
	if (!core_is_loaded()) {
		/* As few system calls as nothing: there may be another filter. */
		if (given->len && (uintptr_t)given->filter >= LOWEST) {
			if (filter_hides_paths(given->filter, given->len))
				r3_paths_hidden = true;
			cpuid_before_filter(filter_refuses_cpuid(given->filter, given->len));
		}
		return seccomp(flags, given);
	}
	if (!copy_from_client(&program, (uintptr_t)given, sizeof program) || !program.len || program.len > BPF_MAXINSNS)
		return seccomp(flags, given);
	size_t size = program.len * sizeof *program.filter;
	struct sock_filter *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED)
		return -ENOMEM;
	long result = -EFAULT;
	if (copy_from_client(copy, (uintptr_t)program.filter, size)) {
		program.filter = copy;
		if (filter_hides_paths(copy, program.len))
			r3_paths_hidden = true;
		cpuid_before_filter(filter_refuses_cpuid(copy, program.len));
		if (filter_confines(copy, program.len)) {
			r3_confined = true;
			helper_prepare();
		}
		if (r3_confined && (flags & SECCOMP_FILTER_FLAG_TSYNC) && !(flags & SECCOMP_FILTER_FLAG_NEW_LISTENER))
			result = install_in_all(flags, &program);
		else
			result = seccomp(flags, &program);
		if (result < 0 && !confined)
			r3_confined = false;
	}
	munmap(copy, size);
	return result;
}

static long set_filter(unsigned flags, const void *program)
{
	return fail_or(install(flags, program));
}

EXPORT int prctl(int option, ...)
{
	va_list arguments;
	unsigned long a[4];

	va_start(arguments, option);
	for (unsigned i = 0; i < 4; i++)
		a[i] = va_arg(arguments, unsigned long);
	va_end(arguments);
	if (UNLIKELY(option == PR_SET_SECCOMP && a[0] == SECCOMP_MODE_FILTER))
		return (int)set_filter(0, (const void *)a[1]);
	if (UNLIKELY(option == PR_SET_SECCOMP && a[0] == SECCOMP_MODE_STRICT))
		cpuid_before_filter(true);
	return (int)fail_or(raw_call(SYS_prctl, option, (long)a[0], (long)a[1], (long)a[2], (long)a[3], 0));
}

/* What syscall() below does not make itself. */
__attribute__((used)) long watched_call(long number, long a, long b, long c, long d, long e, long f)
{
	if (number == SYS_seccomp && a == SECCOMP_SET_MODE_FILTER)
		return set_filter((unsigned)b, (const void *)c);
	if (number == SYS_prctl && a == PR_SET_SECCOMP && b == SECCOMP_MODE_FILTER)
		return set_filter(0, (const void *)c);
	if ((number == SYS_seccomp && a == SECCOMP_SET_MODE_STRICT) || (number == SYS_prctl && a == PR_SET_SECCOMP && b == SECCOMP_MODE_STRICT))
		cpuid_before_filter(true);
	return fail_or(raw_call(number, a, b, c, d, e, f));
}

__attribute__((used)) long call_failed(long result)
{
	return fail_or(result);
}

/* As the C library's: nothing may be on the stack that a vfork would return through twice. */
__asm__(".text\n"
	".p2align 4\n"
	".globl syscall\n"
	".type syscall, @function\n"
	"syscall:\n"
	"	.cfi_startproc\n"
	"	endbr64\n"
	"	cmp $317, %rdi\n"
	"	je watched_call\n" /* whose arguments are in the same places */
	"	cmp $157, %rdi\n"
	"	je watched_call\n"
	"	mov %rdi, %rax\n"
	"	mov %rsi, %rdi\n"
	"	mov %rdx, %rsi\n"
	"	mov %rcx, %rdx\n"
	"	mov %r8, %r10\n"
	"	mov %r9, %r8\n"
	"	mov 8(%rsp), %r9\n"
	"	syscall\n"
	"	cmp $-4095, %rax\n"
	"	jae 1f\n"
	"	ret\n"
	"1:	mov %rax, %rdi\n"
	"	jmp call_failed\n"
	"	.cfi_endproc\n"
	".size syscall, .-syscall\n");
_Static_assert(SYS_seccomp == 317 && SYS_prctl == 157, "the numbers above");
