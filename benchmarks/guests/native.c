/* The same kernels as a process: native ITERATIONS. Prints the processor time of kernel_run in nanoseconds. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

void kernel_run(unsigned long iterations, void *arena);

static long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

int main(int argc, char **argv)
{
	void *arena = mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long start;

	if (argc != 2 || arena == MAP_FAILED)
		return 2;
	start = now();
	kernel_run(strtoul(argv[1], NULL, 10), arena);
	printf("%ld\n", now() - start);
	return 0;
}
