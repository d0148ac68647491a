/*
 * The C library's functions that take a path: open, fopen, stat, access and their variants.
 */
#include "ring3.h"

#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#undef open
#undef open64
#undef openat
#undef openat64
#undef fopen
#undef fopen64
#undef freopen
#undef freopen64

int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int directory, const char *path, int flags);
int __openat64_2(int directory, const char *path, int flags);

static bool open_kind(enum path_kind kind, const char *contents, int flags, int *fd)
{
	switch (kind) {
	case PATH_DEVICE:
		*fd = kvm_open(flags);
		return true;
	case PATH_FILE:
		*fd = path_open_file(contents, flags);
		return true;
	case PATH_ABSENT:
		*fd = fail(ENOENT);
		return true;
	case PATH_CPUINFO:
		return cpuinfo_open(flags, fd);
	case PATH_OTHER:
	case PATH_DIRECTORY:
		return false;
	}
	return false;
}

/* Opens one of our paths; false: the path is not ours. What may create a file must not create /dev/kvm through a link. */
static bool open_ours(int directory, const char *path, int flags, int *fd)
{
	const char *contents = NULL;
	enum path_kind kind = path_classify(directory, path, !(flags & O_NOFOLLOW), &contents);

	if (UNLIKELY(kind == PATH_OTHER && !r3_paths_hidden && (flags & (O_CREAT | O_EXCL | O_NOFOLLOW)) == O_CREAT))
		kind = path_classify_link(directory, path, &contents);
	return open_kind(kind, contents, flags, fd);
}

static bool is_device(mode_t mode, dev_t device)
{
	return S_ISCHR(mode) && device == makedev(10, 232);
}

/* Errors behind which a link to one of our paths can be: it is not there, or this process may not use it. */
static bool may_hide(int error)
{
	return !r3_paths_hidden && (error == ENOENT || error == EACCES || error == EPERM || error == ENXIO || error == ENODEV);
}

/* A symbolic link of any name may lead to the device, and a hard link or a bind mount. */
static bool is_open_device(int fd)
{
	struct stat st;
	int error = errno;
	bool device = !r3_paths_hidden && fstat(fd, &st) == 0 && is_device(st.st_mode, st.st_rdev);

	errno = error;
	return device;
}

/* The kernel could not open it. */
static bool open_link(int directory, const char *path, int flags, int *fd)
{
	const char *contents = NULL;

	if (!may_hide(errno) || (flags & O_NOFOLLOW))
		return false;
	return open_kind(path_classify_link(directory, path, &contents), contents, flags, fd);
}

static int opened(int fd, int directory, const char *path, int flags)
{
	int ours;

	if (UNLIKELY(fd < 0))
		return open_link(directory, path, flags, &ours) ? ours : fd;
	if (LIKELY((flags & (O_PATH | O_DIRECTORY)) || !is_open_device(fd)))
		return fd;
	syscall(SYS_close, fd);
	return kvm_open(flags);
}

#define MODE(last) \
	mode_t mode = 0; \
	if (flags & (O_CREAT | __O_TMPFILE)) { \
		va_list arguments; \
		va_start(arguments, last); \
		mode = va_arg(arguments, mode_t); \
		va_end(arguments); \
	}

#define OPEN(name) \
	EXPORT int name(const char *path, int flags, ...) \
	{ \
		int fd; \
		MODE(flags) \
		if (UNLIKELY(open_ours(AT_FDCWD, path, flags, &fd))) \
			return fd; \
		return opened(NEXT(name)(path, flags, mode), AT_FDCWD, path, flags); \
	}
#define OPENAT(name) \
	EXPORT int name(int directory, const char *path, int flags, ...) \
	{ \
		int fd; \
		MODE(flags) \
		if (UNLIKELY(open_ours(directory, path, flags, &fd))) \
			return fd; \
		return opened(NEXT(name)(directory, path, flags, mode), directory, path, flags); \
	}
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* The fortified forms, without a mode. */
#define OPEN_2(name) \
	EXPORT int name(const char *path, int flags) \
	{ \
		int fd; \
		if (UNLIKELY(open_ours(AT_FDCWD, path, flags, &fd))) \
			return fd; \
		return opened(NEXT(name)(path, flags), AT_FDCWD, path, flags); \
	}
#define OPENAT_2(name) \
	EXPORT int name(int directory, const char *path, int flags) \
	{ \
		int fd; \
		if (UNLIKELY(open_ours(directory, path, flags, &fd))) \
			return fd; \
		return opened(NEXT(name)(directory, path, flags), directory, path, flags); \
	}
OPEN_2(__open_2)
OPEN_2(__open64_2)
OPENAT_2(__openat_2)
OPENAT_2(__openat64_2)

/* ---- streams ---- */

static int flags_of_mode(const char *mode)
{
	bool both = strchr(mode, '+') != NULL;
	int flags = strchr(mode, 'e') ? O_CLOEXEC : 0;

	switch (mode[0]) {
	case 'r':
		return flags | (both ? O_RDWR : O_RDONLY);
	case 'w':
		return flags | O_CREAT | O_TRUNC | (both ? O_RDWR : O_WRONLY);
	default:
		return flags | O_CREAT | O_APPEND | (both ? O_RDWR : O_WRONLY);
	}
}

static FILE *stream_of(int fd, const char *mode)
{
	return fd < 0 ? NULL : fdopen(fd, mode);
}

static FILE *fopened(FILE *stream, const char *path, const char *mode)
{
	int fd;

	if (UNLIKELY(!stream))
		return open_link(AT_FDCWD, path, flags_of_mode(mode), &fd) ? stream_of(fd, mode) : NULL;
	if (LIKELY(!is_open_device(fileno(stream))))
		return stream;
	NEXT(fclose)(stream);
	return stream_of(kvm_open(flags_of_mode(mode)), mode);
}

#define FOPEN(name) \
	EXPORT FILE *name(const char *path, const char *mode) \
	{ \
		int fd; \
		if (UNLIKELY(open_ours(AT_FDCWD, path, flags_of_mode(mode), &fd))) \
			return stream_of(fd, mode); \
		return fopened(NEXT(name)(path, mode), path, mode); \
	}
FOPEN(fopen)
FOPEN(fopen64)

/* ---- stat ---- */

static bool stat_kind(enum path_kind kind, struct stat *st, int *result)
{
	if (LIKELY(kind == PATH_OTHER) || kind == PATH_CPUINFO)
		return false;
	*result = 0;
	if (kind == PATH_ABSENT) {
		*result = fail(ENOENT);
		return true;
	}
	memset(st, 0, sizeof *st);
	st->st_dev = makedev(0, 5);
	st->st_nlink = 1;
	st->st_blksize = 4096;
	st->st_ino = 1;
	clock_gettime(CLOCK_REALTIME, &st->st_mtim);
	st->st_atim = st->st_ctim = st->st_mtim;
	if (kind == PATH_DEVICE) {
		st->st_mode = S_IFCHR | 0666;
		st->st_rdev = makedev(10, 232);
	} else if (kind == PATH_FILE) {
		st->st_mode = S_IFREG | 0444;
		st->st_size = 4096;
	} else {
		st->st_mode = S_IFDIR | 0755;
		st->st_nlink = 2;
	}
	return true;
}

static bool stat_ours(int directory, const char *path, bool follow, struct stat *st, int *result)
{
	const char *contents = NULL;
	return stat_kind(path_classify(directory, path, follow, &contents), st, result);
}

/* What the kernel said of a name that says nothing: the device has our permissions, and a link leads to what need not be there. */
static int stated(int result, int directory, const char *path, bool follow, struct stat *st)
{
	const char *contents = NULL;
	int ours;

	if (LIKELY(result == 0)) {
		if (UNLIKELY(is_device(st->st_mode, st->st_rdev)))
			st->st_mode = S_IFCHR | 0666;
		return 0;
	}
	if (!follow || !may_hide(errno))
		return result;
	return stat_kind(path_classify_link(directory, path, &contents), st, &ours) ? ours : result;
}

#define STAT(name, type, follow) \
	EXPORT int name(const char *restrict path, struct type *restrict st) \
	{ \
		int result; \
		if (UNLIKELY(stat_ours(AT_FDCWD, path, follow, (struct stat *)st, &result))) \
			return result; \
		return stated(NEXT(name)(path, st), AT_FDCWD, path, follow, (struct stat *)st); \
	}
STAT(stat, stat, true)
STAT(stat64, stat64, true)
STAT(lstat, stat, false)
STAT(lstat64, stat64, false)

#define FSTATAT(name, type) \
	EXPORT int name(int directory, const char *restrict path, struct type *restrict st, int flags) \
	{ \
		int result; \
		bool follow = !(flags & AT_SYMLINK_NOFOLLOW); \
		if (UNLIKELY(stat_ours(directory, path, follow, (struct stat *)st, &result))) \
			return result; \
		return stated(NEXT(name)(directory, path, st, flags), directory, path, follow, (struct stat *)st); \
	}
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)

/* Programs linked before glibc 2.33. */
#define XSTAT(name, type, follow) \
	int name(int version, const char *path, struct type *st); \
	EXPORT int name(int version, const char *path, struct type *st) \
	{ \
		int result; \
		if (UNLIKELY(stat_ours(AT_FDCWD, path, follow, (struct stat *)st, &result))) \
			return result; \
		return stated(NEXT(name)(version, path, st), AT_FDCWD, path, follow, (struct stat *)st); \
	}
XSTAT(__xstat, stat, true)
XSTAT(__xstat64, stat64, true)
XSTAT(__lxstat, stat, false)
XSTAT(__lxstat64, stat64, false)

EXPORT int statx(int directory, const char *restrict path, int flags, unsigned mask, struct statx *restrict to)
{
	const char *contents = NULL;
	struct stat st;
	int result;
	bool follow = !(flags & AT_SYMLINK_NOFOLLOW);

	if (LIKELY(!stat_ours(directory, path, follow, &st, &result))) {
		result = NEXT(statx)(directory, path, flags, mask, to);
		if (LIKELY(result == 0)) {
			if (UNLIKELY(is_device(to->stx_mode, makedev(to->stx_rdev_major, to->stx_rdev_minor))))
				to->stx_mode = S_IFCHR | 0666;
			return 0;
		}
		if (!follow || !may_hide(errno) || !stat_kind(path_classify_link(directory, path, &contents), &st, &result))
			return result;
	}
	if (result == 0) {
		memset(to, 0, sizeof *to);
		to->stx_mask = STATX_BASIC_STATS;
		to->stx_blksize = 4096;
		to->stx_nlink = (uint32_t)st.st_nlink;
		to->stx_mode = (uint16_t)st.st_mode;
		to->stx_ino = st.st_ino;
		to->stx_size = (uint64_t)st.st_size;
		to->stx_rdev_major = major(st.st_rdev);
		to->stx_rdev_minor = minor(st.st_rdev);
		to->stx_dev_minor = 5;
		to->stx_mtime.tv_sec = to->stx_atime.tv_sec = to->stx_ctime.tv_sec = st.st_mtim.tv_sec;
	}
	return result;
}

/* ---- access ---- */

static bool access_kind(enum path_kind kind, int mode, int *result)
{
	switch (kind) {
	case PATH_DEVICE:
		*result = mode & X_OK ? fail(EACCES) : 0;
		return true;
	case PATH_FILE:
		*result = mode & (W_OK | X_OK) ? fail(EACCES) : 0;
		return true;
	case PATH_DIRECTORY:
		*result = mode & W_OK ? fail(EACCES) : 0;
		return true;
	case PATH_ABSENT:
		*result = fail(ENOENT);
		return true;
	default:
		return false;
	}
}

static bool access_ours(int directory, const char *path, int mode, bool follow, int *result)
{
	const char *contents = NULL;
	return access_kind(path_classify(directory, path, follow, &contents), mode, result);
}

static int accessed(int result, int directory, const char *path, int mode, bool follow)
{
	const char *contents = NULL;
	int ours;

	if (LIKELY(result == 0) || !follow || !may_hide(errno))
		return result;
	return access_kind(path_classify_link(directory, path, &contents), mode, &ours) ? ours : result;
}

#define ACCESS(name) \
	EXPORT int name(const char *path, int mode) \
	{ \
		int result; \
		if (UNLIKELY(access_ours(AT_FDCWD, path, mode, true, &result))) \
			return result; \
		return accessed(NEXT(name)(path, mode), AT_FDCWD, path, mode, true); \
	}
ACCESS(access)
ACCESS(euidaccess)
ACCESS(eaccess)

EXPORT int faccessat(int directory, const char *path, int mode, int flags)
{
	int result;
	bool follow = !(flags & AT_SYMLINK_NOFOLLOW);

	if (UNLIKELY(access_ours(directory, path, mode, follow, &result)))
		return result;
	return accessed(NEXT(faccessat)(directory, path, mode, flags), directory, path, mode, follow);
}

/* ---- realpath ---- */

/* The C library has not found it: a name of ours need not be there. NULL with the C library's errno: it is none. */
static char *real_path_ours(const char *path, char *to)
{
	const char *contents = NULL;
	char absolute[PATH_MAX];

	if (!path || !may_hide(errno))
		return NULL;
	enum path_kind kind = path_classify(AT_FDCWD, path, true, &contents);
	if (kind == PATH_OTHER)
		kind = path_classify_link(AT_FDCWD, path, &contents);
	if (kind == PATH_OTHER || kind == PATH_ABSENT || kind == PATH_CPUINFO || !path_resolve(AT_FDCWD, path, true, absolute))
		return NULL;
	return to ? strcpy(to, absolute) : strdup(absolute);
}

EXPORT char *realpath(const char *restrict path, char *restrict to)
{
	char *found = NEXT(realpath)(path, to);
	return LIKELY(found != NULL) ? found : real_path_ours(path, to);
}

EXPORT char *canonicalize_file_name(const char *path)
{
	char *found = NEXT(canonicalize_file_name)(path);
	return LIKELY(found != NULL) ? found : real_path_ours(path, NULL);
}

char *__realpath_chk(const char *path, char *to, size_t size);
EXPORT char *__realpath_chk(const char *path, char *to, size_t size)
{
	char *found = NEXT(__realpath_chk)(path, to, size); /* which ends the program if size is too small */
	return LIKELY(found != NULL) ? found : real_path_ours(path, to);
}
