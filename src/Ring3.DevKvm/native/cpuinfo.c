/*
 * /proc/cpuinfo where CPUID is shown with virtualisation (cpuid.c): the kernel's text with the flag that goes with it. lscpu, libvirt and
 * scripts look there.
 */
#include "ring3.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LONGEST_LINE = 16384 };

static bool put(int fd, const char *text, size_t n)
{
	return syscall(SYS_write, fd, text, n) == (ssize_t)n;
}

/* Without the newline. */
static bool copy_line(int to, const char *line, size_t n, const char *flag)
{
	size_t length = strlen(flag); /* with a space in front */
	const char *end = line + n;

	if (!put(to, line, n))
		return false;
	if (n < 6 || memcmp(line, "flags", 5) != 0 || (line[5] != '\t' && line[5] != ' ' && line[5] != ':'))
		return put(to, "\n", 1);
	for (const char *at = line; (at = memmem(at, (size_t)(end - at), flag, length)) != NULL; at++)
		if (at + length == end || at[length] == ' ')
			return put(to, "\n", 1);
	return put(to, flag, length) && put(to, "\n", 1);
}

static bool copy(int from, int to, const char *flag)
{
	char buffer[LONGEST_LINE];
	size_t held = 0;
	long n;

	while ((n = syscall(SYS_read, from, buffer + held, sizeof buffer - held)) > 0) {
		char *line = buffer, *end;
		held += (size_t)n;
		while ((end = memchr(line, '\n', held)) != NULL) {
			size_t length = (size_t)(end - line);
			if (!copy_line(to, line, length, flag))
				return false;
			held -= length + 1;
			line = end + 1;
		}
		memmove(buffer, line, held);
		if (held == sizeof buffer)
			return false;
	}
	return n == 0 && held == 0;
}

bool cpuinfo_open(int flags, int *fd)
{
	if ((flags & (O_ACCMODE | O_PATH | O_DIRECTORY | O_CREAT)) != O_RDONLY)
		return false;
	int from = (int)syscall(SYS_openat, AT_FDCWD, "/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
	if (from < 0)
		return false;
	int to = memfd_create("cpuinfo", MFD_CLOEXEC);
	bool done = to >= 0 && copy(from, to, cpuid_flag());
	syscall(SYS_close, from);
	if (done)
		*fd = descriptor_read_only(to, flags);
	else if (to >= 0)
		syscall(SYS_close, to);
	return done;
}
