/*
 * Writes to eventfds that are irqfds: the interrupt is delivered in the thread that writes, as KVM does.
 *
 * Invariants
 *   - Either the core has done the whole write, or the kernel's write is made as if nothing had been here. The core does it for the value 1
 *     and when the kernel says that the descriptor is the irqfd's eventfd, so no table of numbers has to be right.
 *   - What the kernel's write does for others (writers in other processes, duplicates, descriptors above the table) wakes the core's event loop.
 */
#include "ring3.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

bool irqfd_write(int fd, const void *buffer)
{
	struct thread *self = &r3_self;

	if (is_confined())
		return false; /* the kernel's write wakes the core's event loop */
	check_fork();
	if (!r3_irqfd_hints || shares_parent_memory())
		return false;
	/* The first call of a thread allocates, and a handler may have interrupted the allocator. */
	if (UNLIKELY(!self->attached) && self->handlers)
		return false;
	int error = errno;
	enter();
	bool done = r3_core.irqfd_write(fd, buffer) != 0;
	self->attached = true;
	leave(self);
	errno = error;
	return done;
}

EXPORT int eventfd_write(int fd, eventfd_t value)
{
	if (irqfd_written(fd, &value, sizeof value, __builtin_return_address(0)))
		return 0;
	return NEXT(eventfd_write)(fd, value);
}
