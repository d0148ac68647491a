/* Processes and page faults. */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

static int status_of(pid_t child)
{
	int status;
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		fail("child");
	return WEXITSTATUS(status);
}

static uint64_t fork_(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < 400; i++) {
		pid_t child = fork();
		if (child == 0)
			_exit(i & 63);
		sum = sum * 31 + status_of(child);
	}
	return sum;
}

static uint64_t exec(void)
{
	char *arguments[] = { (char *)self_path, "--nothing", NULL }, *environment[] = { NULL };
	uint64_t sum = 0;
	for (int i = 0; i < 60; i++) {
		pid_t child;
		if (posix_spawn(&child, self_path, NULL, NULL, arguments, environment))
			fail("posix_spawn");
		sum = sum * 31 + status_of(child);
	}
	return sum;
}

/* A page at a time: mapped, read from, written to, unmapped; and pages of a file. */
static uint64_t fault(void)
{
	enum { PAGE = 4096, COUNT = 256 };
	int fd = memfd_create("guest", 0);
	uint64_t sum = 0;
	if (fd < 0 || ftruncate(fd, COUNT * PAGE))
		fail("memfd");
	for (int t = 0; t < 60; t++) {
		uint8_t *p = pages(COUNT * PAGE), *file = mmap(NULL, COUNT * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (file == MAP_FAILED)
			fail("mmap");
		for (int i = 0; i < COUNT; i++) {
			sum += p[i * PAGE + 5];
			p[i * PAGE + 7] = i;
			sum = sum * 3 + file[i * PAGE] + p[i * PAGE + 7];
			file[i * PAGE]++;
		}
		munmap(p, COUNT * PAGE);
		munmap(file, COUNT * PAGE);
	}
	return sum;
}

static uint8_t *guarded;
static volatile uint64_t caught;

static void on_segv(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	uint8_t *page = (uint8_t *)((uintptr_t)info->si_addr & -4096l);
	caught += page - guarded;
	if (mprotect(page, 4096, PROT_READ | PROT_WRITE))
		fail("mprotect");
}

/* Protects pages and writes to them; the handler of SIGSEGV takes the protection away. */
static uint64_t protect(void)
{
	enum { PAGE = 4096, COUNT = 64 };
	struct sigaction action = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };
	uint64_t sum = 0;
	guarded = pages(COUNT * PAGE);
	if (sigaction(SIGSEGV, &action, NULL))
		fail("sigaction");
	for (int t = 0; t < 150; t++) {
		for (int i = 0; i < COUNT; i++)
			guarded[i * PAGE + t]++;
		if (mprotect(guarded, COUNT * PAGE, PROT_READ))
			fail("mprotect");
		for (int i = t & 1; i < COUNT; i += 2)
			guarded[i * PAGE + 1] += i;
		sum = sum * 31 + caught;
		if (mprotect(guarded, COUNT * PAGE, PROT_READ | PROT_WRITE))
			fail("mprotect");
	}
	for (int i = 0; i < COUNT; i++)
		sum = sum * 31 + guarded[i * PAGE + 1];
	return sum;
}

/* The child writes to all pages that it has in common with its parent. */
static uint64_t cow(void)
{
	enum { PAGE = 4096, COUNT = 1024 };
	uint8_t *p = pages(COUNT * PAGE);
	uint64_t sum = 0;
	for (int i = 0; i < COUNT; i++)
		p[i * PAGE] = i * i >> 3;
	for (int t = 0; t < 12; t++) {
		pid_t child = fork();
		if (child == 0) {
			uint8_t x = 0;
			for (int i = 0; i < COUNT; i++) {
				p[i * PAGE + 1] = t;
				x = x * 31 + (p[i * PAGE] ^ p[i * PAGE + 1]);
			}
			_exit(x);
		}
		sum = sum * 31 + status_of(child);
		for (int i = 0; i < COUNT; i += 4)
			p[i * PAGE] += p[i * PAGE + 1] + 1;
	}
	return sum;
}

static void *thread(void *argument) { return (char *)argument + 1; }

static uint64_t threads(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < 2400; i++) {
		pthread_t id;
		void *result;
		if (pthread_create(&id, NULL, thread, (void *)(intptr_t)i) || pthread_join(id, &result))
			fail("pthread");
		sum += (intptr_t)result;
	}
	return sum;
}

const struct program fork_programs[] = { { "fork", fork_ }, { "exec", exec }, { "fault", fault }, { "protect", protect }, { "cow", cow }, { "threads", threads }, { 0 } };
