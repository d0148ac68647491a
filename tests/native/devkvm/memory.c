/* Guest memory that the client changes under a VM. */
#include "test.h"

#include <sys/shm.h>

/* What the guest, at 0x1000, loads from 0x8000: it is in AL when the OUT comes. */
static int guest_loads(struct machine *m)
{
	if (run(m) != 0)
		return -errno;
	CHECK(m->run->exit_reason == KVM_EXIT_IO);
	return *((unsigned char *)m->run + m->run->io.data_offset);
}

static void unmapped(void)
{
	struct machine m;
	CREATE(&m, GUEST_LOAD_OUT, false);
	m.memory[0x8000] = 7;
	CHECK(guest_loads(&m) == 7);
	CHECK(munmap(m.memory + 0x8000, 0x1000) == 0);
	CHECK(guest_loads(&m) == -EFAULT);
	CHECK(mmap(m.memory + 0x8000, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == m.memory + 0x8000);
	m.memory[0x8000] = 9;
	CHECK(guest_loads(&m) == 9);
	destroy(&m);
}

static void protected(void)
{
	struct machine m;
	CREATE(&m, GUEST_STORE, false);
	struct sigaction action = { .sa_handler = SIG_IGN };
	(void)action;
	CHECK(mprotect(m.memory + 0x8000, 0x1000, PROT_READ) == 0);
	CHECK_ERROR(run(&m), EFAULT);
	CHECK(mprotect(m.memory + 0x8000, 0x1000, PROT_NONE) == 0);
	CHECK_ERROR(run(&m), EFAULT);
	destroy(&m);
}

static void discarded(void)
{
	struct machine m;
	CREATE(&m, GUEST_LOAD_OUT, false);
	for (int i = 1; i < 50; i++) {
		m.memory[0x8000] = (unsigned char)i;
		CHECK(guest_loads(&m) == i);
		CHECK(madvise(m.memory + 0x8000, 0x1000, MADV_DONTNEED) == 0);
		CHECK(guest_loads(&m) == 0);
	}
	destroy(&m);
}

/* The guest's code is replaced with the mapping. */
static void replaced_code(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO && m.run->io.port == 0x10);
	unsigned char *page = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(page, "\xe6\x20\xeb\xfc", 4);
	CHECK(mremap(page, 0x1000, 0x1000, MREMAP_MAYMOVE | MREMAP_FIXED, m.memory + 0x1000) == m.memory + 0x1000);
	set_real_mode(&m, 0x1000);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO && m.run->io.port == 0x20);
	CHECK(madvise(m.memory + 0x1000, 0x1000, MADV_DONTNEED) == 0);
	memcpy(m.memory + 0x1000, "\xe6\x30\xeb\xfc", 4);
	set_real_mode(&m, 0x1000);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO && m.run->io.port == 0x30);
	destroy(&m);
}

static void truncated_file(void)
{
	struct machine m;
	int file = memfd_create("guest", MFD_CLOEXEC);
	CHECK(file >= 0 && ftruncate(file, 0x1000) == 0);
	CREATE(&m, GUEST_LOAD_OUT, false);
	CHECK(mmap(m.memory + 0x8000, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == m.memory + 0x8000);
	m.memory[0x8000] = 5;
	CHECK(guest_loads(&m) == 5);
	CHECK(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 0x1000) == 0);
	CHECK(guest_loads(&m) == 0);
	m.memory[0x8000] = 6;
	CHECK(guest_loads(&m) == 6);
	CHECK(ftruncate(file, 0) == 0);
	CHECK(guest_loads(&m) == -EFAULT);
	CHECK(ftruncate(file, 0x1000) == 0);
	CHECK(guest_loads(&m) == 0);
	close(file);
	destroy(&m);
}

static void shared_segment(void)
{
	struct machine m;
	CREATE(&m, GUEST_LOAD_OUT, false);
	int id = shmget(IPC_PRIVATE, 0x1000, IPC_CREAT | 0600);
	if (id < 0)
		SKIP("no System V shared memory");
	CHECK(shmat(id, m.memory + 0x8000, SHM_REMAP) == m.memory + 0x8000);
	m.memory[0x8000] = 3;
	CHECK(guest_loads(&m) == 3);
	CHECK(shmdt(m.memory + 0x8000) == 0);
	CHECK(shmctl(id, IPC_RMID, NULL) == 0);
	CHECK(guest_loads(&m) == -EFAULT);
	destroy(&m);
}

static volatile bool stop;

static void *change_memory(void *argument)
{
	struct machine *m = argument;
	for (unsigned i = 0; i < 2000 && !stop; i++) {
		switch (i % 4) {
		case 0:
			CHECK(madvise(m->memory + 0x8000, 0x1000, MADV_DONTNEED) == 0);
			break;
		case 1:
			CHECK(mprotect(m->memory + 0x8000, 0x1000, PROT_NONE) == 0);
			break;
		case 2:
			CHECK(mprotect(m->memory + 0x8000, 0x1000, PROT_READ | PROT_WRITE) == 0);
			break;
		case 3:
			CHECK(mmap(m->memory + 0x8000, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
			break;
		}
	}
	stop = true;
	return NULL;
}

/* Under a running guest: it goes on, or KVM_RUN says EFAULT. */
static void changed_while_running(void)
{
	struct machine m;
	pthread_t thread;
	CREATE(&m, GUEST_LOAD_OUT, false);
	CHECK(pthread_create(&thread, NULL, change_memory, &m) == 0);
	while (!stop) {
		int r = guest_loads(&m);
		CHECK(r == 0 || r == -EFAULT);
	}
	CHECK(pthread_join(thread, NULL) == 0);
	destroy(&m);
}

static const struct test tests[] = {
	{ "unmapped", unmapped }, { "protected", protected }, { "discarded", discarded }, { "replaced_code", replaced_code },
	{ "truncated_file", truncated_file }, { "shared_segment", shared_segment }, { "changed_while_running", changed_while_running },
};
MAIN(tests)
