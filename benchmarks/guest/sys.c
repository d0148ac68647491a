/* System calls. */
#include "guest.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static uint64_t getppid_(void)
{
	uint64_t sum = 0;
	long parent = getppid();
	for (int i = 0; i < 300000; i++)
		sum += syscall(SYS_getppid) == parent;
	return sum;
}

static uint64_t read_write(void)
{
	enum { BYTES = 64 << 10 };
	static char buffer[8192];
	int fd = memfd_create("guest", 0);
	uint64_t seed = 43, sum = 0;
	if (fd < 0 || ftruncate(fd, BYTES))
		fail("memfd");
	for (int i = 0; i < 40000; i++) {
		uint64_t r = next_random(&seed);
		size_t length = 1 + (r >> 8) % (i % 8 ? 256 : sizeof buffer);
		off_t at = (r >> 32) % (BYTES - sizeof buffer);
		memcpy(buffer, &r, 8);
		if (pwrite(fd, buffer, length, at) != (ssize_t)length || pread(fd, buffer, length, at / 2) != (ssize_t)length)
			fail("pwrite, pread");
		sum = sum * 31 + (unsigned char)buffer[length / 2];
	}
	close(fd);
	return sum;
}

static uint64_t pingpong(void)
{
	enum { ROUNDS = 12000 };
	int there[2], back[2], status;
	uint64_t value = 1;
	if (pipe(there) || pipe(back))
		fail("pipe");
	pid_t child = fork();
	if (child == 0) {
		for (int i = 0; i < ROUNDS; i++) {
			if (read(there[0], &value, 8) != 8)
				_exit(1);
			value = mix(value, i);
			if (write(back[1], &value, 8) != 8)
				_exit(1);
		}
		_exit(0);
	}
	for (int i = 0; i < ROUNDS; i++)
		if (write(there[1], &value, 8) != 8 || read(back[0], &value, 8) != 8)
			fail("pipe");
	if (waitpid(child, &status, 0) != child || status)
		fail("child");
	return value;
}

static volatile uint64_t signals;

static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)context;
	signals += number == SIGUSR1 && info->si_pid == getpid();
}

static uint64_t signal_(void)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	pid_t self = getpid();
	if (sigaction(SIGUSR1, &action, NULL))
		fail("sigaction");
	for (int i = 0; i < 40000; i++)
		kill(self, SIGUSR1);
	return signals;
}

static uint64_t clock_(void)
{
	struct timespec last = { 0 }, now;
	uint64_t sum = 0;
	for (int i = 0; i < 1800000; i++) {
		if (clock_gettime(CLOCK_MONOTONIC, &now))
			fail("clock_gettime");
		sum += now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec);
		last = now;
	}
	return sum;
}

static uint64_t open_stat(void)
{
	struct stat status;
	uint64_t sum = 0;
	for (int i = 0; i < 25000; i++) {
		int fd = open("/", O_RDONLY | O_DIRECTORY);
		if (fd < 0 || fstat(fd, &status))
			fail("open, fstat");
		sum += S_ISDIR(status.st_mode) + (stat("/no such file", &status) < 0);
		close(fd);
	}
	return sum;
}

const struct program sys_programs[] = {
	{ "getppid", getppid_ }, { "read_write", read_write }, { "pingpong", pingpong }, { "signal", signal_ }, { "clock", clock_ }, { "open_stat", open_stat }, { 0 },
};
