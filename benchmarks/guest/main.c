/*
 * Runs programs and prints a line for each: "program GROUP NAME SECONDS CHECKSUM", the least CPU seconds of some rounds (of group cross: the least seconds), each round a
 * process of its own.
 * usage: guest ROUNDS [GROUP|NAME...]        as /init of an initramfs it powers off at the end
 */
#include "guest.h"
#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

static const struct { const char *name; const struct program *programs; } groups[] = {
	{ "int", int_programs }, { "fp", fp_programs }, { "mem", mem_programs }, { "sys", sys_programs },
	{ "fork", fork_programs }, { "str", str_programs }, { "mt", mt_programs }, { "interp", interp_programs },
	{ "cross", cross_programs },
};

const char *self_path;
/* Where a round leaves its checksum: the checksum, and 1. */
static uint64_t *answer;

void fail(const char *what)
{
	printf("guest: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

void *pages(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		fail("mmap");
	return p;
}

static double seconds(const struct timeval *t) { return t->tv_sec + t->tv_usec * 1e-6; }

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

/* CPU seconds of one round, with those of its children, or the seconds that have passed. */
static double run_once(const struct program *p)
{
	struct rusage use;
	double start = now();
	int status;
	answer[1] = 0;
	pid_t child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		cpu_set_t first;
		CPU_ZERO(&first);
		CPU_SET(0, &first);
		if (!p->parallel && sched_setaffinity(0, sizeof first, &first))
			fail("sched_setaffinity");
		alarm(100);
		answer[0] = p->run();
		answer[1] = 1;
		_exit(0);
	}
	if (wait4(child, &status, 0, &use) != child)
		fail("wait4");
	if (status || answer[1] != 1) {
		printf("guest: %s ended with status %x\n", p->name, status);
		return -1;
	}
	return p->passing ? now() - start : seconds(&use.ru_utime) + seconds(&use.ru_stime);
}

static int run(const char *group, const struct program *p, int rounds)
{
	double best = 0;
	uint64_t sum = 0;
	for (int i = 0; i < rounds; i++) {
		double time = run_once(p);
		if (time < 0)
			return 1;
		if (i && sum != answer[0]) {
			printf("guest: %s came to %016llx and then to %016llx\n", p->name, (unsigned long long)sum, (unsigned long long)answer[0]);
			return 1;
		}
		sum = answer[0];
		if (i == 0 || time < best)
			best = time;
	}
	printf("program %s %s %.6f %016llx\n", group, p->name, best, (unsigned long long)sum);
	fflush(stdout);
	return 0;
}

static int chosen(const char *group, const char *name, char **choice, int choices)
{
	for (int i = 0; i < choices; i++)
		if (!strcmp(choice[i], group) || !strcmp(choice[i], name))
			return 1;
	return choices == 0;
}

int main(int argc, char **argv)
{
	/* fork's exec program. */
	if (argc == 2 && !strcmp(argv[1], "--nothing"))
		return 7;
	int is_init = getpid() == 1, failed = 0, ran = 0;
	self_path = is_init ? "/init" : realpath("/proc/self/exe", NULL);
	if (argc < 2 || atoi(argv[1]) < 1 || !self_path) {
		fprintf(stderr, "usage: guest ROUNDS [GROUP|NAME...]\n");
		return 2;
	}
	answer = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (answer == MAP_FAILED)
		fail("mmap");
	double begin = now();
	printf("begin\n");
	fflush(stdout);
	for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
		for (const struct program *p = groups[g].programs; p->name; p++)
			if (chosen(groups[g].name, p->name, argv + 2, argc - 2)) {
				ran++;
				failed += run(groups[g].name, p, atoi(argv[1]));
			}
	printf("end %d %d %.3f\n", ran, failed, now() - begin);
	fflush(stdout);
	if (is_init)
		reboot(RB_POWER_OFF);
	return failed || !ran;
}
