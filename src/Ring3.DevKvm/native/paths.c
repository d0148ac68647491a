/*
 * The C library's functions that take a path: open, fopen, stat, access and their variants.
 */
#include "ring3.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
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

/* Opens one of our paths; false: the path is not ours. */
static bool open_ours(int directory, const char *path, int flags, int *fd)
{
	const char *contents = NULL;

	switch (path_classify(directory, path, &contents)) {
	case PATH_OTHER:
		return false;
	case PATH_DEVICE:
		*fd = kvm_open(flags);
		return true;
	case PATH_FILE:
		*fd = path_open_file(contents, flags);
		return true;
	case PATH_ABSENT:
		*fd = fail(ENOENT);
		return true;
	case PATH_DIRECTORY:
		return false;
	}
	return false;
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
		return NEXT(name)(path, flags, mode); \
	}
#define OPENAT(name) \
	EXPORT int name(int directory, const char *path, int flags, ...) \
	{ \
		int fd; \
		MODE(flags) \
		if (UNLIKELY(open_ours(directory, path, flags, &fd))) \
			return fd; \
		return NEXT(name)(directory, path, flags, mode); \
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
		return NEXT(name)(path, flags); \
	}
#define OPENAT_2(name) \
	EXPORT int name(int directory, const char *path, int flags) \
	{ \
		int fd; \
		if (UNLIKELY(open_ours(directory, path, flags, &fd))) \
			return fd; \
		return NEXT(name)(directory, path, flags); \
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

static bool fopen_ours(const char *path, const char *mode, FILE **stream)
{
	int fd;

	if (!open_ours(AT_FDCWD, path, flags_of_mode(mode), &fd))
		return false;
	*stream = fd < 0 ? NULL : fdopen(fd, mode);
	return true;
}

#define FOPEN(name) \
	EXPORT FILE *name(const char *path, const char *mode) \
	{ \
		FILE *stream; \
		if (UNLIKELY(fopen_ours(path, mode, &stream))) \
			return stream; \
		return NEXT(name)(path, mode); \
	}
FOPEN(fopen)
FOPEN(fopen64)

/* ---- stat ---- */

static bool stat_ours(int directory, const char *path, struct stat *st, int *result)
{
	const char *contents = NULL;
	enum path_kind kind = path_classify(directory, path, &contents);

	if (LIKELY(kind == PATH_OTHER))
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

#define STAT(name, type) \
	EXPORT int name(const char *restrict path, struct type *restrict st) \
	{ \
		int result; \
		if (UNLIKELY(stat_ours(AT_FDCWD, path, (struct stat *)st, &result))) \
			return result; \
		return NEXT(name)(path, st); \
	}
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)

#define FSTATAT(name, type) \
	EXPORT int name(int directory, const char *restrict path, struct type *restrict st, int flags) \
	{ \
		int result; \
		if (UNLIKELY(stat_ours(directory, path, (struct stat *)st, &result))) \
			return result; \
		return NEXT(name)(directory, path, st, flags); \
	}
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)

/* Programs linked before glibc 2.33. */
#define XSTAT(name, type) \
	int name(int version, const char *path, struct type *st); \
	EXPORT int name(int version, const char *path, struct type *st) \
	{ \
		int result; \
		if (UNLIKELY(stat_ours(AT_FDCWD, path, (struct stat *)st, &result))) \
			return result; \
		return NEXT(name)(version, path, st); \
	}
XSTAT(__xstat, stat)
XSTAT(__xstat64, stat64)
XSTAT(__lxstat, stat)
XSTAT(__lxstat64, stat64)

EXPORT int statx(int directory, const char *restrict path, int flags, unsigned mask, struct statx *restrict to)
{
	struct stat st;
	int result;

	if (LIKELY(!stat_ours(directory, path, &st, &result)))
		return NEXT(statx)(directory, path, flags, mask, to);
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

static bool access_ours(int directory, const char *path, int mode, int *result)
{
	const char *contents = NULL;

	switch (path_classify(directory, path, &contents)) {
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

#define ACCESS(name) \
	EXPORT int name(const char *path, int mode) \
	{ \
		int result; \
		if (UNLIKELY(access_ours(AT_FDCWD, path, mode, &result))) \
			return result; \
		return NEXT(name)(path, mode); \
	}
ACCESS(access)
ACCESS(euidaccess)
ACCESS(eaccess)

EXPORT int faccessat(int directory, const char *path, int mode, int flags)
{
	int result;

	if (UNLIKELY(access_ours(directory, path, mode, &result)))
		return result;
	return NEXT(faccessat)(directory, path, mode, flags);
}
