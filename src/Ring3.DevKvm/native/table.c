/*
 * Which descriptor stands for which object.
 *
 * Invariants
 *   - An entry is NULL or an object with handle != 0. Entries are read without a lock; `lock` serialises changes. Object slots are never
 *     given back to the system, so a stale pointer can be read; a reader checks the entry again after it has published the object in
 *     thread.object.
 *   - An object is released when no descriptor of it is left anywhere: descriptors in other processes, in flight in a socket, or kept by a
 *     mapping count, as they do in the kernel. The table's count says when to look; an open-file-description lock says the truth: it
 *     lives exactly as long as the open file.
 */
#include "ring3.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/membarrier.h>
#include <unistd.h>

struct object *_Atomic *_Atomic r3_chunks[CHUNKS];
static struct object *objects;      /* all that have a handle */
static struct object *unused;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int raw_close(int fd)
{
	return (int)syscall(SYS_close, fd);
}

/* As table_entry(), and makes it. */
static struct object *_Atomic *make_entry(int fd)
{
	unsigned n = (unsigned)fd;

	if (n >= CHUNK * CHUNKS)
		return NULL;
	struct object *_Atomic *chunk = atomic_load_explicit(&r3_chunks[n / CHUNK], memory_order_acquire);
	if (!chunk) {
		chunk = (void *)syscall(SYS_mmap, NULL, CHUNK * sizeof *chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (chunk == MAP_FAILED)
			return NULL;
		atomic_store_explicit(&r3_chunks[n / CHUNK], chunk, memory_order_release);
	}
	return chunk + n % CHUNK;
}

/* ---- release ---- */

static bool in_use(const struct object *object)
{
	bool used = false;

	thread_registry_lock();
	for (struct thread *t = r3_threads; t && !used; t = t->next)
		used = t->object == object;
	thread_registry_unlock();
	return used;
}

static void free_slot(struct object *object)
{
	pthread_mutex_lock(&lock);
	for (struct object **at = &objects; *at; at = &(*at)->next) {
		if (*at == object) {
			*at = object->next;
			break;
		}
	}
	object->handle = 0;
	object->next = unused;
	unused = object;
	pthread_mutex_unlock(&lock);
}

/*
 * Two sides, each sure to see the other: the closer stores `dying`, lets membarrier() order it against every thread, and looks for users; a
 * user clears thread.object and then looks at `dying`. Whoever finds the object unused claims it; the exchange makes that one of them.
 */
static void object_release_borne(void *object)
{
	object_release(object);
}

void object_release(struct object *object)
{
	uint32_t expected = DYING;

	if (is_confined()) {
		helper_run(object_release_borne, object);
		return;
	}

	syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
	if (in_use(object) || !atomic_compare_exchange_strong(&object->dying, &expected, RELEASED))
		return;
	if (!object->foreign)
		r3_core.release(object->handle);
	free_slot(object);
}

/* Whether nothing holds the open file any more on which closing_begin() has put the lock. */
static bool is_gone(int probe)
{
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	return syscall(SYS_fcntl, probe, F_OFD_GETLK, &all) != 0 || all.l_type == F_UNLCK;
}

/* Releases objects whose last holder has gone since. Called with no lock held. */
static void sweep_orphans(void)
{
	struct object *gone;

	do {
		gone = NULL;
		pthread_mutex_lock(&lock);
		for (struct object *o = objects; o && !gone; o = o->next) {
			if (o->probe >= 0 && o->descriptors == 0 && is_gone(o->probe)) {
				raw_close(o->probe);
				o->probe = -1;
				atomic_store(&o->dying, DYING);
				gone = o;
			}
		}
		pthread_mutex_unlock(&lock);
		if (gone)
			object_release(gone);
	} while (gone);
}

static bool any_orphan(void)
{
	bool any = false;
	pthread_mutex_lock(&lock);
	for (struct object *o = objects; o && !any; o = o->next)
		any = o->probe >= 0;
	pthread_mutex_unlock(&lock);
	return any;
}

/* ---- descriptors ---- */

static void forget(struct object *_Atomic *at)
{
	struct object *object = atomic_exchange(at, NULL);
	if (object)
		object->descriptors--;
}

void table_add(int fd, struct object *object)
{
	struct thread *self = enter();
	pthread_mutex_lock(&lock);
	struct object *_Atomic *at = make_entry(fd);
	if (at) {
		forget(at); /* the number was closed behind our back */
		object->descriptors++;
		if (object->probe >= 0) {
			raw_close(object->probe);
			object->probe = -1;
		}
		atomic_store_explicit(at, object, memory_order_release);
	}
	pthread_mutex_unlock(&lock);
	leave(self);
}

void table_forget(int fd)
{
	struct object *_Atomic *at = table_entry(fd);

	if (LIKELY(!at || !atomic_load(at)))
		return;
	struct thread *self = enter();
	pthread_mutex_lock(&lock);
	forget(at);
	pthread_mutex_unlock(&lock);
	leave(self);
}

static bool is_object(const struct object *object, const struct stat *st)
{
	return object->inode == st->st_ino && object->device == st->st_dev;
}

static struct object *new_object(const struct r3_new_fd *made, const struct stat *st)
{
	struct object *object;

	pthread_mutex_lock(&lock);
	if (!unused) {
		enum { BATCH = 64 };
		struct object *batch = (void *)syscall(SYS_mmap, NULL, BATCH * sizeof *batch, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (int i = 0; batch != MAP_FAILED && i < BATCH; i++) {
			batch[i].next = unused;
			unused = batch + i;
		}
	}
	object = unused;
	if (object) {
		unused = object->next;
		*object = (struct object){
			.handle = made->handle, .kind = (uint32_t)made->kind, .device = st->st_dev, .inode = st->st_ino, .probe = -1, .next = objects,
		};
		objects = object;
	}
	pthread_mutex_unlock(&lock);
	return object;
}

/*
 * The core may keep its own mapping or duplicate of the memfd. The client gets an open file of its own, so that its life can be told apart.
 */
static void separate(int fd)
{
	char path[32];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int own = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
	if (own >= 0) {
		syscall(SYS_dup3, own, fd, O_CLOEXEC);
		raw_close(own);
	}
}

int object_made(const struct r3_new_fd *made)
{
	struct stat st;
	struct thread *self = enter();
	struct object *object = NULL;

	if (any_orphan())
		sweep_orphans();
	separate(made->fd);
	if (fstat(made->fd, &st) == 0)
		object = new_object(made, &st);
	if (object) {
		if (made->kind == R3_VCPU)
			object->signal = r3_core.vcpu_signal(made->handle);
		table_add(made->fd, object);
	} else {
		raw_close(made->fd);
		r3_core.release(made->handle);
	}
	leave(self);
	return object ? made->fd : fail(ENOMEM);
}

/* In a process that knows nothing of the object (it came through exec or a socket), its name still tells what it was. */
static struct object *stranger(int fd, const struct stat *st)
{
	char link[32], name[64];

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, name, sizeof name - 1);
	if (n <= 0)
		return NULL;
	name[n] = 0;
	if (strncmp(name, "/memfd:kvm", 10) != 0)
		return NULL;
	bool system = name[10] == ' ' || name[10] == 0;
	struct r3_new_fd made = { .handle = UINT64_MAX, .fd = fd, .kind = system ? R3_SYSTEM : R3_VM };
	struct object *object = new_object(&made, st);
	if (object) {
		object->foreign = true;
		track();
	}
	return object;
}

struct find {
	int fd;
	struct object *object;
};

static void find_borne(void *context)
{
	struct find *find = context;
	find->object = table_find(find->fd);
}

struct object *table_find(int fd)
{
	struct stat st;
	struct object *object = table_get(fd);

	if (LIKELY(object != NULL))
		return object;
	if (is_confined()) {
		struct find find = { fd, NULL };
		helper_run(find_borne, &find);
		return find.object;
	}
	struct thread *self = enter();
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 0) {
		pthread_mutex_lock(&lock);
		for (object = objects; object && !is_object(object, &st); object = object->next)
			;
		pthread_mutex_unlock(&lock);
		if (!object)
			object = stranger(fd, &st);
		if (object)
			table_add(fd, object);
	}
	leave(self);
	return object;
}

uint64_t handle_of_fd(int fd)
{
	struct object *object = table_find(fd);
	return object && !object->foreign ? object->handle : 0;
}

/* A /dev/kvm that was opened before a fork or an exec works in the new process; only what was made of it does not. */
bool adopt_system(struct object *object)
{
	struct r3_new_fd made = { 0 };
	bool done = false;

	if (object->kind != R3_SYSTEM || core_load() != 0)
		return false;
	struct thread *self = enter();
	if (r3_core.open(&made) >= 0) {
		raw_close(made.fd);
		pthread_mutex_lock(&lock);
		done = object->foreign;
		if (done) {
			object->handle = made.handle;
			object->foreign = false;
		}
		pthread_mutex_unlock(&lock);
		if (!done)
			r3_core.release(made.handle);
		done = true;
	}
	leave(self);
	return done;
}

void table_after_fork(void)
{
	pthread_mutex_init(&lock, NULL);
	for (struct object *o = objects; o; o = o->next) {
		o->foreign = true;
		o->signal = NULL;
		atomic_store(&o->dying, ALIVE);
	}
}

/* ---- closing ---- */

/* A confined thread lets its helper make both halves. */
struct closing_call {
	int fd;
	struct closing *closing;
};

static void closing_begin_borne(void *context)
{
	struct closing_call *call = context;
	closing_begin(call->fd, call->closing);
}

static void closing_end_borne(void *closing)
{
	closing_end(closing);
}

void closing_begin(int fd, struct closing *closing)
{
	struct stat st;
	char path[32];
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	struct object *_Atomic *at = table_entry(fd);

	closing->object = NULL;
	closing->probe = -1;
	if (!at || !atomic_load(at))
		return;
	if (is_confined()) {
		struct closing_call call = { fd, closing };
		helper_run(closing_begin_borne, &call);
		return;
	}
	enter();
	pthread_mutex_lock(&lock);
	struct object *object = atomic_load(at);
	if (object) {
		forget(at);
		closing->object = object;
		if (object->descriptors == 0 && object->probe < 0 && !object->foreign && fstat(fd, &st) == 0 && is_object(object, &st)) {
			snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
			closing->probe = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
			if (closing->probe >= 0 && syscall(SYS_fcntl, fd, F_OFD_SETLK, &all) != 0) {
				raw_close(closing->probe);
				closing->probe = -1;
			}
		}
	}
	pthread_mutex_unlock(&lock);
	/* Stays inside until closing_end(). */
	if (!object)
		leave(&r3_self);
}

void closing_end(struct closing *closing)
{
	struct object *object = closing->object;
	bool release = false;
	int error = errno;

	if (!object)
		return;
	if (is_confined()) {
		helper_run(closing_end_borne, closing);
		return;
	}
	pthread_mutex_lock(&lock);
	if (object->descriptors == 0 && object->probe < 0) {
		if (closing->probe < 0 || is_gone(closing->probe)) {
			atomic_store(&object->dying, DYING);
			release = true;
		} else {
			object->probe = closing->probe;
			closing->probe = -1;
		}
	}
	pthread_mutex_unlock(&lock);
	if (closing->probe >= 0)
		raw_close(closing->probe);
	if (release)
		object_release(object);
	if (any_orphan())
		sweep_orphans();
	errno = error;
	leave(&r3_self);
}

void table_each(unsigned first, unsigned last, void (*each)(int fd, void *context), void *context)
{
	for (unsigned n = first; n <= last && n < CHUNK * CHUNKS; n++) {
		if (!atomic_load_explicit(&r3_chunks[n / CHUNK], memory_order_acquire))
			n |= CHUNK - 1;
		else if (table_get((int)n))
			each((int)n, context);
	}
}
