/* Descriptors of KVM objects: their life, their copies, what can be done with them. */
#include "test.h"

#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#define MAX_ROUNDS 10000

static void paths(void)
{
	struct stat st;
	struct statx stx;
	int fd;

	CHECK(access("/dev/kvm", R_OK | W_OK) == 0);
	CHECK(stat("/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == 0xae8);
	CHECK(lstat("/dev/kvm", &st) == 0 && fstatat(AT_FDCWD, "/dev/kvm", &st, 0) == 0);
	CHECK(statx(AT_FDCWD, "/dev/kvm", 0, STATX_BASIC_STATS, &stx) == 0 && S_ISCHR(stx.stx_mode) && stx.stx_rdev_major == 10 && stx.stx_rdev_minor == 232);
	CHECK(faccessat(AT_FDCWD, "/dev/kvm", W_OK, AT_EACCESS) == 0);
	int dev = open("/dev", O_RDONLY | O_DIRECTORY);
	CHECK(dev >= 0);
	CHECK(fstatat(dev, "kvm", &st, 0) == 0 && st.st_rdev == 0xae8);
	CHECK((fd = openat(dev, "kvm", O_RDWR)) >= 0);
	CHECK(ioctl(fd, KVM_GET_API_VERSION, 0) == 12);
	CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0);
	CHECK(close(fd) == 0 && close(dev) == 0);
	CHECK((fd = open("/dev/kvm", O_RDONLY | O_CLOEXEC)) >= 0);
	CHECK(ioctl(fd, KVM_GET_API_VERSION, 0) == 12);
	CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
	CHECK(close(fd) == 0);
	CHECK_ERROR(ioctl(fd, KVM_GET_API_VERSION, 0), EBADF);
	CHECK_ERROR(open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
	CHECK_ERROR(open("/dev/kvm", O_RDONLY | O_DIRECTORY), ENOTDIR);
	FILE *f = fopen("/dev/kvm", "r+");
	CHECK(f != NULL && ioctl(fileno(f), KVM_GET_API_VERSION, 0) == 12);
	fd = fileno(f);
	CHECK(fclose(f) == 0);
	CHECK_ERROR(ioctl(fd, KVM_GET_API_VERSION, 0), EBADF);
}

static char parameter(const char *path)
{
	char c = 0;
	FILE *f = fopen(path, "r");
	if (!f)
		return 0;
	CHECK(fread(&c, 1, 1, f) == 1);
	fclose(f);
	return c;
}

static void parameters(void)
{
	struct stat st;
	char c;
	int fd = open("/sys/module/kvm/parameters/tdp_mmu", O_RDONLY);
	CHECK(fd >= 0 && read(fd, &c, 1) == 1 && (c == 'Y' || c == 'N') && close(fd) == 0);
	CHECK(parameter("/sys/module/kvm/parameters/eager_page_split") != 0);
	CHECK(parameter("/sys/module/kvm/parameters/force_emulation_prefix") == '0');
	CHECK(parameter("/sys/module/kvm/parameters/enable_pmu") == 'N');
	CHECK(parameter("/sys/module/kvm/parameters/nothing_like_it") == 0);
	CHECK(stat("/sys/module/kvm/parameters/tdp_mmu", &st) == 0 && S_ISREG(st.st_mode));
	CHECK(stat("/sys/module/kvm", &st) == 0 && S_ISDIR(st.st_mode));
	CHECK_ERROR(stat("/sys/module/kvm/parameters/nothing_like_it", &st), ENOENT);
	CHECK(access("/sys/module/kvm/parameters/tdp_mmu", R_OK) == 0);
	if (getenv("RING3_REAL_KVM"))
		return;
	/* The module of the other vendor is not loaded. */
	bool amd = access("/sys/module/kvm_amd", F_OK) == 0, intel = access("/sys/module/kvm_intel", F_OK) == 0;
	CHECK(amd != intel);
	CHECK(parameter(amd ? "/sys/module/kvm_amd/parameters/npt" : "/sys/module/kvm_intel/parameters/ept") == 'Y');
	CHECK_ERROR(open("/sys/module/kvm/parameters/tdp_mmu", O_WRONLY), EACCES);
}

static void duplicates(void)
{
	struct machine m;
	int copies[5];
	CREATE(&m, GUEST_OUT, false);
	copies[0] = dup(m.vcpu);
	copies[1] = fcntl(m.vcpu, F_DUPFD, 100);
	copies[2] = fcntl(m.vcpu, F_DUPFD_CLOEXEC, 100);
	copies[3] = dup2(m.vcpu, 200);
	copies[4] = (int)syscall(SYS_dup3, m.vcpu, 201, O_CLOEXEC);
	CHECK(copies[1] >= 100 && copies[2] > copies[1] && copies[3] == 200 && copies[4] == 201);
	CHECK(close(m.vcpu) == 0 && close(m.vm) == 0);
	for (int i = 0; i < 5; i++) {
		CHECK(copies[i] >= 0);
		CHECK(ioctl(copies[i], KVM_RUN, 0) == 0);
		CHECK(m.run->exit_reason == KVM_EXIT_IO);
		CHECK(close(copies[i]) == 0);
		CHECK_ERROR(ioctl(copies[i], KVM_RUN, 0), EBADF);
	}
	close(m.kvm);
}

/* A number that is used again means the new object. */
static void reused_numbers(void)
{
	struct machine a, b;
	CREATE(&a, GUEST_OUT, false);
	int null = open("/dev/null", O_RDWR);
	int vcpu = dup(a.vcpu);
	/* Over a KVM descriptor, and KVM over a plain one. */
	CHECK(dup2(null, vcpu) == vcpu);
	CHECK_ERROR(ioctl(vcpu, KVM_RUN, 0), ENOTTY);
	CHECK(write(vcpu, "x", 1) == 1);
	CHECK(dup2(a.vcpu, null) == null);
	CHECK(ioctl(null, KVM_RUN, 0) == 0);
	CHECK(syscall(SYS_close, null) == 0);
	CHECK(open("/dev/zero", O_RDONLY) == null);
	char c = 1;
	CHECK(syscall(SYS_read, null, &c, 1) == 1 && c == 0);
	CHECK(close(null) == 0);
	CREATE(&b, GUEST_OUT, false);
	CHECK(ioctl(b.vcpu, KVM_RUN, 0) == 0 && b.run->exit_reason == KVM_EXIT_IO);
	CHECK(dup2(b.vcpu, a.vcpu) == a.vcpu);
	b.run->exit_reason = 99;
	CHECK(ioctl(a.vcpu, KVM_RUN, 0) == 0 && b.run->exit_reason == KVM_EXIT_IO);
}

static void ranges(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	int vcpu = dup2(m.vcpu, 300), vm = dup2(m.vm, 301), kvm = dup2(m.kvm, 350);
	CHECK(vcpu == 300 && vm == 301 && kvm == 350);
	CHECK(close_range(300, 340, 0) == 0);
	CHECK_ERROR(ioctl(300, KVM_RUN, 0), EBADF);
	CHECK_ERROR(ioctl(301, KVM_CHECK_EXTENSION, 0), EBADF);
	CHECK(ioctl(350, KVM_GET_API_VERSION, 0) == 12);
	CHECK(close_range(350, ~0u, CLOSE_RANGE_CLOEXEC) == 0);
	CHECK(ioctl(350, KVM_GET_API_VERSION, 0) == 12);
	closefrom(350);
	CHECK_ERROR(ioctl(350, KVM_GET_API_VERSION, 0), EBADF);
	CHECK(run(&m) == 0);
	CHECK_ERROR(close_range(5, 4, 0), EINVAL);
	destroy(&m);
}

/* The VM lives as long as its vCPU's descriptor. */
static void vm_outlives_its_descriptor(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	CHECK(close(m.vm) == 0 && close(m.kvm) == 0);
	for (int i = 0; i < 10; i++)
		CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	CHECK(close(m.vcpu) == 0);
	/* A mapping keeps the page. */
	m.run->immediate_exit = 1;
	CHECK(munmap(m.run, m.run_bytes) == 0);
}

static void send_fd(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, byte = 1;
	struct iovec v = { &byte, 1 };
	struct msghdr message = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	CHECK(sendmsg(socket, &message, 0) == 1);
}

static int receive_fd(int socket)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, byte;
	struct iovec v = { &byte, 1 };
	struct msghdr message = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	int fd;
	CHECK(recvmsg(socket, &message, 0) == 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

/* In flight, the object lives although no descriptor is open. */
static void in_flight(void)
{
	struct machine m;
	int pair[2];
	CREATE(&m, GUEST_OUT, false);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	send_fd(pair[0], m.vcpu);
	send_fd(pair[0], m.kvm);
	CHECK(close(m.vcpu) == 0 && close(m.kvm) == 0 && close(m.vm) == 0);
	int other = open_kvm();
	CHECK(close(other) == 0);
	int vcpu = receive_fd(pair[1]), kvm = receive_fd(pair[1]);
	CHECK(ioctl(vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	CHECK(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
	CHECK(close(vcpu) == 0 && close(kvm) == 0 && munmap(m.run, m.run_bytes) == 0);
}

/* Another process gets EIO for objects of this one, and can use /dev/kvm itself. */
static void other_process(void)
{
	int pair[2], status;
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		int vm = receive_fd(pair[1]), kvm = receive_fd(pair[1]);
		CHECK_ERROR(ioctl(vm, KVM_CREATE_VCPU, 0), EIO);
		CHECK(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
		int own = ioctl(kvm, KVM_CREATE_VM, 0);
		CHECK(own >= 0 && ioctl(own, KVM_CREATE_VCPU, 0) >= 0);
		_exit(0);
	}
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	send_fd(pair[0], m.vm);
	send_fd(pair[0], m.kvm);
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
	CHECK(run(&m) == 0);
	destroy(&m);
}

/* Copies that nobody saw being made. */
static void raw_calls(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	int copy = (int)syscall(SYS_dup, m.vcpu);
	CHECK(copy >= 0 && close(m.vcpu) == 0);
	CHECK(ioctl(copy, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	CHECK(syscall(SYS_close, copy) == 0);
	close(m.vm);
	close(m.kvm);
}

static void readiness(void)
{
	struct machine m;
	struct epoll_event event = { .events = EPOLLIN };
	CREATE(&m, GUEST_OUT, false);
	struct pollfd p = { m.vm, POLLIN | POLLOUT, 0 };
	CHECK(poll(&p, 1, 0) >= 0 && !(p.revents & (POLLERR | POLLNVAL | POLLHUP)));
	CHECK(close(epoll_create1(0)) == 0);
	(void)event;
	destroy(&m);
}

static void not_files(void)
{
	struct machine m;
	char c[8] = { 0 };
	struct iovec v = { c, 8 };
	CREATE(&m, GUEST_OUT, false);
	int fds[] = { m.vm, m.vcpu, m.kvm };
	for (int i = 0; i < 3; i++) {
		CHECK_ERROR(read(fds[i], c, 8), EINVAL);
		CHECK_ERROR(write(fds[i], c, 8), EINVAL);
		CHECK_ERROR(pread(fds[i], c, 8, 0), i == 2 ? EINVAL : ESPIPE);
		CHECK_ERROR(pwrite(fds[i], c, 8, 0), i == 2 ? EINVAL : ESPIPE);
		CHECK_ERROR(readv(fds[i], &v, 1), EINVAL);
	}
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.vm, 0) == MAP_FAILED && errno == ENODEV);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.kvm, 0) == MAP_FAILED && errno == ENODEV);
	CHECK_ERROR(ioctl(m.vm, 0xAEFF, 0), ENOTTY);
	CHECK_ERROR(ioctl(0, KVM_GET_API_VERSION, 0), ENOTTY);
	CHECK_ERROR(ioctl(-1, KVM_GET_API_VERSION, 0), EBADF);
	CHECK_ERROR(ioctl(99999999, KVM_GET_API_VERSION, 0), EBADF);
	destroy(&m);
}

static void statistics(void)
{
	struct machine m;
	struct kvm_stats_header header, again;
	CREATE(&m, GUEST_OUT, false);
	int fd = ioctl(m.vcpu, KVM_GET_STATS_FD, 0);
	CHECK(fd >= 0);
	CHECK(pread(fd, &header, sizeof header, 0) == sizeof header);
	CHECK(header.num_desc > 0 && header.name_size > 0);
	CHECK(read(fd, &again, sizeof again) == sizeof again && memcmp(&header, &again, sizeof header) == 0);
	char id[4];
	CHECK(read(fd, id, 4) == 4);
	CHECK_ERROR(write(fd, id, 4), EBADF);
	CHECK(close(m.vcpu) == 0 && close(m.vm) == 0);
	CHECK(pread(fd, &again, sizeof again, 0) == sizeof again);
	CHECK(close(fd) == 0 && close(m.kvm) == 0);
}

static void one_round(bool irqchip, bool exits)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, irqchip);
	if (exits)
		CHECK(run(&m) == 0);
	destroy(&m);
}

/* Nothing is left behind. */
static void rounds(void)
{
	int count = getenv("RING3_ROUNDS") ? atoi(getenv("RING3_ROUNDS")) : 1000;
	if (count > MAX_ROUNDS)
		count = MAX_ROUNDS;
	for (int i = 0; i < 200; i++)
		one_round(i % 4 == 0, i % 2 == 0);
	struct resources before = resources();
	uint64_t start = now_ns();
	for (int i = 0; i < count; i++)
		one_round(i % 4 == 0, i % 2 == 0);
	uint64_t took = now_ns() - start;
	sleep_ms(100);
	struct resources after = resources();
	fprintf(stderr, "%d rounds, %llu us each; %d -> %d descriptors, %d -> %d threads, %ld -> %ld KiB\n", count,
		(unsigned long long)(took / 1000 / (unsigned)count), before.descriptors, after.descriptors, before.threads, after.threads, before.resident_kib, after.resident_kib);
	CHECK(after.descriptors == before.descriptors);
	CHECK(after.threads <= before.threads + 1);
	CHECK(after.resident_kib < before.resident_kib + 8192);
}

static void *one_thread(void *argument)
{
	for (int i = 0; i < 50; i++)
		one_round(false, true);
	return argument;
}

static void threads(void)
{
	one_round(false, true);
	struct resources before = resources();
	for (int round = 0; round < 10; round++) {
		pthread_t t[4];
		for (int i = 0; i < 4; i++)
			CHECK(pthread_create(&t[i], NULL, one_thread, NULL) == 0);
		for (int i = 0; i < 4; i++)
			CHECK(pthread_join(t[i], NULL) == 0);
	}
	sleep_ms(100);
	struct resources after = resources();
	CHECK(after.descriptors == before.descriptors);
	CHECK(after.threads <= before.threads + 2);
}

/* close() while another thread runs the vCPU: the object lives until that thread is back. */
static void handle(int sig)
{
	(void)sig;
}

static void *run_until_signal(void *argument)
{
	struct machine *m = argument;
	for (;;) {
		if (ioctl(m->vcpu, KVM_RUN, 0) != 0)
			return (void *)(uintptr_t)errno;
	}
}

static void closed_while_running(void)
{
	struct sigaction action = { .sa_handler = handle };
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	for (int i = 0; i < 50; i++) {
		struct machine m;
		pthread_t thread;
		void *result;
		CREATE(&m, GUEST_STORE, false);
		CHECK(pthread_create(&thread, NULL, run_until_signal, &m) == 0);
		while (!*(volatile unsigned char *)&m.memory[0x8000])
			sched_yield();
		int vcpu = m.vcpu;
		CHECK(close(m.vm) == 0 && close(vcpu) == 0 && close(m.kvm) == 0);
		sleep_ms(1);
		CHECK(pthread_kill(thread, SIGUSR1) == 0);
		CHECK(pthread_join(thread, &result) == 0);
		CHECK((uintptr_t)result == EINTR);
		CHECK(munmap(m.run, m.run_bytes) == 0 && munmap(m.memory, MEMORY_BYTES) == 0);
	}
}

/* However many descriptors there are, a call works or says that there are none; nothing is kept by one that fails. */
static void few_descriptors(void)
{
	struct rlimit limit;
	struct machine m;
	bool done = false;

	CREATE(&m, GUEST_HALT, true); /* the libraries are loaded */
	destroy(&m);
	int before = count_entries("/proc/self/fd"), free_fd = dup(0);
	CHECK(free_fd >= 0 && close(free_fd) == 0);
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	for (unsigned n = 0; n < 40 && !done; n++) {
		struct rlimit few = { (unsigned)free_fd + n, limit.rlim_max };
		CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
		int error = 0, kvm, vm = -1, vcpu = -1, event = -1;
		if ((kvm = open("/dev/kvm", O_RDWR)) < 0 || (vm = ioctl(kvm, KVM_CREATE_VM, 0)) < 0 || ioctl(vm, KVM_CREATE_IRQCHIP, 0) != 0 ||
		    (vcpu = ioctl(vm, KVM_CREATE_VCPU, 0)) < 0 || (event = eventfd(0, 0)) < 0)
			error = errno;
		else {
			struct kvm_irqfd irqfd = { .fd = (uint32_t)event, .gsi = 5 };
			if (ioctl(vm, KVM_IRQFD, &irqfd) != 0)
				error = errno;
		}
		if (error && error != EMFILE && error != ENOMEM)
			fprintf(stderr, "%u descriptors: errno %d\n", n, error);
		CHECK(!error || error == EMFILE || error == ENOMEM);
		done = !error;
		for (unsigned i = 0; i < 4; i++) {
			int fd = ((const int[]){ event, vcpu, vm, kvm })[i];
			CHECK(fd < 0 || close(fd) == 0);
		}
		CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
		CHECK(count_entries("/proc/self/fd") <= before);
	}
	CHECK(done);
}

static const struct test tests[] = {
	{ "paths", paths }, { "parameters", parameters }, { "duplicates", duplicates }, { "reused_numbers", reused_numbers },
	{ "ranges", ranges }, { "vm_outlives_its_descriptor", vm_outlives_its_descriptor }, { "in_flight", in_flight },
	{ "other_process", other_process }, { "raw_calls", raw_calls }, { "readiness", readiness }, { "not_files", not_files },
	{ "statistics", statistics }, { "rounds", rounds }, { "threads", threads }, { "closed_while_running", closed_while_running }, { "few_descriptors", few_descriptors },
};
MAIN(tests)
