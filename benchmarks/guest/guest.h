/*
 * Programs of ./bench guest. Each does a fixed amount of work, some tens of milliseconds on a host processor, and returns a checksum that depends on all of it: the same on
 * every machine.
 */
#ifndef GUEST_H
#define GUEST_H
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct program {
	const char *name;
	uint64_t (*run)(void);
	/* May use both processors; the others stay on the first. */
	int parallel;
	/* What counts is the time that passes, not the processors'. */
	int passing;
};

/* Ends with a program without a name. */
extern const struct program int_programs[], fp_programs[], mem_programs[], sys_programs[], fork_programs[], str_programs[], mt_programs[], interp_programs[], cross_programs[];

/* This program's file, for exec. */
extern const char *self_path;

/* Says what failed, and ends the process. */
_Noreturn void fail(const char *what);

/* Two threads, 0 and 1, wake each other by a futex, each so often; each calls begin with its number first. */
uint64_t hand_over(int count, void (*begin)(int));

/* Fresh private memory. */
void *pages(size_t bytes);

/* xorshift64*: the state must not be 0. */
static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1d;
}

static inline uint64_t mix(uint64_t sum, uint64_t value)
{
	sum = (sum ^ value) * 0x9e3779b97f4a7c15;
	return sum ^ sum >> 29;
}

static inline uint64_t mix_double(uint64_t sum, double value)
{
	uint64_t bits;
	memcpy(&bits, &value, sizeof bits);
	return mix(sum, bits);
}

#endif
