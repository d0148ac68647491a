/*
 * Children of the client, and programs that it executes.
 */
#include "direct.h"
#include "../elf_file.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TID_FLAGS (CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID)

/* What an execve was given; a child of vfork leaves it to its parent. */
static void free_lists(struct direct *self)
{
	free(self->lists[0]);
	free(self->lists[1]);
	self->lists[0] = self->lists[1] = NULL;
}

static void set_mask(const kernel_sigset *mask, kernel_sigset *before)
{
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)mask, (long)before, sizeof *mask, 0, 0);
}

/* A copy of the process. The C library has to know of it, but where the flags ask for more than it can. */
static long make_copy(const struct clone_call *call)
{
	if (!(call->flags & ~(unsigned long)TID_FLAGS) && call->signal == SIGCHLD)
		return fork();
	int *parent = call->flags & CLONE_PIDFD ? call->pidfd : call->parent_tid;
	unsigned long flags = call->flags & ~(unsigned long)(CLONE_SETTLS | CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID);
	return host_result(syscall(SYS_clone, flags | (unsigned)call->signal, 0, parent, NULL, 0));
}

long client_fork(struct direct *self, struct kernel_ucontext *context, const struct clone_call *call)
{
	kernel_sigset all = ~0ull, before;

	if ((call->flags & CLONE_PIDFD) && (call->flags & CLONE_PARENT_SETTID) && call->pidfd != call->parent_tid)
		return -EINVAL; /* clone() has one argument for both */
	set_mask(&all, &before);
	host_begin(self);
	long id = host_result(make_copy(call));
	if (id == 0) {
		check_fork();
		threads_after_fork(self);
		self->held_count = 0; /* the parent's */
		self->tid = (pid_t)syscall(SYS_gettid);
		self->clear_tid = call->flags & CLONE_CHILD_CLEARTID ? call->child_tid : NULL;
		if (call->flags & CLONE_CHILD_SETTID)
			copy_guarded(call->child_tid, &self->tid, sizeof self->tid);
		if (call->stack)
			context->registers[REG_RSP] = (greg_t)call->stack;
		if (call->flags & CLONE_SETTLS)
			self->client_fs = call->tls;
		if (!dispatch_on())
			_exit(127);
	} else if (id > 0 && (call->flags & CLONE_PARENT_SETTID) && !(call->flags & CLONE_PIDFD)) {
		int tid = (int)id;
		copy_guarded(call->parent_tid, &tid, sizeof tid);
	}
	host_end(self);
	set_mask(&before, NULL);
	return id;
}

/*
 * The child runs in this memory while the thread waits, until it executes a program or ends, and is dispatched like the thread, whose block
 * it uses: its frames have the alternate stack below what the thread is using. What is the thread's own and the child may change is put back.
 */
long client_vfork(struct direct *self, struct kernel_ucontext *context, const struct clone_call *call)
{
	kernel_sigset all = ~0ull, before;
	stack_t own = context->stack, client = self->client_stack;
	greg_t sp = context->registers[REG_RSP];
	uintptr_t here = (uintptr_t)__builtin_frame_address(0) & ~4095ul, fs = self->client_fs;

	if (self->in_vfork)
		return -EAGAIN;
	if ((call->flags & CLONE_PIDFD) && (call->flags & CLONE_PARENT_SETTID) && call->pidfd != call->parent_tid)
		return -EINVAL;
	set_mask(&all, &before);
	context->stack.ss_size = here - 4096 - (uintptr_t)own.ss_sp;
	context->registers[REG_RAX] = 0;
	if (call->stack)
		context->registers[REG_RSP] = (greg_t)call->stack;
	self->in_vfork = 1;
	int *parent = call->flags & CLONE_PIDFD ? call->pidfd : call->parent_tid;
	long id = vfork_call((long)(call->flags | (unsigned)call->signal), parent, call->child_tid, call->tls, context);
	self->in_vfork = 0;
	bool left_host = self->in_host;
	self->in_host = 0;
	self->held_count = 0; /* nothing came here with all signals blocked */
	self->client_stack = client;
	self->client_fs = fs;
	context->stack = own;
	context->registers[REG_RSP] = sp;
	if (left_host) /* the child executed a program from there */
		HOST(self, (free_lists(self), 0));
	set_mask(&before, NULL);
	return id;
}

/* ---- programs ---- */

/* A list of the client that ends with NULL, with room for `more` in front and two behind; NULL: it cannot be read. */
static char **copy_list(char *const *from, size_t more)
{
	size_t n = 0, room = 64;
	char **list = malloc(room * sizeof *list);

	while (list) {
		if (n + more + 3 > room) {
			char **larger = realloc(list, (room *= 2) * sizeof *list);
			if (!larger)
				break;
			list = larger;
		}
		if (!from)
			list[more + n] = NULL;
		else if (!copy_guarded(list + more + n, from + n, sizeof *list))
			break;
		if (!list[more + n])
			return list;
		n++;
	}
	free(list);
	return NULL;
}

static bool has_variable(char *const *environment, const char *name)
{
	char head[32];
	size_t n = strlen(name);

	for (; *environment; environment++)
		if (copy_guarded(head, *environment, n) && memcmp(head, name, n) == 0)
			return true;
	return false;
}

static bool needs_direct(const char *path)
{
	struct elf elf = { 0 };
	int fd = r3_loader && access(path, X_OK) == 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd < 0)
		return false;
	elf_read(fd, &elf);
	close(fd);
	return elf_needs_direct(&elf);
}

/* A program like this one: the loader, with the program's name in front. */
static long execute_directly(struct direct *self, const char *path, char *const *arguments, char *const *environment)
{
	char **list = self->lists[0] = copy_list(arguments, 2), **variables = self->lists[1] = copy_list(environment, 0);
	long result = -EFAULT;

	if (list && variables && list[2]) {
		list[0] = (char *)r3_loader;
		list[1] = (char *)path;
		if (!has_variable(variables, "LD_BIND_NOW=")) {
			size_t n = 0;
			while (variables[n])
				n++;
			variables[n] = "LD_BIND_NOW=ring3";
			variables[n + 1] = NULL;
		}
		/* A child of vfork does not come back; then its parent finds this depth in the thread's own. */
		result = raw_call(SYS_execve, (long)r3_loader, (long)list, (long)variables, 0, 0, 0);
	}
	free_lists(self);
	return result;
}

static long execute_in_host(struct direct *self, const char *path, char *const *arguments, char *const *environment)
{
	return needs_direct(path) ? execute_directly(self, path, arguments, environment) : RESTART;
}

/* What else is executed goes on as the caller's environment says. */
long client_exec(struct direct *self, long *c)
{
	char path[PATH_MAX];
	long result = RESTART;

	if (c[0] == SYS_execve && path_of_client(path, c[1])) {
		if (path_is_own_program(path))
			c[1] = (long)strcpy(path, r3_program);
		host_begin(self);
		result = execute_in_host(self, path, (char *const *)c[2], (char *const *)c[3]);
		host_end(self);
	}
	return result == RESTART ? window_call(self, c) : result;
}
