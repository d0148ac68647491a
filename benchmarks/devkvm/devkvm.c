/*
 * Prices of /dev/kvm as a client pays them. usage: devkvm PREFIX
 * Prints lines of name, value and unit, separated by tabs. Times are the best of several rounds of this thread's processor time, so that a
 * busy machine does not count, except for the first open, which is wall time in a fresh process, best of several.
 */
#include "../../tests/native/devkvm/test.h"

static uint64_t thread_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void report(const char *prefix, const char *name, double value, const char *unit)
{
	printf("%s%s\t%.*f\t%s\n", prefix, name, value < 100 ? 2 : 0, value, unit);
	fflush(stdout);
}

enum { ROUNDS = 15 };

static double pio_exit(int calls)
{
	struct machine m;
	double best = 1e18;
	CREATE(&m, GUEST_OUT, false);
	for (int i = 0; i < calls; i++)
		CHECK(run(&m) == 0);
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t start = thread_ns();
		for (int i = 0; i < calls; i++)
			ioctl(m.vcpu, KVM_RUN, 0);
		double ns = (double)(thread_ns() - start) / calls;
		best = ns < best ? ns : best;
	}
	CHECK(m.run->exit_reason == KVM_EXIT_IO);
	destroy(&m);
	return best;
}

static double api_version(int calls)
{
	int kvm = open_kvm();
	double best = 1e18;
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t start = thread_ns();
		for (int i = 0; i < calls; i++)
			ioctl(kvm, KVM_GET_API_VERSION, 0);
		double ns = (double)(thread_ns() - start) / calls;
		best = ns < best ? ns : best;
	}
	CHECK(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
	close(kvm);
	return best;
}

static double first_open(const char *program)
{
	double best = 1e18;
	for (int i = 0; i < ROUNDS; i++) {
		int out[2];
		uint64_t ns = 0;
		CHECK(pipe(out) == 0);
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			dup2(out[1], 1);
			execl(program, program, "--open", NULL);
			_exit(127);
		}
		close(out[1]);
		CHECK(read(out[0], &ns, sizeof ns) == sizeof ns);
		close(out[0]);
		waitpid(pid, NULL, 0);
		best = (double)ns / 1e6 < best ? (double)ns / 1e6 : best;
	}
	return best;
}

/* A VM with one vCPU, memory and an exit, made and destroyed. Wall time: the kernel's work is done elsewhere, too. */
static double vm_rounds(int rounds)
{
	double best = 0;
	for (int round = 0; round < 5; round++) {
		uint64_t start = now_ns();
		for (int i = 0; i < rounds; i++) {
			int kvm = open_kvm();
			int vm = ioctl(kvm, KVM_CREATE_VM, 0);
			CHECK(vm >= 0);
			close(vm);
			close(kvm);
		}
		double rate = rounds / ((double)(now_ns() - start) / 1e9);
		best = rate > best ? rate : best;
	}
	return best;
}

static double vcpu_rounds(int rounds)
{
	double best = 0;
	for (int round = 0; round < 5; round++) {
		uint64_t start = now_ns();
		for (int i = 0; i < rounds; i++) {
			struct machine m;
			CREATE(&m, GUEST_OUT, false);
			CHECK(run(&m) == 0);
			destroy(&m);
		}
		double rate = rounds / ((double)(now_ns() - start) / 1e9);
		best = rate > best ? rate : best;
	}
	return best;
}

int main(int argc, char **argv)
{
	bool real = argc > 1 && strstr(argv[1], "real") != NULL;

	if (argc > 1 && strcmp(argv[1], "--open") == 0) {
		uint64_t start = now_ns();
		open_kvm();
		start = now_ns() - start;
		return write(1, &start, sizeof start) != sizeof start;
	}
	const char *prefix = argc > 1 ? argv[1] : "devkvm.";
	report(prefix, "first_open_ms", first_open("/proc/self/exe"), "ms");
	report(prefix, "api_version_ns", api_version(real ? 20000 : 200000), "ns");
	report(prefix, "pio_exit_ns", pio_exit(real ? 2000 : 50000), "ns");
	report(prefix, "vm_rounds_per_s", vm_rounds(real ? 20 : 200), "1/s");
	report(prefix, "vm_run_rounds_per_s", vcpu_rounds(real ? 20 : 100), "1/s");
	return 0;
}
