/*
 * Into the host and back. What uses thread-local storage is in functions of its own: within one function a compiler takes the thread pointer
 * for a constant.
 */
#include "direct.h"

void host_begin(struct direct *self)
{
	fs_write(self->host_fs);
	self->in_host = 1;
	COMPILER_BARRIER();
	signals_enter_direct();
}

void host_end(struct direct *self)
{
	COMPILER_BARRIER();
	/* From here on a signal is held. One that was deferred is pending, and everything is blocked until the way back to the client. */
	self->in_host = 0;
	COMPILER_BARRIER();
	signals_leave_direct();
	fs_write(self->client_fs);
}

long host_result(long result)
{
	return result == -1 ? -errno : result;
}
