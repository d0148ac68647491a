/*
 * Descriptors that come and go: close, dup, messages between processes; and reading them.
 */
#include "ring3.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#undef fcntl
#undef fcntl64
#undef pread
#undef pread64
#undef pwrite
#undef pwrite64
#undef preadv
#undef freopen
#undef freopen64

/*
 * The object behind fd if the client's call needs attention. A child that shares its parent's memory (vfork, until it executes a program)
 * changes its own descriptors only: it must leave the parent's table alone.
 */
static struct object *ours(int fd)
{
	struct object *object;

	if (LIKELY(!r3_tracking) || LIKELY(!(object = table_get(fd))))
		return NULL;
	check_fork();
	return shares_parent_memory() ? NULL : object;
}

/* ---- close ---- */

EXPORT int close(int fd)
{
	struct closing closing;

	if (LIKELY(!ours(fd)) || CALLED_BY_CORE())
		return NEXT(close)(fd);
	closing_begin(fd, &closing);
	int result = NEXT(close)(fd);
	closing_end(&closing);
	return result;
}

EXPORT int fclose(FILE *stream)
{
	struct closing closing;
	int fd = r3_tracking && stream ? fileno(stream) : -1;

	if (LIKELY(fd < 0 || !ours(fd)))
		return NEXT(fclose)(stream);
	closing_begin(fd, &closing);
	int result = NEXT(fclose)(stream);
	closing_end(&closing);
	return result;
}

/* A range may hold many of ours: each is bracketed by itself, and closed one by one before the rest. */
static void close_one(int fd, void *context)
{
	(void)context;
	close(fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	if (r3_tracking && first <= last && !(flags & ~(int)CLOSE_RANGE_UNSHARE) && !CALLED_BY_CORE()) {
		check_fork();
		if (!shares_parent_memory() && !(flags & CLOSE_RANGE_UNSHARE))
			table_each(first, last, close_one, NULL);
	}
	return NEXT(close_range)(first, last, flags);
}

EXPORT void closefrom(int first)
{
	if (r3_tracking && !CALLED_BY_CORE()) {
		check_fork();
		if (!shares_parent_memory())
			table_each(first < 0 ? 0 : (unsigned)first, ~0u, close_one, NULL);
	}
	NEXT(closefrom)(first);
}

/* ---- dup ---- */

EXPORT int dup(int fd)
{
	struct object *object = ours(fd);
	int made = NEXT(dup)(fd);

	if (UNLIKELY(object != NULL) && made >= 0)
		table_add(made, object);
	return made;
}

/* The target, if open, is closed by the same call. */
static int duplicate_over(int from, int to, int flags, bool dup3_form)
{
	struct closing closing = { NULL, -1 };
	struct object *object = ours(from);

	if (from == to || CALLED_BY_CORE())
		return dup3_form ? NEXT(dup3)(from, to, flags) : NEXT(dup2)(from, to);
	bool open = !r3_tracking || call_host(SYS_fcntl, from, F_GETFD) >= 0;
	if (UNLIKELY(open && ours(to)))
		closing_begin(to, &closing);
	int made = dup3_form ? NEXT(dup3)(from, to, flags) : NEXT(dup2)(from, to);
	if (UNLIKELY(object != NULL) && made >= 0)
		table_add(made, object);
	closing_end(&closing);
	return made;
}

EXPORT int dup2(int from, int to)
{
	if (LIKELY(!r3_tracking))
		return NEXT(dup2)(from, to);
	return duplicate_over(from, to, 0, false);
}

EXPORT int dup3(int from, int to, int flags)
{
	if (LIKELY(!r3_tracking))
		return NEXT(dup3)(from, to, flags);
	return duplicate_over(from, to, flags, true);
}

#define FCNTL(name) \
	EXPORT int name(int fd, int command, ...) \
	{ \
		va_list arguments; \
		va_start(arguments, command); \
		void *argument = va_arg(arguments, void *); \
		va_end(arguments); \
		struct object *object = command == F_DUPFD || command == F_DUPFD_CLOEXEC ? ours(fd) : NULL; \
		int result = NEXT(name)(fd, command, argument); \
		if (UNLIKELY(object != NULL) && result >= 0) \
			table_add(result, object); \
		return result; \
	}
FCNTL(fcntl)
FCNTL(fcntl64)

/* ---- messages ---- */

/* Descriptors that arrive in a message get their entries before the client can close them. */
static void look_at(struct msghdr *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			table_forget(fd); /* the number is new, whatever it was */
			table_find(fd);
		}
	}
}

void descriptors_received(struct msghdr *message)
{
	check_fork();
	look_at(message);
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	ssize_t n = NEXT(recvmsg)(fd, message, flags);

	if (UNLIKELY(r3_tracking && n >= 0 && message->msg_control && message->msg_controllen)) {
		int error = errno;
		check_fork();
		look_at(message);
		errno = error;
	}
	return n;
}

EXPORT int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
	int n = NEXT(recvmmsg)(fd, messages, count, flags, timeout);

	if (UNLIKELY(r3_tracking)) {
		int error = errno;
		check_fork();
		for (int i = 0; i < n; i++) {
			if (messages[i].msg_hdr.msg_control && messages[i].msg_hdr.msg_controllen)
				look_at(&messages[i].msg_hdr);
		}
		errno = error;
	}
	return n;
}

/* ---- read and write ---- */

/* /dev/kvm is a device file; all others are streams. */
static int positioned_error(const struct object *object)
{
	return object->kind == R3_SYSTEM ? EINVAL : ESPIPE;
}

/* Statistics are open for reading only. */
static ssize_t write_ours(const struct object *object, bool positioned)
{
	if (object->kind == R3_STATS)
		return fail(EBADF);
	return fail(positioned ? positioned_error(object) : EINVAL);
}

/* Statistics are read; nothing else of KVM can be read or written. offset -1: the descriptor's position. */
static ssize_t read_ours(int fd, struct object *object, void *buffer, size_t length, off_t offset);

struct read_call {
	int fd, error;
	struct object *object;
	void *buffer;
	size_t length;
	off_t offset;
	ssize_t result;
};

static void read_borne(void *context)
{
	struct read_call *call = context;
	call->result = read_ours(call->fd, call->object, call->buffer, call->length, call->offset);
	call->error = errno;
}

static ssize_t read_ours(int fd, struct object *object, void *buffer, size_t length, off_t offset)
{
	if (is_confined()) {
		struct read_call call = { fd, ENOMEM, object, buffer, length, offset, -1 };
		helper_run(read_borne, &call);
		return call.result < 0 ? fail(call.error) : call.result;
	}
	if (object->kind != R3_STATS)
		return fail(offset >= 0 ? positioned_error(object) : EINVAL);
	if (object->foreign)
		return fail(EIO);
	off_t at = offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
	struct thread *self = enter();
	self->object = object;
	COMPILER_BARRIER();
	long result = -EBADF;
	if (table_get(fd) == object && atomic_load(&object->dying) == ALIVE)
		result = r3_core.read(object->handle, buffer, length, at);
	if (result > 0 && offset < 0)
		lseek(fd, at + result, SEEK_SET);
	COMPILER_BARRIER();
	object_leave(self);
	leave(self);
	return fail_or(result);
}

EXPORT ssize_t read(int fd, void *buffer, size_t length)
{
	struct object *object = ours(fd);
	if (LIKELY(!object) || CALLED_BY_CORE())
		return NEXT(read)(fd, buffer, length);
	return read_ours(fd, object, buffer, length, -1);
}

#define PREAD(name) \
	EXPORT ssize_t name(int fd, void *buffer, size_t length, off_t offset) \
	{ \
		struct object *object = ours(fd); \
		if (LIKELY(!object) || CALLED_BY_CORE()) \
			return NEXT(name)(fd, buffer, length, offset); \
		return offset < 0 ? fail(EINVAL) : read_ours(fd, object, buffer, length, offset); \
	}
PREAD(pread)
PREAD(pread64)

EXPORT ssize_t readv(int fd, const struct iovec *vectors, int count)
{
	struct object *object = ours(fd);
	ssize_t sum = 0;

	if (LIKELY(!object))
		return NEXT(readv)(fd, vectors, count);
	for (int i = 0; i < count; i++) {
		ssize_t n = read_ours(fd, object, vectors[i].iov_base, vectors[i].iov_len, -1);
		if (n < 0)
			return sum ? sum : n;
		sum += n;
		if ((size_t)n < vectors[i].iov_len)
			break;
	}
	return sum;
}

EXPORT ssize_t write(int fd, const void *buffer, size_t length)
{
	if (UNLIKELY(irqfd_written(fd, buffer, length, __builtin_return_address(0))))
		return (ssize_t)length;
	struct object *object = ours(fd);
	return LIKELY(!object) || CALLED_BY_CORE() ? NEXT(write)(fd, buffer, length) : write_ours(object, false);
}

EXPORT ssize_t writev(int fd, const struct iovec *vectors, int count)
{
	struct object *object = ours(fd);
	return UNLIKELY(object != NULL) ? write_ours(object, false) : NEXT(writev)(fd, vectors, count);
}

#define PWRITE(name) \
	EXPORT ssize_t name(int fd, const void *buffer, size_t length, off_t offset) \
	{ \
		struct object *object = ours(fd); \
		return UNLIKELY(object != NULL) ? write_ours(object, true) : NEXT(name)(fd, buffer, length, offset); \
	}
PWRITE(pwrite)
PWRITE(pwrite64)
