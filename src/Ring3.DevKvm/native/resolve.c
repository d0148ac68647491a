/*
 * Where a path leads, also when what it names is not there: /dev/kvm and the files below /sys/module/kvm need not exist on this machine, so
 * realpath() cannot say. Only system calls and the stack; errno is kept.
 */
#include "ring3.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The length of the link's text, which ends with 0; -1: not a symbolic link. */
static ssize_t read_link(int directory, const char *path, char *text, size_t size)
{
	ssize_t n = syscall(SYS_readlinkat, directory, path, text, size);

	if (n < 0 || (size_t)n >= size)
		return -1;
	text[n] = 0;
	return n;
}

bool path_is_link(int directory, const char *path)
{
	char text[PATH_MAX];
	int error = errno;
	bool is = *path && read_link(directory, path, text, sizeof text) >= 0;

	errno = error;
	return is;
}

/* The directory that relative paths begin at, without a slash at its end. */
static bool start_of(int directory, const char *path, char *to)
{
	char link[32];

	*to = 0;
	if (*path == '/')
		return true;
	if (directory == AT_FDCWD)
		strcpy(link, "/proc/self/cwd");
	else
		snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
	ssize_t n = read_link(AT_FDCWD, link, to, PATH_MAX);
	if (n == 1)
		*to = 0;
	return n > 0 && (n == 1 || to[0] == '/');
}

/* As the kernel walks: a component at a time, links where they are met. What is not there is taken to be no link. */
static bool walk(const char *path, bool follow, char *to)
{
	char rest[2 * PATH_MAX], link[PATH_MAX];
	const char *at = path;
	size_t length = strlen(to);

	for (int links = 0;;) {
		at += strspn(at, "/");
		size_t n = strcspn(at, "/");
		if (!n)
			return true;
		const char *after = at + n;
		bool last = !after[strspn(after, "/")];
		if (n == 2 && memcmp(at, "..", 2) == 0) {
			char *slash = strrchr(to, '/');
			length = slash ? (size_t)(slash - to) : 0;
			to[length] = 0;
		} else if (n != 1 || *at != '.') {
			if (length + n + 2 > PATH_MAX)
				return false;
			to[length] = '/';
			memcpy(to + length + 1, at, n);
			to[length + 1 + n] = 0;
			ssize_t text = last && !follow ? -1 : read_link(AT_FDCWD, to, link, sizeof link);
			if (text < 0) {
				length += n + 1;
			} else {
				size_t left = strlen(after);
				if (++links > 40 || (size_t)text + left + 1 > sizeof rest)
					return false;
				memmove(rest + text, after, left + 1); /* `after` may be a part of `rest` */
				memcpy(rest, link, (size_t)text);
				if (link[0] == '/')
					length = 0;
				to[length] = 0;
				at = rest;
				continue;
			}
		}
		at = after;
	}
}

bool path_resolve(int directory, const char *path, bool follow, char *to)
{
	int error = errno;
	bool done = *path && start_of(directory, path, to) && walk(path, follow, to);

	errno = error;
	return done;
}
