/* A program that never opens /dev/kvm: libring3.so is there, and nothing else. Only under ring3 exec. */
#include "test.h"

static bool mapped(const char *name)
{
	char line[512];
	bool found = false;
	FILE *f = fopen("/proc/self/maps", "r");
	CHECK(f != NULL);
	while (fgets(line, sizeof line, f))
		found |= strstr(line, name) != NULL;
	fclose(f);
	return found;
}

static void nothing(void)
{
	struct sigaction action;
	if (!mapped("/libring3.so"))
		SKIP("not under ring3 exec");
	CHECK(!mapped("libring3-core"));
	CHECK(count_entries("/proc/self/task") == 3);
	CHECK(status_field("VmSize:") < 65536);
	for (int sig = 1; sig < 32; sig++) {
		CHECK(sigaction(sig, NULL, &action) == 0);
		CHECK(action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN);
	}
	CHECK(open("/dev/null", O_RDWR) == 3);
}

static void only_then(void)
{
	CHECK(!mapped("libring3-core"));
	int kvm = open_kvm();
	CHECK(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
	CHECK(mapped("libring3-core"));
	CHECK(count_entries("/proc/self/task") <= 5);
	CHECK(status_field("VmSize:") < 4l << 20);
	close(kvm);
}

static const struct test tests[] = { { "nothing", nothing }, { "only_then", only_then } };
MAIN(tests)
