/* irqfds: an interrupt is delivered when the write to its eventfd returns, and nothing else changes about the descriptor. Seen in the local APIC's IRR. */
#include "test.h"

#include <sys/eventfd.h>

enum { GSI = 24, VECTOR = 0x43, OTHER_GSI = 25, OTHER_VECTOR = 0x44 };

static const uint64_t one = 1;

static struct kvm_lapic_state lapic(struct machine *m)
{
	struct kvm_lapic_state s;
	CHECK(ioctl(m->vcpu, KVM_GET_LAPIC, &s) == 0);
	return s;
}

static bool pending(struct machine *m, unsigned vector)
{
	struct kvm_lapic_state s = lapic(m);
	return s.regs[0x200 + vector / 32 * 16 + vector % 32 / 8] >> vector % 8 & 1;
}

/* No interrupt is pending afterwards; the APIC is on. */
static void clear(struct machine *m)
{
	struct kvm_lapic_state s = lapic(m);
	memcpy(s.regs + 0xf0, &(uint32_t){ 0x1ff }, 4);
	for (unsigned i = 0; i < 8; i++)
		memset(s.regs + 0x200 + i * 16, 0, 4);
	CHECK(ioctl(m->vcpu, KVM_SET_LAPIC, &s) == 0);
}

/* For what another thread or process delivers. */
static void wait_pending(struct machine *m, unsigned vector)
{
	uint64_t end = now_ns() + 20000000000ull;
	while (!pending(m, vector))
		CHECK(now_ns() < end);
	clear(m);
}

static void irqfd(struct machine *m, int fd, unsigned gsi, unsigned flags)
{
	struct kvm_irqfd i = { .fd = (uint32_t)fd, .gsi = gsi, .flags = flags };
	CHECK(ioctl(m->vm, KVM_IRQFD, &i) == 0);
}

static void create_routed(struct machine *m)
{
	struct kvm_irq_routing *routes = calloc(1, sizeof *routes + 2 * sizeof routes->entries[0]);
	CHECK(routes);
	CREATE(m, GUEST_HALT, true);
	routes->nr = 2;
	for (unsigned i = 0; i < 2; i++)
		routes->entries[i] = (struct kvm_irq_routing_entry){ .gsi = GSI + i, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = VECTOR + i } };
	CHECK(ioctl(m->vm, KVM_SET_GSI_ROUTING, routes) == 0);
	free(routes);
	clear(m);
}

static int create_irqfd(struct machine *m)
{
	create_routed(m);
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK(fd >= 0);
	irqfd(m, fd, GSI, 0);
	return fd;
}

static void write_delivers(struct machine *m, int fd)
{
	CHECK(write(fd, &one, sizeof one) == sizeof one);
	CHECK(pending(m, VECTOR));
	clear(m);
}

static void in_the_writers_thread(void)
{
	struct machine m;
	uint64_t count;
	int fd = create_irqfd(&m);

	for (int i = 0; i < 1000; i++)
		write_delivers(&m, fd);
	CHECK(eventfd_write(fd, 1) == 0 && pending(&m, VECTOR));
	clear(&m);
	CHECK_ERROR(read(fd, &count, sizeof count), EAGAIN);
	CHECK(!pending(&m, VECTOR));
	destroy(&m);
	close(fd);
}

static void other_writes(void)
{
	struct machine m;
	uint64_t value = 3, wrong = ~0ull;
	struct iovec v = { &value, sizeof value };
	void *nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = create_irqfd(&m);

	CHECK(nowhere != MAP_FAILED && write(fd, &value, sizeof value) == sizeof value);
	wait_pending(&m, VECTOR);
	CHECK(writev(fd, &v, 1) == sizeof value);
	wait_pending(&m, VECTOR);
	CHECK_ERROR(write(fd, nowhere, sizeof value), EFAULT);
	CHECK_ERROR(write(fd, &one, 4), EINVAL);
	CHECK_ERROR(write(fd, &wrong, sizeof wrong), EINVAL);
	CHECK(!pending(&m, VECTOR));
	errno = EDOM;
	write_delivers(&m, fd);
	CHECK(errno == EDOM);
	destroy(&m);
	close(fd);
}

/* The bytes go to what the number means now; without the C library's knowledge, too. */
static void number_reused(void)
{
	for (int raw = 0; raw < 2; raw++) {
		struct machine m;
		uint64_t got = 0;
		int ends[2], fd = create_irqfd(&m);

		write_delivers(&m, fd);
		int second = dup(fd);
		CHECK(pipe(ends) == 0);
		CHECK((raw ? (int)syscall(SYS_dup3, ends[1], fd, 0) : dup2(ends[1], fd)) == fd);
		for (int i = 0; i < 10; i++) {
			got = 0;
			CHECK(write(fd, &one, sizeof one) == sizeof one);
			CHECK(read(ends[0], &got, sizeof got) == sizeof got && got == 1);
		}
		CHECK(!pending(&m, VECTOR));
		/* The eventfd is an irqfd as long as anybody has it. */
		CHECK(write(second, &one, sizeof one) == sizeof one);
		wait_pending(&m, VECTOR);
		/* Another eventfd gets the number. */
		int other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		CHECK(other >= 0 && syscall(SYS_dup3, other, fd, 0) == fd);
		CHECK(write(fd, &one, sizeof one) == sizeof one && read(other, &got, sizeof got) == sizeof got && got == 1);
		irqfd(&m, fd, OTHER_GSI, 0);
		CHECK(write(fd, &one, sizeof one) == sizeof one && pending(&m, OTHER_VECTOR) && !pending(&m, VECTOR));
		clear(&m);
		irqfd(&m, second, GSI, KVM_IRQFD_FLAG_DEASSIGN);
		CHECK(write(fd, &one, sizeof one) == sizeof one && pending(&m, OTHER_VECTOR));
		destroy(&m);
	}
}

static void closed(void)
{
	struct machine m;
	int fd = create_irqfd(&m);

	write_delivers(&m, fd);
	close(fd);
	CHECK_ERROR(write(fd, &one, sizeof one), EBADF);
	CHECK(open("/dev/null", O_WRONLY) == fd && write(fd, &one, sizeof one) == sizeof one);
	CHECK(!pending(&m, VECTOR));
	destroy(&m);
}

struct writers {
	pthread_barrier_t barrier;
	volatile bool stop;
	int fd;
};

enum { BATCHES = 1000, BATCH = 100 };

static void *write_batches(void *argument)
{
	struct writers *w = argument;
	for (int i = 0; i < BATCHES; i++) {
		pthread_barrier_wait(&w->barrier);
		for (int j = 0; j < BATCH; j++)
			CHECK(write(w->fd, &one, sizeof one) == sizeof one);
		pthread_barrier_wait(&w->barrier);
	}
	return NULL;
}

/* Two threads, 100000 writes each. Interrupts join, but after the last write of a batch one is pending. */
static void two_writers(void)
{
	struct machine m;
	struct writers w = { .fd = create_irqfd(&m) };
	pthread_t threads[2];

	pthread_barrier_init(&w.barrier, NULL, 3);
	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, write_batches, &w) == 0);
	for (int i = 0; i < BATCHES; i++) {
		clear(&m);
		pthread_barrier_wait(&w.barrier);
		pthread_barrier_wait(&w.barrier);
		CHECK(pending(&m, VECTOR));
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	destroy(&m);
	close(w.fd);
}

static void *write_always(void *argument)
{
	struct writers *w = argument;
	while (!w->stop)
		CHECK(write(w->fd, &one, sizeof one) == sizeof one);
	return NULL;
}

static void deassign_under_writers(void)
{
	struct machine m;
	struct writers w = { .fd = create_irqfd(&m) };
	pthread_t threads[2];
	uint64_t count;

	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, write_always, &w) == 0);
	for (int i = 0; i < 500; i++) {
		irqfd(&m, w.fd, GSI, KVM_IRQFD_FLAG_DEASSIGN);
		clear(&m);
		for (int j = 0; j < 5; j++)
			CHECK(!pending(&m, VECTOR));
		irqfd(&m, w.fd, GSI, 0);
		wait_pending(&m, VECTOR);
	}
	w.stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	irqfd(&m, w.fd, GSI, KVM_IRQFD_FLAG_DEASSIGN);
	clear(&m);
	while (read(w.fd, &count, sizeof count) > 0)
		;
	CHECK(write(w.fd, &one, sizeof one) == sizeof one && read(w.fd, &count, sizeof count) == sizeof count && count == 1);
	CHECK(!pending(&m, VECTOR));
	/* What was written before the eventfd became an irqfd counts. */
	CHECK(write(w.fd, &one, sizeof one) == sizeof one);
	irqfd(&m, w.fd, GSI, 0);
	wait_pending(&m, VECTOR);
	write_delivers(&m, w.fd);
	destroy(&m);
	close(w.fd);
}

static void child_writes(void)
{
	struct machine m;
	int status, fd = create_irqfd(&m);

	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0)
			_exit(write(fd, &one, sizeof one) != sizeof one);
		CHECK(waitpid(pid, &status, 0) == pid && status == 0);
		wait_pending(&m, VECTOR);
		pid = vfork();
		CHECK(pid >= 0);
		if (pid == 0)
			_exit(write(fd, &one, sizeof one) != sizeof one);
		CHECK(waitpid(pid, &status, 0) == pid && status == 0);
		wait_pending(&m, VECTOR);
		write_delivers(&m, fd);
	}
	destroy(&m);
	close(fd);
}

static int handler_fd;

static void write_in_handler(int signal)
{
	(void)signal;
	CHECK(write(handler_fd, &one, sizeof one) == sizeof one);
}

static void *raise_here(void *argument)
{
	bool known = argument != NULL;
	if (known)
		CHECK(write(handler_fd, &one, sizeof one) == sizeof one);
	CHECK(raise(SIGUSR1) == 0);
	return NULL;
}

static void handler_writes(void)
{
	struct machine m;
	pthread_t thread;

	handler_fd = create_irqfd(&m);
	signal(SIGUSR1, write_in_handler);
	for (int known = 0; known < 2; known++) {
		CHECK(pthread_create(&thread, NULL, raise_here, known ? &m : NULL) == 0);
		pthread_join(thread, NULL);
		wait_pending(&m, VECTOR);
	}
	destroy(&m);
	close(handler_fd);
}

static const struct test tests[] = {
	{ "in_the_writers_thread", in_the_writers_thread }, { "other_writes", other_writes }, { "number_reused", number_reused }, { "closed", closed },
	{ "two_writers", two_writers }, { "deassign_under_writers", deassign_under_writers }, { "child_writes", child_writes }, { "handler_writes", handler_writes },
};
MAIN(tests)
