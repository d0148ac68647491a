/*
 * Threads of the client. Each is a thread of the host's C library, on a block (direct.h): it has the host's thread-local storage, and a stack
 * that the host and the core take for the thread's own.
 *
 * Invariants
 *   - All signals are blocked between the begin of a host thread and the client's first instruction, and from SYS_exit on.
 *   - The kernel clears the client's word and wakes its futex, and walks its robust list: at the real end of the thread, after the C library
 *     has forgotten it. A confined thread, which may not ask for that, clears the word itself when it needs nothing of the client any more.
 *   - A block is used again when the kernel does not know its thread any more.
 */
#include "direct.h"

#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREAD_FLAGS (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD)
#define POSSIBLE_FLAGS (THREAD_FLAGS | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID | CLONE_DETACHED)

/* ---- blocks ---- */

struct unused {
	struct unused *next;
	pid_t tid;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct unused *unused; /* in the first bytes of what will be struct direct */

/* Every block there ever was: a handler has to know whether its stack is one before it looks there. Entries are never changed. */
#define MOST_BLOCKS 16384
static const struct direct *_Atomic blocks[MOST_BLOCKS];
static _Atomic unsigned block_count;

static unsigned slot_of(const struct direct *self)
{
	return (unsigned)(((uintptr_t)self / BLOCK_BYTES * 0x9E3779B97F4A7C15ull) >> 50) % MOST_BLOCKS;
}

bool block_is_known(const struct direct *self)
{
	const struct direct *found;

	for (unsigned i = slot_of(self); (found = atomic_load_explicit(&blocks[i], memory_order_acquire)) != NULL; i = (i + 1) % MOST_BLOCKS)
		if (found == self)
			return true;
	return false;
}

static bool block_add(const struct direct *self)
{
	if (block_is_known(self))
		return true;
	if (atomic_fetch_add(&block_count, 1) >= MOST_BLOCKS / 2)
		return false;
	for (unsigned i = slot_of(self);; i = (i + 1) % MOST_BLOCKS) {
		const struct direct *none = NULL;
		if (atomic_compare_exchange_strong(&blocks[i], &none, self))
			return true;
	}
}

struct direct *block_prepare(void *block)
{
	struct direct *self = (struct direct *)((char *)block + GUARD_BYTES);
	char *stack = (char *)self + DIRECT_BYTES;

	if (!block_add(self))
		return NULL;
	memset(self, 0, offsetof(struct direct, start));
	self->own_stack.ss_sp = stack;
	self->own_stack.ss_size = (size_t)((char *)block + BLOCK_BYTES - FIRST_FRAMES_BYTES - stack);
	self->client_stack.ss_flags = SS_DISABLE;
	return self;
}

static struct direct *block_make(void)
{
	pid_t process = (pid_t)syscall(SYS_getpid);

	pthread_mutex_lock(&lock);
	for (struct unused **link = &unused; *link && !r3_confined; link = &(*link)->next) {
		struct unused *u = *link;
		if (syscall(SYS_tgkill, process, u->tid, 0) == 0)
			continue;
		*link = u->next;
		pthread_mutex_unlock(&lock);
		return block_prepare((char *)u - GUARD_BYTES);
	}
	pthread_mutex_unlock(&lock);
	char *at = mmap(NULL, 2 * BLOCK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	if (at == MAP_FAILED)
		return NULL;
	char *block = (char *)(((uintptr_t)at + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1));
	if (block != at)
		munmap(at, (size_t)(block - at));
	munmap(block + BLOCK_BYTES, (size_t)(at + BLOCK_BYTES - block));
	if (mprotect(block + GUARD_BYTES, BLOCK_BYTES - GUARD_BYTES, PROT_READ | PROT_WRITE) != 0) {
		munmap(block, BLOCK_BYTES);
		return NULL;
	}
	struct direct *made = block_prepare(block);
	if (!made)
		munmap(block, BLOCK_BYTES);
	return made;
}

/* Called by a thread that still is on it. */
static void block_leave(struct direct *self)
{
	struct unused *u = (struct unused *)self;

	pthread_mutex_lock(&lock);
	u->tid = self->tid;
	u->next = unused;
	unused = u;
	pthread_mutex_unlock(&lock);
}

/* ---- the end of the process ---- */

/* The client's threads: when the last one ends, so does the process, whatever threads the host has. Its status is that of the first one. */
static _Atomic unsigned living = 1;
static _Atomic int leader_status;
static _Atomic bool leader_has_ended;

void threads_after_fork(struct direct *self)
{
	pthread_mutex_init(&lock, NULL);
	self->is_leader = true;
	leader_has_ended = false;
	living = 1;
}

static void end_thread(struct direct *self, int status)
{
	if (self->is_leader) {
		atomic_store(&leader_status, status);
		atomic_store(&leader_has_ended, true);
	}
	if (atomic_fetch_sub(&living, 1) != 1)
		return;
	HOST(self, (core_report(), 0));
	for (;;)
		raw_call(SYS_exit_group, atomic_load(&leader_has_ended) ? atomic_load(&leader_status) : status, 0, 0, 0, 0, 0);
}

/* ---- the life of a thread ---- */

static void block_signals(kernel_sigset *before)
{
	kernel_sigset all = ~0ull;
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)before, sizeof all, 0, 0);
}

/* Into the client, until it ends the thread. */
static void live(struct direct *self)
{
	self->host_fs = fs_read();
	self->tid = (pid_t)syscall(SYS_gettid);
	if (sigaltstack(&self->own_stack, NULL) != 0 || !dispatch_on())
		abort();
	if (leave_begin(self->way_out) != 0)
		return;
	self->start.context.stack = self->own_stack;
	if (self->parent_tid)
		copy_guarded(self->parent_tid, &self->tid, sizeof self->tid);
	if (self->set_tid)
		copy_guarded(self->set_tid, &self->tid, sizeof self->tid);
	atomic_store(&self->began, 1);
	syscall(SYS_futex, &self->began, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	fs_write(self->client_fs);
	resume(&self->start.context);
}

static void leave_word(int *word)
{
	static const int zero;

	if (!r3_confined)
		syscall(SYS_set_tid_address, word);
	else if (word && copy_guarded(word, &zero, sizeof zero))
		syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void *thread_main(void *argument)
{
	struct direct *self = argument;

	live(self);
	/* SYS_exit; way_out led here with the host's FS. */
	int *clear_tid = self->clear_tid;
	block_leave(self);
	leave_word(clear_tid);
	return NULL;
}

void client_exit(struct direct *self, long status)
{
	kernel_sigset before;

	end_thread(self, (int)status);
	block_signals(&before);
	fs_write(self->host_fs);
	leave_for(self->way_out, status);
}

/* The process's first thread: its end is not the end of the process. */
void begin_main(struct direct *self)
{
	kernel_sigset before;

	self->is_leader = true;
	block_signals(&before);
	live(self);
	leave_word(self->clear_tid);
	for (;;)
		raw_call(SYS_exit, 0, 0, 0, 0, 0, 0);
}

static long create(struct direct *thread)
{
	pthread_attr_t attributes;
	kernel_sigset before;
	pthread_t id;
	char *low = (char *)thread->own_stack.ss_sp, *high = (char *)thread - GUARD_BYTES + BLOCK_BYTES;

	pthread_attr_init(&attributes);
	int error = pthread_attr_setstack(&attributes, low, (size_t)(high - low));
	if (!error)
		error = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	block_signals(&before);
	atomic_fetch_add(&living, 1);
	if (!error)
		error = pthread_create(&id, &attributes, thread_main, thread);
	if (!error) {
		while (!atomic_load(&thread->began))
			syscall(SYS_futex, &thread->began, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
	}
	if (error)
		atomic_fetch_sub(&living, 1);
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&before, 0, sizeof before, 0, 0);
	pthread_attr_destroy(&attributes);
	return error ? -error : 0;
}

static long clone_thread(struct direct *self, struct kernel_ucontext *context, const struct clone_call *call)
{
	if ((call->flags & THREAD_FLAGS) != THREAD_FLAGS || (call->flags & ~(unsigned long)POSSIBLE_FLAGS))
		return -EINVAL;
	host_begin(self);
	struct direct *thread = block_make();
	host_end(self);
	if (!thread)
		return -EAGAIN;
	thread->client_fs = call->flags & CLONE_SETTLS ? call->tls : self->client_fs;
	thread->clear_tid = call->flags & CLONE_CHILD_CLEARTID ? call->child_tid : NULL;
	thread->set_tid = call->flags & CLONE_CHILD_SETTID ? call->child_tid : NULL;
	thread->parent_tid = call->flags & CLONE_PARENT_SETTID ? call->parent_tid : NULL;
	thread->start.context = *context;
	thread->start.context.registers[REG_RAX] = 0;
	if (call->stack)
		thread->start.context.registers[REG_RSP] = (greg_t)call->stack;
	size_t fpu = fpu_bytes(context->fpu);
	thread->start.context.fpu = fpu && fpu <= sizeof thread->fpu ? memcpy(thread->fpu, context->fpu, fpu) : NULL;
	host_begin(self);
	long result = create(thread);
	host_end(self);
	return result ? result : thread->tid;
}

static bool read_clone3(struct clone_call *call, const long *c)
{
	struct clone_args given = { 0 };
	size_t size = (size_t)c[2];

	if (size < CLONE_ARGS_SIZE_VER0 || !copy_guarded(&given, (void *)c[1], size < sizeof given ? size : sizeof given))
		return false;
	*call = (struct clone_call){
		.flags = given.flags, .stack = given.stack ? given.stack + given.stack_size : 0, .tls = given.tls, .pidfd = (int *)given.pidfd,
		.parent_tid = (int *)given.parent_tid, .child_tid = (int *)given.child_tid, .signal = (int)given.exit_signal,
	};
	return !given.set_tid_size && !given.cgroup;
}

long client_clone(struct direct *self, struct kernel_ucontext *context, const long *c)
{
	struct clone_call call = { .signal = SIGCHLD };

	switch (c[0]) {
	case SYS_vfork:
		call.flags = CLONE_VM | CLONE_VFORK;
		break;
	case SYS_fork:
		break;
	case SYS_clone:
		call = (struct clone_call){
			.flags = (unsigned long)c[1] & ~0xFFul, .stack = (uintptr_t)c[2], .parent_tid = (int *)c[3], .child_tid = (int *)c[4],
			.tls = (uintptr_t)c[5], .signal = (int)c[1] & 0xFF, .pidfd = (int *)c[3],
		};
		break;
	default:
		if (!read_clone3(&call, c))
			return -ENOSYS; /* C libraries go on with clone */
		break;
	}
	if (self->in_vfork)
		return -EAGAIN;
	if (call.flags & CLONE_THREAD)
		return clone_thread(self, context, &call);
	if (call.flags & CLONE_VM)
		return call.flags & CLONE_VFORK ? client_vfork(self, context, &call) : -EINVAL;
	return client_fork(self, context, &call);
}
