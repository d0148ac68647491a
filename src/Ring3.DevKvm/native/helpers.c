/*
 * Threads of ours that do what a thread of the client may not: a client that confines itself by seccomp lists the system calls of its own
 * loop, and behind the kernel's ioctl there are none. filters.c sees the filter coming; from then on no thread of the client runs the core.
 *
 *   porter     one thread: makes system calls for others, also for signal handlers, and makes the helpers. Never waits for anybody.
 *   helpers    one for each thread of the client that calls: takes its calls into the core, KVM_RUN included.
 *
 * Invariants
 *   - They were made by threads without a filter, so they have none; from the client's first filter on their like make all threads of the core (r3_without_filter).
 *   - Who asks needs futex and nothing else. A thread has at most one errand of its helper at a time: it is inside, so no handler runs.
 */
#include "ring3.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

volatile bool r3_confined;

static void wait_while(_Atomic uint32_t *word, uint32_t value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* ---- threads of ours ---- */

#define MOST_OWN 1024
static _Atomic pid_t own_ids[MOST_OWN];

bool thread_is_own(pid_t id)
{
	for (unsigned i = 0; i < MOST_OWN; i++)
		if (atomic_load_explicit(&own_ids[i], memory_order_acquire) == id)
			return true;
	return false;
}

EXPORT void r3_thread_begins(void)
{
	pid_t id = (pid_t)syscall(SYS_gettid), none = 0;

	r3_self.own = true;
	for (unsigned i = 0; i < MOST_OWN; i++, none = 0)
		if (atomic_compare_exchange_strong(&own_ids[i], &none, id))
			break;
	signals_unblock_runtime();
	cpuid_of_own_thread();
}

EXPORT void r3_thread_ends(void)
{
	pid_t id = (pid_t)syscall(SYS_gettid);

	for (unsigned i = 0; i < MOST_OWN; i++) {
		pid_t expected = id;
		if (atomic_compare_exchange_strong(&own_ids[i], &expected, 0))
			return;
	}
}

/* ---- the porter ---- */

struct errand {
	void (*function)(void *);
	void *argument;
	_Atomic uint32_t done;
	struct errand *next;
};

static struct errand *_Atomic errands;
static _Atomic uint32_t bell;
static bool started;

static void *porter(void *argument)
{
	r3_thread_begins();
	for (;;) {
		uint32_t heard = atomic_load(&bell);
		struct errand *list = atomic_exchange(&errands, NULL), *in_order = NULL;
		if (!list) {
			wait_while(&bell, heard);
			continue;
		}
		while (list) {
			struct errand *next = list->next;
			list->next = in_order;
			in_order = list;
			list = next;
		}
		while (in_order) {
			struct errand *errand = in_order;
			in_order = errand->next;
			errand->function(errand->argument);
			atomic_store(&errand->done, 1);
			wake(&errand->done); /* the errand may be gone: then nobody waits at that address, or somebody looks again */
		}
	}
	return argument;
}

void porter_run(void (*function)(void *), void *argument)
{
	struct errand errand = { .function = function, .argument = argument, .next = atomic_load(&errands) };
	int error = errno;

	while (!atomic_compare_exchange_weak(&errands, &errand.next, &errand))
		;
	atomic_fetch_add(&bell, 1);
	wake(&bell);
	while (!atomic_load(&errand.done))
		wait_while(&errand.done, 0);
	errno = error;
}

/*
 * In this thread, unless the process has set a filter: then this thread may have one. With the runtime's signal blocked another thread's
 * SECCOMP_FILTER_FLAG_TSYNC waits for the end of the function, or has said so before.
 */
EXPORT void r3_without_filter(void (*function)(void *), void *argument)
{
	sigset_t stop, before;

	if (r3_self.own || !started || !*r3_alive) {
		function(argument);
		return;
	}
	sigemptyset(&stop);
	sigaddset(&stop, RUNTIME_SIGNAL);
	NEXT(pthread_sigmask)(SIG_BLOCK, &stop, &before);
	if (LIKELY(!r3_filtered))
		function(argument);
	else
		porter_run(function, argument);
	NEXT(pthread_sigmask)(SIG_SETMASK, &before, NULL);
}

struct host_call {
	long number, arguments[6], result;
	int error;
};

static void make_host_call(void *context)
{
	struct host_call *c = context;

	c->result = syscall(c->number, c->arguments[0], c->arguments[1], c->arguments[2], c->arguments[3], c->arguments[4], c->arguments[5]);
	c->error = errno;
}

long call_host_far(long number, long a, long b, long c, long d, long e, long f)
{
	struct host_call call = { .number = number, .arguments = { a, b, c, d, e, f } };

	porter_run(make_host_call, &call);
	if (call.result == -1)
		errno = call.error;
	return call.result;
}

/* ---- helpers ---- */

struct helper {
	_Atomic uint32_t asked, answered;
	_Atomic uint32_t sleeps, owner_sleeps;
	void (*function)(void *);
	void *argument;
	struct helper *next;
};

static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static struct helper *idle;
static unsigned spins; /* looks before a side sleeps: an answer that takes microseconds is not worth two switches */

static bool comes(_Atomic uint32_t *word, uint32_t value)
{
	for (unsigned i = 0; i < spins; i++) {
		if (atomic_load_explicit(word, memory_order_acquire) == value)
			return true;
		__builtin_ia32_pause();
	}
	return false;
}

/* Until the word has the value. PAIRS-WITH: tell(). */
static void await(_Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *sleeps)
{
	if (comes(word, value))
		return;
	atomic_store(sleeps, 1);
	while (atomic_load(word) != value)
		wait_while(word, value - 1);
	atomic_store(sleeps, 0);
}

static void tell(_Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *sleeps)
{
	atomic_store(word, value);
	if (atomic_load(sleeps))
		wake(word);
}

static void *helper_main(void *argument)
{
	struct helper *helper = argument;

	r3_thread_begins();
	enter(); /* for ever: a fault here is never the client's */
	for (uint32_t turn = 1;; turn++) {
		await(&helper->asked, turn, &helper->sleeps);
		helper->function(helper->argument);
		tell(&helper->answered, turn, &helper->owner_sleeps);
	}
	return NULL;
}

/* It takes no signal of the client, but what its own instructions raise, and, from r3_thread_begins() on, the runtime's. */
static int make_thread(void *(*start)(void *), void *argument)
{
	static const int open[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
	pthread_t thread;
	sigset_t all, before;

	sigfillset(&all);
	for (unsigned i = 0; i < sizeof open / sizeof *open; i++)
		sigdelset(&all, open[i]);
	NEXT(pthread_sigmask)(SIG_SETMASK, &all, &before); /* ours would let the runtime's signal through */
	int error = pthread_create(&thread, NULL, start, argument);
	NEXT(pthread_sigmask)(SIG_SETMASK, &before, NULL);
	if (!error)
		pthread_detach(thread);
	return error;
}

/* On the porter. */
static void make_helper(void *context)
{
	struct helper *helper = (void *)syscall(SYS_mmap, NULL, sizeof *helper, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (helper == MAP_FAILED || make_thread(helper_main, helper) != 0)
		helper = NULL;
	*(struct helper **)context = helper;
}

static struct helper *helper_of(struct thread *self)
{
	struct helper *helper = self->helper;

	if (LIKELY(helper != NULL))
		return helper;
	pthread_mutex_lock(&idle_lock);
	helper = idle;
	if (helper)
		idle = helper->next;
	pthread_mutex_unlock(&idle_lock);
	if (!helper)
		porter_run(make_helper, &helper);
	self->helper = helper;
	return helper;
}

bool helper_run(void (*function)(void *), void *argument)
{
	struct thread *self = enter();
	int error = errno;
	struct helper *helper = helper_of(self);

	if (LIKELY(helper != NULL)) {
		helper->function = function;
		helper->argument = argument;
		uint32_t turn = atomic_load_explicit(&helper->asked, memory_order_relaxed) + 1;
		tell(&helper->asked, turn, &helper->sleeps);
		await(&helper->answered, turn, &helper->owner_sleeps);
	}
	errno = error;
	leave(self);
	return helper != NULL;
}

void helper_prepare(void)
{
	struct thread *self = enter();

	helper_of(self);
	leave(self);
}

/* The thread of the client ends. */
void helper_give_back(struct thread *self)
{
	struct helper *helper = self->helper;

	if (!helper)
		return;
	self->helper = NULL;
	pthread_mutex_lock(&idle_lock);
	helper->next = idle;
	idle = helper;
	pthread_mutex_unlock(&idle_lock);
}

int helpers_start(void)
{
	if (started)
		return 0;
	spins = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 400 : 0;
	int error = make_thread(porter, NULL);
	started = !error;
	return error;
}

/* A child inherits the filter and has none of the threads: it is on its own. */
void helpers_after_fork(struct thread *self)
{
	r3_confined = false;
	started = false;
	idle = NULL;
	self->helper = NULL;
	self->own = false;
	atomic_store(&errands, NULL);
	pthread_mutex_init(&idle_lock, NULL);
	for (unsigned i = 0; i < MOST_OWN; i++)
		atomic_store(&own_ids[i], 0);
}
