/*
 * System calls that take a path: /dev/kvm and what else paths.c of the interposer shows, and /proc/self/exe, which is the program and not
 * what loaded it.
 */
#include "direct.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#undef openat

/* The client's string; NULL: the kernel says what is wrong with it. */
const char *path_of_client(char *to, long from)
{
	size_t n = 0;

	while (n < PATH_MAX) {
		size_t part = 256 - ((uintptr_t)(from + (long)n) & 255); /* never over a page's end for nothing */
		if (part > PATH_MAX - n)
			part = PATH_MAX - n;
		if (!copy_guarded(to + n, (const char *)from + n, part))
			return NULL;
		if (memchr(to + n, 0, part))
			return to;
		n += part;
	}
	return NULL;
}

bool path_is_own_program(const char *path)
{
	if (strncmp(path, "/proc/", 6) != 0)
		return false;
	path += 6;
	if (strcmp(path, "self/exe") == 0 || strcmp(path, "thread-self/exe") == 0)
		return true;
	long id = 0;
	while (*path >= '0' && *path <= '9' && id < (1 << 24))
		id = id * 10 + (*path++ - '0');
	return id && strcmp(path, "/exe") == 0 && id == raw_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

/* Names that are looked at before the kernel is asked. */
static bool is_special(const char *path)
{
	size_t n = strlen(path);
	return strstr(path, "kvm") || strncmp(path, "parameters", 10) == 0 || (n >= 7 && strcmp(path + n - 7, "cpuinfo") == 0);
}

/* Errors behind which a link to one of our paths can be. */
static bool may_hide(long result)
{
	return result == -ENOENT || result == -EACCES || result == -EPERM || result == -ENXIO || result == -ENODEV;
}

static bool is_device(long fd)
{
	struct stat st;
	return !r3_paths_hidden && raw_call(SYS_fstat, fd, (long)&st, 0, 0, 0, 0) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232);
}

static long open_path(struct direct *self, long *c, int directory, const char *path, int flags, unsigned mode, unsigned at)
{
	long result;

	if (path_is_own_program(path))
		c[at] = (long)r3_program;
	else if (is_special(path))
		return HOST(self, openat(directory, path, flags, mode));
	result = window_call(self, c);
	if (UNLIKELY(result >= 0 && !(flags & (O_PATH | O_DIRECTORY)) && is_device(result))) {
		raw_call(SYS_close, result, 0, 0, 0, 0, 0);
		return HOST(self, kvm_open(flags));
	}
	return may_hide(result) && !r3_paths_hidden ? HOST(self, openat(directory, path, flags, mode)) : result;
}

static long stat_path(struct direct *self, long *c, int directory, const char *path, int flags, void *to)
{
	struct stat st;
	long result = -ENOENT;

	if (!is_special(path))
		result = window_call(self, c);
	if (!may_hide(result) || r3_paths_hidden)
		return result;
	result = HOST(self, fstatat(directory, path, &st, flags));
	return result || copy_guarded(to, &st, sizeof st) ? result : -EFAULT;
}

static long statx_path(struct direct *self, long *c, const char *path)
{
	struct statx st;
	long result = -ENOENT;

	if (!is_special(path))
		result = window_call(self, c);
	if (!may_hide(result) || r3_paths_hidden)
		return result;
	result = HOST(self, statx((int)c[1], path, (int)c[3], (unsigned)c[4], &st));
	return result || copy_guarded((void *)c[5], &st, sizeof st) ? result : -EFAULT;
}

static long access_path(struct direct *self, long *c, int directory, const char *path, int mode, int flags)
{
	long result = -ENOENT;

	if (!is_special(path))
		result = window_call(self, c);
	return may_hide(result) && !r3_paths_hidden ? HOST(self, faccessat(directory, path, mode, flags)) : result;
}

static long read_link(struct direct *self, long *c, const char *path, char *to, size_t size)
{
	size_t n = strlen(r3_program);

	if (!path_is_own_program(path) || (long)size <= 0)
		return window_call(self, c);
	if (n > size)
		n = size;
	return copy_guarded(to, r3_program, n) ? (long)n : -EFAULT;
}

long call_of_paths(struct direct *self, long *c)
{
	char buffer[PATH_MAX];
	bool first = c[0] == SYS_open || c[0] == SYS_creat || c[0] == SYS_stat || c[0] == SYS_lstat || c[0] == SYS_access || c[0] == SYS_readlink;
	const char *path = path_of_client(buffer, first ? c[1] : c[2]);
	struct open_how how;

	if (!path)
		return window_call(self, c);
	switch (c[0]) {
	case SYS_open:
		return open_path(self, c, AT_FDCWD, path, (int)c[2], (unsigned)c[3], 1);
	case SYS_creat:
		return open_path(self, c, AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, (unsigned)c[2], 1);
	case SYS_openat:
		return open_path(self, c, (int)c[1], path, (int)c[3], (unsigned)c[4], 2);
	case SYS_openat2:
		if (c[4] < (long)sizeof how || !copy_guarded(&how, (void *)c[3], sizeof how) || how.resolve)
			return window_call(self, c);
		return open_path(self, c, (int)c[1], path, (int)how.flags, (unsigned)how.mode, 2);
	case SYS_stat:
		return stat_path(self, c, AT_FDCWD, path, 0, (void *)c[2]);
	case SYS_lstat:
		return stat_path(self, c, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, (void *)c[2]);
	case SYS_newfstatat:
		return stat_path(self, c, (int)c[1], path, (int)c[4], (void *)c[3]);
	case SYS_statx:
		return statx_path(self, c, path);
	case SYS_access:
		return access_path(self, c, AT_FDCWD, path, (int)c[2], 0);
	case SYS_faccessat:
		return access_path(self, c, (int)c[1], path, (int)c[3], 0);
	case SYS_faccessat2:
		return access_path(self, c, (int)c[1], path, (int)c[3], (int)c[4]);
	case SYS_readlink:
		return read_link(self, c, path, (char *)c[2], (size_t)c[3]);
	default:
		return read_link(self, c, path, (char *)c[3], (size_t)c[4]);
	}
}
