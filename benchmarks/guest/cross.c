/* Two processors that wake each other in turn: each hand-over is a wake-up of a processor that sleeps. Measured by the time that passes. */
#include "guest.h"
#include <sched.h>
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

static uint64_t futex(void)
{
	return hand_over(TURNS, stay_on);
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
