/* Two processors that wake each other in turn: each hand-over is a wake-up of a processor that sleeps. Measured by the time that passes. */
#include "guest.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { TURNS = 4000 };

static void stay_on(int processor)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(processor, &set);
	if (sched_setaffinity(0, sizeof set, &set))
		fail("two processors are needed");
}

static uint32_t turn;
static uint64_t sum;

static void *take_turns(void *argument)
{
	uint32_t mine = (uintptr_t)argument;
	stay_on(mine);
	for (int i = 0; i < TURNS; i++) {
		uint32_t now;
		while (((now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) & 1) != mine)
			syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
		sum = mix(sum, now);
		__atomic_store_n(&turn, now + 1, __ATOMIC_RELEASE);
		syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	}
	return NULL;
}

static uint64_t futex(void)
{
	pthread_t other;
	if (pthread_create(&other, NULL, take_turns, (void *)1))
		fail("pthread_create");
	take_turns(NULL);
	pthread_join(other, NULL);
	return mix(sum, turn);
}

static uint64_t pipes(void)
{
	int there[2], back[2], status;
	uint64_t token = 1;
	if (pipe(there) || pipe(back))
		fail("pipe");
	pid_t child = fork();
	if (child < 0)
		fail("fork");
	stay_on(child == 0);
	for (int i = 0; i < TURNS; i++) {
		if (child && write(there[1], &token, sizeof token) != sizeof token)
			fail("write");
		if (read(child ? back[0] : there[0], &token, sizeof token) != sizeof token)
			fail("read");
		token = mix(token, i);
		if (!child && write(back[1], &token, sizeof token) != sizeof token)
			fail("write");
	}
	if (!child)
		_exit(0);
	if (waitpid(child, &status, 0) != child || status)
		fail("waitpid");
	return token;
}

const struct program cross_programs[] = { { "futex_across", futex, 1, 1 }, { "pipe_across", pipes, 1, 1 }, { 0 } };
