/*
 * Linked into libring3-core.so with --wrap=pthread_create.
 *
 * Invariant: no thread of the core ever takes a signal that was meant for the client. A new thread inherits its creator's mask, so
 * everything is blocked around the creation, except what the kernel raises for the thread's own instructions and the signal with which the
 * runtime stops threads for the garbage collector.
 */
#include <pthread.h>
#include <signal.h>

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	static const int open[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, 34 };
	sigset_t all, before;

	sigfillset(&all);
	for (unsigned i = 0; i < sizeof open / sizeof *open; i++)
		sigdelset(&all, open[i]);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int result = __real_pthread_create(thread, attributes, start, argument);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return result;
}
