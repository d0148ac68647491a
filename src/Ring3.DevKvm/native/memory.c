/*
 * The client's address space: mappings of KVM descriptors, and what an MMU notifier tells KVM. Every call that takes memory away from a
 * slot brackets the change with invalidate_start and invalidate_end of the core; for all other memory that is two comparisons.
 *
 * These functions make system calls themselves: allocators call them before anything can be looked up.
 */
#include "ring3.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#undef mmap
#undef mmap64
#undef fallocate
#undef fallocate64
#undef ftruncate
#undef ftruncate64

#define PAGE 4096ul

/* Whether [lo, hi) may hold memory of a slot. */
static inline bool concerns(uintptr_t lo, uintptr_t hi)
{
	const volatile uint64_t *bounds = r3_bounds;
	return UNLIKELY(lo < bounds[1] && hi > bounds[0]);
}

struct change {
	struct thread *self;
	uintptr_t lo, hi;
	bool started;
};

static void start_borne(void *context)
{
	struct change *change = context;
	change->started = r3_core.invalidate_start(change->lo, change->hi) > 0;
}

static void end_borne(void *context)
{
	struct change *change = context;
	r3_core.invalidate_end(change->lo, change->hi);
}

static void change_begin(struct change *change, const void *at, size_t length)
{
	change->self = NULL;
	change->lo = (uintptr_t)at & ~(PAGE - 1);
	change->hi = ((uintptr_t)at + length + PAGE - 1) & ~(PAGE - 1);
	if (LIKELY(!concerns(change->lo, change->hi)))
		return;
	check_fork();
	if (!concerns(change->lo, change->hi))
		return;
	change->self = enter();
	change->started = false;
	if (is_confined())
		helper_run(start_borne, change);
	else
		start_borne(change);
}

static void change_end(struct change *change)
{
	int error = errno;

	if (LIKELY(!change->self))
		return;
	if (change->started && is_confined())
		helper_run(end_borne, change);
	else if (change->started)
		end_borne(change);
	leave(change->self);
	errno = error;
}

/* ---- mmap ---- */

static void *raw_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
}

/* 0, or why this descriptor of ours cannot be mapped so. */
static int mapping_error(const struct object *object, size_t length, int protection, int flags, off_t offset)
{
	if (object->kind != R3_VCPU)
		return ENODEV;
	/* The pages of the dirty ring are for reading and writing, shared. */
	if ((uint64_t)offset + length > KVM_DIRTY_LOG_PAGE_OFFSET * PAGE && ((protection & PROT_EXEC) || !(flags & MAP_SHARED)))
		return EINVAL;
	return 0;
}

EXPORT void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
	struct change change = { 0 };
	struct object *object;
	int error;

	if (LIKELY(!r3_tracking) || CALLED_BY_CORE())
		return raw_mmap(at, length, protection, flags, fd, offset);
	if (!(flags & MAP_ANONYMOUS) && UNLIKELY((object = table_get(fd)) != NULL)) {
		error = mapping_error(object, length, protection, flags, offset);
		if (error) {
			errno = error;
			return MAP_FAILED;
		}
	}
	if ((flags & MAP_FIXED) && !(flags & (MAP_FIXED_NOREPLACE & ~MAP_FIXED)))
		change_begin(&change, at, length);
	void *result = raw_mmap(at, length, protection, flags, fd, offset);
	change_end(&change);
	return result;
}

EXPORT void *mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset) __attribute__((alias("mmap")));

/* ---- changes of mappings ---- */

EXPORT int munmap(void *at, size_t length)
{
	struct change change;

	if (LIKELY(!concerns((uintptr_t)at, (uintptr_t)at + length)) || CALLED_BY_CORE())
		return (int)syscall(SYS_munmap, at, length);
	change_begin(&change, at, length);
	int result = (int)syscall(SYS_munmap, at, length);
	change_end(&change);
	return result;
}

EXPORT int mprotect(void *at, size_t length, int protection)
{
	struct change change;

	if (LIKELY(!concerns((uintptr_t)at, (uintptr_t)at + length)) || CALLED_BY_CORE())
		return (int)syscall(SYS_mprotect, at, length, protection);
	change_begin(&change, at, length);
	int result = (int)syscall(SYS_mprotect, at, length, protection);
	change_end(&change);
	return result;
}

EXPORT int pkey_mprotect(void *at, size_t length, int protection, int key)
{
	struct change change;

	change_begin(&change, at, length);
	int result = (int)(key == -1 ? syscall(SYS_mprotect, at, length, protection) : syscall(SYS_pkey_mprotect, at, length, protection, key));
	change_end(&change);
	return result;
}

EXPORT void *mremap(void *at, size_t old_length, size_t new_length, int flags, ...)
{
	struct change from, to = { 0 };
	void *target = NULL;

	if (flags & MREMAP_FIXED) {
		va_list arguments;
		va_start(arguments, flags);
		target = va_arg(arguments, void *);
		va_end(arguments);
	}
	if (CALLED_BY_CORE())
		return (void *)syscall(SYS_mremap, at, old_length, new_length, flags, target);
	change_begin(&from, at, old_length);
	if (target)
		change_begin(&to, target, new_length);
	void *result = (void *)syscall(SYS_mremap, at, old_length, new_length, flags, target);
	change_end(&to);
	change_end(&from);
	return result;
}

/* Advice that leaves contents and permissions as they are. */
static bool is_harmless(int advice)
{
	switch (advice) {
	case MADV_NORMAL:
	case MADV_RANDOM:
	case MADV_SEQUENTIAL:
	case MADV_WILLNEED:
	case MADV_DONTFORK:
	case MADV_DOFORK:
	case MADV_MERGEABLE:
	case MADV_UNMERGEABLE:
	case MADV_HUGEPAGE:
	case MADV_NOHUGEPAGE:
	case MADV_DONTDUMP:
	case MADV_DODUMP:
	case MADV_POPULATE_READ:
	case MADV_POPULATE_WRITE:
		return true;
	default:
		return false;
	}
}

EXPORT int madvise(void *at, size_t length, int advice)
{
	struct change change;

	if (LIKELY(!concerns((uintptr_t)at, (uintptr_t)at + length)) || is_harmless(advice) || CALLED_BY_CORE())
		return (int)syscall(SYS_madvise, at, length, advice);
	change_begin(&change, at, length);
	int result = (int)syscall(SYS_madvise, at, length, advice);
	change_end(&change);
	return result;
}

/* ---- changes of files and segments that are mapped somewhere ---- */

struct ranges {
	unsigned count;
	struct thread *self;
	struct {
		uintptr_t lo, hi;
		bool started;
	} at[32];
};

static void add_range(struct ranges *ranges, uintptr_t lo, uintptr_t hi)
{
	if (!concerns(lo, hi))
		return;
	if (ranges->count == sizeof ranges->at / sizeof *ranges->at) {
		/* More than anybody has: one range over everything. */
		ranges->count = 1;
		ranges->at[0].lo = r3_bounds[0];
		ranges->at[0].hi = r3_bounds[1];
		return;
	}
	ranges->at[ranges->count].lo = lo;
	ranges->at[ranges->count++].hi = hi;
}

/*
 * The mappings of an inode that meet [first, last) of the file and may be memory of a slot, from the kernel's own list. Only system calls
 * and the stack.
 */
static void find_mappings(struct ranges *ranges, dev_t device, ino_t inode, uint64_t first, uint64_t last)
{
	char buffer[4096];
	size_t held = 0;
	long n;
	int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		add_range(ranges, r3_bounds[0], r3_bounds[1]);
		return;
	}
	while ((n = syscall(SYS_read, fd, buffer + held, sizeof buffer - 1 - held)) > 0) {
		char *line = buffer, *end;
		held += (size_t)n;
		buffer[held] = 0;
		for (; (end = strchr(line, '\n')) != NULL; line = end + 1) {
			unsigned long lo, hi, offset, node;
			unsigned high, low;
			*end = 0;
			if (sscanf(line, "%lx-%lx %*s %lx %x:%x %lu", &lo, &hi, &offset, &high, &low, &node) != 6)
				continue;
			if (node != inode || makedev(high, low) != device || offset >= last || offset + (hi - lo) <= first)
				continue;
			uint64_t from = first > offset ? first - offset : 0;
			uint64_t to = last - offset < hi - lo ? last - offset : hi - lo;
			add_range(ranges, (lo + from) & ~(PAGE - 1), (lo + to + PAGE - 1) & ~(PAGE - 1));
		}
		held = (size_t)(buffer + held - line);
		memmove(buffer, line, held);
		if (held == sizeof buffer - 1)
			held = 0; /* longer than any line the kernel writes */
	}
	syscall(SYS_close, fd);
}

static bool any_slots(void)
{
	return UNLIKELY(r3_bounds[0] < r3_bounds[1]);
}

static void ranges_begin(struct ranges *ranges, int fd, uint64_t first, uint64_t last);

struct ranges_call {
	struct ranges *ranges;
	int fd;
	uint64_t first, last;
};

static void ranges_begin_borne(void *context)
{
	struct ranges_call *call = context;
	ranges_begin(call->ranges, call->fd, call->first, call->last);
}

static void ranges_begin(struct ranges *ranges, int fd, uint64_t first, uint64_t last)
{
	struct stat st;

	ranges->count = 0;
	ranges->self = NULL;
	if (!any_slots())
		return;
	check_fork();
	if (is_confined()) {
		struct ranges_call call = { ranges, fd, first, last };
		helper_run(ranges_begin_borne, &call);
		return;
	}
	int error = errno;
	if (any_slots() && fstat(fd, &st) == 0)
		find_mappings(ranges, st.st_dev, st.st_ino, first, last);
	if (ranges->count) {
		ranges->self = enter();
		for (unsigned i = 0; i < ranges->count; i++)
			ranges->at[i].started = r3_core.invalidate_start(ranges->at[i].lo, ranges->at[i].hi) > 0;
	}
	errno = error;
}

static void ranges_end(struct ranges *ranges);

static void ranges_end_borne(void *ranges)
{
	ranges_end(ranges);
}

static void ranges_end(struct ranges *ranges)
{
	int error = errno;

	if (LIKELY(!ranges->self))
		return;
	if (is_confined()) {
		helper_run(ranges_end_borne, ranges);
		return;
	}
	for (unsigned i = 0; i < ranges->count; i++) {
		if (ranges->at[i].started)
			r3_core.invalidate_end(ranges->at[i].lo, ranges->at[i].hi);
	}
	leave(ranges->self);
	errno = error;
}

/* As the kernel's guest_memfd answers: whole pages, a size that never changes. */
static int guest_memfd_fallocate_error(int fd, int mode, off_t offset, off_t length)
{
	struct stat st;

	if (offset < 0 || length <= 0)
		return EINVAL;
	if (!(mode & FALLOC_FL_KEEP_SIZE) || (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)))
		return EOPNOTSUPP;
	if ((offset | length) & (off_t)(PAGE - 1))
		return EINVAL;
	if (!(mode & FALLOC_FL_PUNCH_HOLE) && (call_host(SYS_fstat, fd, &st) != 0 || offset + length > st.st_size))
		return EINVAL;
	return 0;
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
	struct ranges ranges;
	struct object *object;

	if (LIKELY(!r3_tracking) || CALLED_BY_CORE())
		return NEXT(fallocate)(fd, mode, offset, length);
	object = table_get(fd);
	if (object) {
		int error = object->kind == R3_GUEST_MEMFD ? guest_memfd_fallocate_error(fd, mode, offset, length) : ENODEV;
		return error ? fail(error) : NEXT(fallocate)(fd, mode, offset, length);
	}
	bool takes = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE);
	if (!takes || offset < 0 || length <= 0)
		return NEXT(fallocate)(fd, mode, offset, length);
	bool moves = mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE);
	ranges_begin(&ranges, fd, (uint64_t)offset, moves ? UINT64_MAX : (uint64_t)offset + (uint64_t)length);
	int result = NEXT(fallocate)(fd, mode, offset, length);
	ranges_end(&ranges);
	return result;
}

EXPORT int fallocate64(int fd, int mode, off_t offset, off_t length) __attribute__((alias("fallocate")));

EXPORT int ftruncate(int fd, off_t length)
{
	struct ranges ranges;

	if (LIKELY(!r3_tracking) || CALLED_BY_CORE())
		return NEXT(ftruncate)(fd, length);
	if (table_get(fd))
		return fail(EINVAL);
	ranges_begin(&ranges, fd, length < 0 ? 0 : (uint64_t)length, UINT64_MAX);
	int result = NEXT(ftruncate)(fd, length);
	ranges_end(&ranges);
	return result;
}

EXPORT int ftruncate64(int fd, off_t length) __attribute__((alias("ftruncate")));

EXPORT int shmdt(const void *at)
{
	struct change change = { 0 };

	if (any_slots() && concerns((uintptr_t)at, r3_bounds[1])) {
		/* The segment's length is not in the call: its mapping is one entry, up to the end of all slots at most. */
		change_begin(&change, at, r3_bounds[1] - (uintptr_t)at);
	}
	int result = NEXT(shmdt)(at);
	change_end(&change);
	return result;
}
