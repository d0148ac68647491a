/* Atomics and threads. */
#include "guest.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>

/* Runs a function in two threads, with 0 and 1. */
static void both(void *(*run)(void *))
{
	pthread_t other;
	if (pthread_create(&other, NULL, run, (void *)1))
		fail("pthread_create");
	run((void *)0);
	pthread_join(other, NULL);
}

/* No other thread: what locked instructions cost. */
static uint64_t atomics(void)
{
	static uint64_t cells[512];
	uint64_t sum = 0, expected;
	for (int i = 0; i < 1400000; i++) {
		uint64_t *cell = &cells[i * 7 & 511];
		sum += __atomic_fetch_add(cell, i, __ATOMIC_SEQ_CST);
		__atomic_or_fetch(&cells[i & 511], 1 << (i & 15), __ATOMIC_SEQ_CST);
		expected = *cell;
		__atomic_compare_exchange_n(cell, &expected, expected * 3, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		sum ^= __atomic_exchange_n(&cells[(i + 5) & 511], sum, __ATOMIC_SEQ_CST);
	}
	return sum;
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t shared_count, shared_sum;

static void *lock_and_count(void *argument)
{
	(void)argument;
	for (int i = 0; i < 600000; i++) {
		pthread_mutex_lock(&mutex);
		shared_sum += shared_count++;
		pthread_mutex_unlock(&mutex);
		/* Some work of one's own. */
		for (volatile int k = 0; k < 20; k++)
			;
	}
	return NULL;
}

static uint64_t mutex_(void)
{
	both(lock_and_count);
	return mix(shared_sum, shared_count);
}

static uint32_t turn;
static int turns;
static void (*at_begin)(int);

static void *take_turns(void *argument)
{
	uint32_t mine = (uintptr_t)argument;
	if (at_begin)
		at_begin(mine);
	for (int i = 0; i < turns; i++) {
		uint32_t now;
		while (((now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) & 1) != mine)
			syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
		shared_sum = mix(shared_sum, now);
		__atomic_store_n(&turn, now + 1, __ATOMIC_RELEASE);
		syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	}
	return NULL;
}

uint64_t hand_over(int count, void (*begin)(int))
{
	turns = count;
	at_begin = begin;
	both(take_turns);
	return mix(shared_sum, turn);
}

static uint64_t futex(void)
{
	return hand_over(8000, NULL);
}

static uint64_t results[2][64];

static void *work_alone(void *argument)
{
	uint64_t seed = 61 + (uintptr_t)argument, sum = 0;
	for (int i = 0; i < 5000000; i++)
		sum = mix(sum, next_random(&seed));
	results[(uintptr_t)argument][0] = sum;
	return NULL;
}

static uint64_t two_threads(void)
{
	both(work_alone);
	return mix(results[0][0], results[1][0]);
}

static uint64_t contended_cell;

static void *add_to_one_cell(void *argument)
{
	for (int i = 0; i < 2000000; i++)
		__atomic_fetch_add(&contended_cell, 1 + (uintptr_t)argument, __ATOMIC_SEQ_CST);
	return NULL;
}

static uint64_t contended(void)
{
	both(add_to_one_cell);
	return contended_cell;
}

/* A producer fills one of two buffers while the consumer empties the other. Who has to wait sleeps, so that waiting costs neither CPU time. */
enum { BATCH = 4096, BATCHES = 600 };
static uint64_t batches[2][BATCH];
static uint32_t filled, emptied;

/* Waits until a counter has passed a value. */
static void wait_beyond(uint32_t *counter, uint32_t value)
{
	uint32_t now;
	while ((int32_t)((now = __atomic_load_n(counter, __ATOMIC_ACQUIRE)) - value) <= 0)
		syscall(SYS_futex, counter, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
}

static void count(uint32_t *counter)
{
	__atomic_fetch_add(counter, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, counter, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *produce_or_consume(void *argument)
{
	uint64_t seed = 67;
	for (uint32_t i = 0; i < BATCHES; i++) {
		uint64_t *batch = batches[i & 1];
		if (argument) {
			if (i >= 2)
				wait_beyond(&emptied, i - 2);
			for (int k = 0; k < BATCH; k++)
				batch[k] = next_random(&seed);
			count(&filled);
		} else {
			wait_beyond(&filled, i);
			for (int k = 0; k < BATCH; k++)
				shared_sum = mix(shared_sum, batch[k]);
			count(&emptied);
		}
	}
	return NULL;
}

static uint64_t queue(void)
{
	both(produce_or_consume);
	return shared_sum;
}

const struct program mt_programs[] = {
	{ "atomics", atomics }, { "mutex", mutex_, 1 }, { "futex", futex, 1 }, { "two_threads", two_threads, 1 }, { "contended", contended, 1 }, { "queue", queue, 1 }, { 0 },
};
