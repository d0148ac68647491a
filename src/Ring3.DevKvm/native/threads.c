/*
 * Linked into libring3-core.so with --wrap=pthread_create.
 *
 * Invariant: no thread of the core ever takes a signal that was meant for the client. A new thread inherits its creator's mask, so
 * everything is blocked around the creation, except what the kernel raises for the thread's own instructions. The thread itself lets through
 * the signal with which the runtime stops threads for the garbage collector, once it is known as the core's.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);

/* Of libring3.so, where there is one: which threads are the core's; and a thread that has no seccomp filter, which its threads would inherit. */
__attribute__((weak)) void r3_thread_begins(void);
__attribute__((weak)) void r3_thread_ends(void);

__attribute__((weak)) void r3_without_filter(void (*function)(void *), void *argument);

struct beginning {
	void *(*start)(void *);
	void *argument;
};

struct creation {
	pthread_t *thread;
	const pthread_attr_t *attributes;
	struct beginning *beginning;
	int result;
};

static void *begin(void *context)
{
	struct beginning b = *(struct beginning *)context;
	sigset_t stop;

	free(context);
	if (r3_thread_begins) { /* which knows the number as well */
		r3_thread_begins();
	} else {
		sigemptyset(&stop);
		sigaddset(&stop, 34);
		pthread_sigmask(SIG_UNBLOCK, &stop, NULL);
	}
	void *result = b.start(b.argument);
	if (r3_thread_ends)
		r3_thread_ends();
	return result;
}

static void create(void *context)
{
	static const int open[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
	struct creation *c = context;
	sigset_t all, before;

	sigfillset(&all);
	for (unsigned i = 0; i < sizeof open / sizeof *open; i++)
		sigdelset(&all, open[i]);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	c->result = __real_pthread_create(c->thread, c->attributes, begin, c->beginning);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	struct creation c = { thread, attributes, malloc(sizeof *c.beginning), 0 };

	if (!c.beginning)
		return EAGAIN;
	*c.beginning = (struct beginning){ start, argument };
	if (r3_without_filter)
		r3_without_filter(create, &c);
	else
		create(&c);
	if (c.result)
		free(c.beginning);
	return c.result;
}
