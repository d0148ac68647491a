/*
 * Loading of libring3-core.so, threads, and what a fork leaves behind.
 */
#include "ring3.h"

#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/platform/x86.h> /* asks the C library, which knows: under a hypervisor each CPUID takes many microseconds */
#include <linux/membarrier.h>
#include <unistd.h>

__thread struct thread r3_self;
__thread int r3_loading;
struct r3_core r3_core;
volatile bool r3_active, r3_tracking;
static const volatile uint64_t no_bounds[2];
const volatile uint64_t *r3_bounds = no_bounds;
const volatile uint8_t *volatile r3_irqfd_hints;
static volatile uint32_t always_alive = 1;
volatile uint32_t *r3_alive = &always_alive;
uintptr_t r3_core_begin, r3_core_end;

static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static bool loaded;             /* r3_core is usable in this process */
static bool loaded_before;      /* in this process or in one that it was forked from: the next core must be a copy of the file */

/* ---- threads ---- */

struct thread *r3_threads;
static pthread_mutex_t threads_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint32_t last_number;
static pthread_key_t thread_key;
static pthread_once_t thread_key_once = PTHREAD_ONCE_INIT;

void thread_registry_lock(void)
{
	pthread_mutex_lock(&threads_lock);
}

void thread_registry_unlock(void)
{
	pthread_mutex_unlock(&threads_lock);
}

static void thread_ends(void *argument)
{
	struct thread *self = argument;

	if (!*r3_alive) {
		self->prepared = false; /* a forked child: the registry is the parent's */
		return;
	}
	self->inside++;
	thread_registry_lock();
	*self->link = self->next;
	if (self->next)
		self->next->link = self->link;
	thread_registry_unlock();
	self->prepared = false; /* a later destructor that comes back registers again */
	helper_give_back(self);
	leave(self);
}

static void make_thread_key(void)
{
	pthread_key_create(&thread_key, thread_ends);
}

void thread_prepare(struct thread *self)
{
	pthread_once(&thread_key_once, make_thread_key);
	self->prepared = true;
	self->number = atomic_fetch_add_explicit(&last_number, 1, memory_order_relaxed) + 1;
	self->id = pthread_self();
	self->inside++;
	thread_registry_lock();
	self->next = r3_threads;
	self->link = &r3_threads;
	if (self->next)
		self->next->link = &self->next;
	r3_threads = self;
	thread_registry_unlock();
	pthread_setspecific(thread_key, self);
	signals_unblock_runtime();
	self->inside--;
}

/* ---- loading ---- */

/* The core beside this library, or the one of $RING3_CORE. */
static int core_path(char *path, size_t size)
{
	Dl_info info;
	const char *given = secure_getenv("RING3_CORE");

	if (given && *given)
		return snprintf(path, size, "%s", given) < (int)size ? 0 : ENAMETOOLONG;
	if (!dladdr((void *)core_path, &info) || !info.dli_fname)
		return ENOENT;
	const char *slash = strrchr(info.dli_fname, '/');
	int directory = slash ? (int)(slash - info.dli_fname) + 1 : 0;
	return snprintf(path, size, "%.*slibring3-core.so", directory, info.dli_fname) < (int)size ? 0 : ENAMETOOLONG;
}

/* A private copy is another inode, which the dynamic linker takes for another library with its own variables. */
static void *load_copy(const char *path)
{
	char name[32];
	struct stat st;
	off_t offset = 0;
	void *library = NULL;
	int from = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	int to = memfd_create("libring3-core.so", MFD_CLOEXEC);

	if (from >= 0 && to >= 0 && fstat(from, &st) == 0) {
		while (offset < st.st_size && sendfile(to, from, &offset, (size_t)(st.st_size - offset)) > 0)
			;
		snprintf(name, sizeof name, "/proc/self/fd/%d", to);
		library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
	}
	if (from >= 0)
		syscall(SYS_close, from);
	if (to >= 0)
		syscall(SYS_close, to);
	return library;
}

static int find_range(struct dl_phdr_info *info, size_t size, void *library)
{
	(void)size;
	if (info->dlpi_addr != ((struct link_map *)library)->l_addr)
		return 0;
	uintptr_t end = 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = info->dlpi_phdr + i;
		if (p->p_type == PT_LOAD && info->dlpi_addr + p->p_vaddr + p->p_memsz > end)
			end = info->dlpi_addr + p->p_vaddr + p->p_memsz;
	}
	r3_core_begin = info->dlpi_addr;
	r3_core_end = end;
	return 1;
}

static bool bind(void *library)
{
	const struct {
		const char *name;
		void **slot;
	} symbols[] = {
		{ "r3_version", (void **)&r3_core.version },
		{ "r3_init", (void **)&r3_core.init },
		{ "r3_open", (void **)&r3_core.open },
		{ "r3_ioctl", (void **)&r3_core.ioctl },
		{ "r3_run", (void **)&r3_core.run },
		{ "r3_release", (void **)&r3_core.release },
		{ "r3_read", (void **)&r3_core.read },
		{ "r3_irqfd_write", (void **)&r3_core.irqfd_write },
		{ "r3_vcpu_signal", (void **)&r3_core.vcpu_signal },
		{ "r3_invalidate_start", (void **)&r3_core.invalidate_start },
		{ "r3_invalidate_end", (void **)&r3_core.invalidate_end },
		{ "r3_at_exit", (void **)&r3_core.at_exit },
	};

	for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
		*symbols[i].slot = dlsym(library, symbols[i].name);
		if (!*symbols[i].slot)
			return false;
	}
	return true;
}

static void forked(void)
{
	*r3_alive = 0;
}

pid_t r3_owner;

bool shares_parent_memory(void)
{
	/* Where the filter refuses even this, it refuses to make such a child. */
	return !is_confined() && (pid_t)syscall(SYS_getpid) != r3_owner;
}

/* From now on forks are noticed and descriptors are looked at. */
void track(void)
{
	static bool done;
	void *page;

	if (r3_tracking && *r3_alive)
		return;

	if (!done) {
		/* Zero in every child, however it was made; clone() and _Fork() run no atfork handlers. */
		page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (page != MAP_FAILED) {
			madvise(page, 4096, MADV_WIPEONFORK);
			*(volatile uint32_t *)page = 1;
			r3_alive = page;
		}
		pthread_atfork(NULL, NULL, forked);
		done = true;
	}
	*r3_alive = 1;
	r3_owner = (pid_t)syscall(SYS_getpid);
	syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
	r3_tracking = true;
}

/* What libring3-core.so is compiled for (IlcInstructionSet in Directory.Build.props): its runtime would abort the client. */
static bool has_units(void)
{
	return CPU_FEATURE_ACTIVE(AVX2) && CPU_FEATURE_PRESENT(BMI1) && CPU_FEATURE_PRESENT(BMI2) && CPU_FEATURE_ACTIVE(FMA);
}

/* What the core's first instruction would fail on, as its own memory for code is made: one file in memory, mapped to be written and to be executed. */
static int code_is_refused(const char **call)
{
	int error = 0, fd = memfd_create("r3", MFD_CLOEXEC);

	*call = "memfd_create";
	if (fd < 0)
		return errno;
	*call = "mmap of executable memory";
	void *at = ftruncate(fd, 4096) == 0 ? (void *)syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0) : MAP_FAILED;
	if (at == MAP_FAILED)
		error = errno;
	else
		syscall(SYS_munmap, at, 4096);
	syscall(SYS_close, fd);
	return error;
}

static int load(void)
{
	static const struct r3_host host = { handle_of_fd };
	char path[PATH_MAX];
	struct r3_shared shared = { 0 };
	char version[32] = "", versions[128];
	const char *why = NULL, *call;
	void *library;

	int error = core_path(path, sizeof path);
	if (error)
		return error;
	if (!has_units()) {
		dprintf(2, "ring3: this processor does not have AVX2, BMI2 and FMA (x86-64-v3), which Ring3 needs\n");
		return ENODEV;
	}
	error = code_is_refused(&call);
	if (error) {
		dprintf(2, "ring3: cannot have memory for code (%s: %s), which seccomp, SELinux or another policy may refuse\n", call, strerror(error));
		return error;
	}
	/* First: the runtime ends the process when it cannot make threads, for instance under a filter that refuses clone3 with EPERM. */
	error = helpers_start();
	if (error) {
		dprintf(2, "ring3: cannot make threads: %s%s\n", strerror(error), error == EPERM ? " (a seccomp filter should refuse clone3 with ENOSYS)" : "");
		return error;
	}
	track();
	/* Before the runtime starts, so that its handlers chain to ours and the client's later ones never replace them. */
	signals_install();
	r3_active = true;
	r3_loading++;
	library = loaded_before ? load_copy(path) : dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
	if (!library) {
		why = dlerror();
		error = ENODEV;
	} else if (!bind(library)) {
		why = "not the library that belongs to this libring3.so: install both from one package";
		error = ENODEV;
	} else if (r3_core.version(version, sizeof version) != 0 || strcmp(version, RING3_VERSION) != 0) {
		snprintf(versions, sizeof versions, "version '%.31s', but libring3.so is " RING3_VERSION ": install both from one package", version);
		why = versions;
		error = ENODEV;
	} else {
		dl_iterate_phdr(find_range, library);
		loaded_before = true;
		error = -r3_core.init(&host, &shared);
		if (error)
			why = "it does not start";
	}
	r3_loading--;
	if (error) {
		dprintf(2, "ring3: cannot use %s: %s\n", path, why ? why : strerror(error));
		return error;
	}
	r3_bounds = shared.client_bounds ? shared.client_bounds : no_bounds;
	r3_irqfd_hints = shared.irqfd_hints;
	loaded = true;
	return 0;
}

bool core_is_loaded(void)
{
	return __atomic_load_n(&loaded, __ATOMIC_ACQUIRE) && *r3_alive && !shares_parent_memory();
}

int core_load(void)
{
	if (r3_tracking)
		check_fork();
	if (LIKELY(__atomic_load_n(&loaded, __ATOMIC_ACQUIRE)))
		return 0;
	struct thread *self = enter();
	pthread_mutex_lock(&load_lock);
	int error = loaded ? 0 : load();
	pthread_mutex_unlock(&load_lock);
	leave(self);
	return error;
}

static void at_exit(void *argument)
{
	(void)argument;
	r3_core.at_exit();
}

/* exit() or the end of main(): the client's other threads may still be inside, so the core only reports. */
void core_report(void)
{
	if (!__atomic_load_n(&loaded, __ATOMIC_ACQUIRE) || !*r3_alive || shares_parent_memory())
		return;
	if (!getenv("RING3_STATS") && !getenv("RING3_TRACE"))
		return;
	if (is_confined()) {
		helper_run(at_exit, NULL);
		return;
	}
	struct thread *self = enter();
	r3_core.at_exit();
	leave(self);
}

__attribute__((destructor)) static void process_exits(void)
{
	core_report();
}

/*
 * The core of the parent is of no use here: its threads do not exist. Its objects stay in the table so that their descriptors answer EIO.
 * Runs once, in the only thread of the child that can have come this far: the one that called fork.
 */
void core_after_fork(void)
{
	static _Atomic int busy;

	while (atomic_exchange(&busy, 1))
		;
	if (!*r3_alive) {
		struct thread *self = &r3_self;
		bool confined = r3_confined;
		helpers_after_fork(self);
		pthread_mutex_init(&load_lock, NULL);
		pthread_mutex_init(&threads_lock, NULL);
		r3_threads = NULL;
		self->prepared = false;
		self->inside = 0;
		self->run = NULL;
		self->object = NULL;
		self->deferred = 0;
		self->cancelled = 0;
		self->attached = false;
		self->handlers = 0;
		loaded = false;
		r3_bounds = no_bounds;
		r3_irqfd_hints = NULL;
		r3_core_begin = r3_core_end = 0;
		table_after_fork();
		if (!confined) { /* else both are refused here as well */
			signals_after_fork();
			r3_owner = (pid_t)syscall(SYS_getpid);
		}
		*r3_alive = 1;
	}
	atomic_store(&busy, 0);
}
