/* Protection keys as programs use them: pkey_mprotect, rights that change at any time, the signal of a refused access, rights of threads, execute-only memory. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, ROUNDS = 2000 };

static sigjmp_buf refused;
static volatile int signal_code, signal_key;

static void check(int good, const char *what)
{
	if (good)
		return;
	printf("pkeys: %s\n", what);
	exit(1);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	signal_code = info->si_code;
	signal_key = (int)info->si_pkey;
	siglongjmp(refused, 1);
}

/* 1, or 0 for a signal of this key. */
static int access_is_allowed(volatile char *at, int write, int key)
{
	if (sigsetjmp(refused, 1)) {
		check(signal_code == SEGV_PKUERR && signal_key == key, "the signal is another one");
		return 0;
	}
	if (write)
		*at = 1;
	else
		(void)*at;
	return 1;
}

static void *other_thread(void *argument)
{
	int *keys = argument;
	for (int i = 0; i < ROUNDS; i++) {
		unsigned rights = (unsigned)i & 3;
		pkey_set(keys[1], rights);
		sched_yield();
		check(pkey_get(keys[1]) == (int)rights, "another thread's rights have come here");
	}
	return NULL;
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	int keys[2] = { pkey_alloc(0, 0), pkey_alloc(0, 0) }, ends[2];
	char *memory = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;

	check(keys[0] > 0 && keys[1] > 0, "no keys");
	sigaction(SIGSEGV, &action, NULL);
	memset(memory, 1, 64 * PAGE);
	for (int i = 0; i < 64; i++)
		check(pkey_mprotect(memory + i * PAGE, PAGE, PROT_READ | PROT_WRITE, keys[i & 1]) == 0, "pkey_mprotect");

	check(pthread_create(&thread, NULL, other_thread, keys) == 0, "pthread_create");
	srand(1);
	for (int i = 0; i < ROUNDS; i++) {
		unsigned rights = (unsigned)rand() & 3;
		int page = rand() & 62, write = rand() & 1;
		pkey_set(keys[0], rights);
		int allowed = !(rights & PKEY_DISABLE_ACCESS) && !(write && rights & PKEY_DISABLE_WRITE);
		check(access_is_allowed(memory + page * PAGE + i, write, keys[0]) == allowed, "rights are not those that were set");
		/* The handler began with the rights of a new thread, and was left by a jump. */
		pkey_set(keys[1], 0);
		check(access_is_allowed(memory + PAGE, 1, keys[1]), "the other key's page");
	}
	check(pthread_join(thread, NULL) == 0, "pthread_join");

	/* The kernel's own accesses have the program's rights. */
	check(pipe(ends) == 0, "pipe");
	pkey_set(keys[0], PKEY_DISABLE_WRITE);
	check(write(ends[1], memory, 1) == 1, "write from a page that can be read");
	check(read(ends[0], memory, 1) == -1 && errno == EFAULT, "read into a page that cannot be written");
	pkey_set(keys[0], PKEY_DISABLE_ACCESS);
	check(write(ends[1], memory, 1) == -1 && errno == EFAULT, "write from a page that cannot be read");
	pkey_set(keys[0], 0);

	/* mov $7, %eax; ret: to be executed and not read. */
	memcpy(memory, "\xb8\7\0\0\0\xc3", 6);
	check(mprotect(memory, PAGE, PROT_EXEC) == 0, "mprotect");
	check(((int (*)(void))(void *)memory)() == 7, "execute-only memory");
	if (!sigsetjmp(refused, 1)) {
		(void)*(volatile char *)memory;
		check(0, "execute-only memory was read");
	}
	check(signal_code == SEGV_PKUERR && signal_key > 0, "the signal of execute-only memory");
	printf("pkeys work\n");
	return 0;
}
