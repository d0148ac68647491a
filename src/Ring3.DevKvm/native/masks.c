/*
 * Signal masks of the client and what the kernel is given for them.
 *
 * The runtime's signal is in none. With --cpuid (cpuid.c) SIGSEGV is in none either: where the client has it, the kernel's mask has
 * BLOCKED_SEGV. So everything that saves and restores a mask needs no help: siglongjmp, sigreturn, fork, exec, new threads.
 */
#include "ring3.h"

#include <string.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/signalfd.h>

static kernel_sigset to_client(kernel_sigset mask)
{
	if (LIKELY(!r3_cpuid) || !(mask & SIGNAL_BIT(BLOCKED_SEGV)))
		return mask;
	return (mask & ~SIGNAL_BIT(BLOCKED_SEGV)) | SIGNAL_BIT(SIGSEGV);
}

static kernel_sigset from_client(kernel_sigset mask)
{
	if (LIKELY(!r3_cpuid))
		return mask;
	mask &= ~SIGNAL_BIT(BLOCKED_SEGV);
	return mask & SIGNAL_BIT(SIGSEGV) ? (mask & ~SIGNAL_BIT(SIGSEGV)) | SIGNAL_BIT(BLOCKED_SEGV) : mask;
}

kernel_sigset signals_kernel_mask(kernel_sigset mask)
{
	return from_client(mask) & ~SIGNAL_BIT(RUNTIME_SIGNAL);
}

kernel_sigset signals_client_mask(kernel_sigset mask)
{
	return to_client(mask);
}

void mask_to_client(sigset_t *set)
{
	kernel_sigset k = to_client(to_kernel(set));
	memcpy(set, &k, sizeof k);
}

void mask_from_client(sigset_t *set)
{
	kernel_sigset k = from_client(to_kernel(set));
	memcpy(set, &k, sizeof k);
}

/* ---- the C library's functions ---- */

EXPORT int __libc_current_sigrtmin(void)
{
	return CALLED_BY_CORE() ? RUNTIME_SIGNAL : r3_direct ? 34 : RUNTIME_SIGNAL + 1;
}

EXPORT int __libc_current_sigrtmax(void)
{
	return UNLIKELY(r3_cpuid) ? BLOCKED_SEGV - 1 : _NSIG - 1;
}

/* What the kernel is given for a set of the client's: without the runtime's signal, which stays unblocked. */
static const sigset_t *stripped(const sigset_t *set, sigset_t *copy)
{
	kernel_sigset k;

	if (!set)
		return NULL;
	memcpy(copy, set, sizeof *copy);
	k = signals_kernel_mask(to_kernel(copy));
	memcpy(copy, &k, sizeof k);
	return copy;
}

/* And for one that is unblocked. */
static const sigset_t *translated(const sigset_t *set, sigset_t *copy)
{
	if (LIKELY(!r3_cpuid) || !set)
		return set;
	memcpy(copy, set, sizeof *copy);
	mask_from_client(copy);
	return copy;
}

EXPORT int pthread_sigmask(int how, const sigset_t *restrict set, sigset_t *restrict old)
{
	sigset_t copy;
	if (CALLED_BY_CORE())
		return NEXT(pthread_sigmask)(how, set, old);
	int error = NEXT(pthread_sigmask)(how, how == SIG_UNBLOCK ? translated(set, &copy) : stripped(set, &copy), old);
	if (UNLIKELY(r3_cpuid) && !error && old)
		mask_to_client(old);
	return error;
}

EXPORT int sigprocmask(int how, const sigset_t *restrict set, sigset_t *restrict old)
{
	sigset_t copy;
	int result = NEXT(sigprocmask)(how, how == SIG_UNBLOCK ? translated(set, &copy) : stripped(set, &copy), old);
	if (UNLIKELY(r3_cpuid) && !result && old)
		mask_to_client(old);
	return result;
}

int pthread_attr_setsigmask_np(pthread_attr_t *attributes, const sigset_t *set); /* from glibc 2.32 on */
int pthread_attr_getsigmask_np(const pthread_attr_t *attributes, sigset_t *set);

EXPORT int pthread_attr_setsigmask_np(pthread_attr_t *attributes, const sigset_t *set)
{
	sigset_t copy;
	return NEXT(pthread_attr_setsigmask_np)(attributes, stripped(set, &copy));
}

EXPORT int pthread_attr_getsigmask_np(const pthread_attr_t *attributes, sigset_t *set)
{
	int result = NEXT(pthread_attr_getsigmask_np)(attributes, set);
	if (UNLIKELY(r3_cpuid) && !result)
		mask_to_client(set);
	return result;
}

EXPORT int sigpending(sigset_t *set)
{
	int result = NEXT(sigpending)(set);
	if (UNLIKELY(r3_cpuid) && !result)
		mask_to_client(set);
	return result;
}

EXPORT int sigsuspend(const sigset_t *set)
{
	sigset_t copy;
	return NEXT(sigsuspend)(stripped(set, &copy));
}

static int waited(int sig, siginfo_t *info)
{
	if (!stands_in(sig))
		return sig;
	if (info)
		info->si_signo = SIGSEGV;
	return SIGSEGV;
}

EXPORT int sigwait(const sigset_t *restrict set, int *restrict sig)
{
	sigset_t copy;
	int error = NEXT(sigwait)(stripped(set, &copy), sig);
	if (!error)
		*sig = waited(*sig, NULL);
	return error;
}

EXPORT int sigwaitinfo(const sigset_t *restrict set, siginfo_t *restrict info)
{
	sigset_t copy;
	return waited(NEXT(sigwaitinfo)(stripped(set, &copy), info), info);
}

EXPORT int sigtimedwait(const sigset_t *restrict set, siginfo_t *restrict info, const struct timespec *restrict timeout)
{
	sigset_t copy;
	return waited(NEXT(sigtimedwait)(stripped(set, &copy), info, timeout), info);
}

EXPORT int signalfd(int fd, const sigset_t *set, int flags)
{
	sigset_t copy;
	return NEXT(signalfd)(fd, stripped(set, &copy), flags);
}

EXPORT int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *set)
{
	sigset_t copy;
	return NEXT(ppoll)(fds, count, timeout, stripped(set, &copy));
}

EXPORT int pselect(int count, fd_set *restrict r, fd_set *restrict w, fd_set *restrict e, const struct timespec *restrict timeout, const sigset_t *restrict set)
{
	sigset_t copy;
	return NEXT(pselect)(count, r, w, e, timeout, stripped(set, &copy));
}

EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int count, int timeout, const sigset_t *set)
{
	sigset_t copy;
	return NEXT(epoll_pwait)(epfd, events, count, timeout, stripped(set, &copy));
}

EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int count, const struct timespec *timeout, const sigset_t *set)
{
	sigset_t copy;
	return NEXT(epoll_pwait2)(epfd, events, count, timeout, stripped(set, &copy));
}
