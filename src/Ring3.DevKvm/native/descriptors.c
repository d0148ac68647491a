/*
 * Descriptors that come and go: close, dup and their variants.
 */
#include "ring3.h"

#include <fcntl.h>
#include <unistd.h>

EXPORT int close(int fd)
{
	struct closing closing;

	if (LIKELY(!r3_active) || CALLED_BY_CORE() || !table_get(fd))
		return NEXT(close)(fd);
	check_fork();
	closing_begin(fd, &closing);
	int result = NEXT(close)(fd);
	closing_end(&closing);
	return result;
}
