/*
 * ioctl, and KVM_RUN's dealings with signals.
 */
#include "ring3.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Copies from an address that the client gave and that may be wrong. */
bool copy_from_client(void *to, uint64_t from, size_t size)
{
	struct iovec local = { to, size }, remote = { (void *)from, size };
	long n = call_host(SYS_process_vm_readv, r3_confined ? r3_owner : getpid(), &local, 1, &remote, 1, 0);

	if (n < 0 && (errno == ENOSYS || errno == EPERM)) {
		memcpy(to, (void *)from, size);
		return true;
	}
	return n == (long)size;
}

/* KVM_SET_SIGNAL_MASK lives here: it is about the thread that calls, not about the processor. */
static long set_signal_mask(struct object *object, uint64_t argument)
{
	struct kvm_signal_mask head;
	kernel_sigset mask;

	if (!argument) {
		object->masked = false;
		return 0;
	}
	if (!copy_from_client(&head, argument, sizeof head))
		return -EFAULT;
	if (head.len != sizeof mask)
		return -EINVAL;
	if (!copy_from_client(&mask, argument + offsetof(struct kvm_signal_mask, sigset), sizeof mask))
		return -EFAULT;
	object->mask = signals_kernel_mask(mask) & ~(FAULT_SIGNALS | SIGNAL_BIT(RUNTIME_SIGNAL) | SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(SIGSTOP));
	object->masked = true;
	return 0;
}

struct core_call {
	struct object *object;
	uint32_t command;
	uint64_t argument;
	long result;
};

static long call_core(struct object *object, uint32_t command, uint64_t argument);

static void call_core_borne(void *context)
{
	struct core_call *call = context;
	call->result = call_core(call->object, call->command, call->argument);
}

static long call_core(struct object *object, uint32_t command, uint64_t argument)
{
	if (is_confined()) {
		struct core_call call = { object, command, argument, -ENOMEM };
		helper_run(call_core_borne, &call);
		return call.result;
	}
	struct r3_new_fd made = { 0 };
	long result = r3_core.ioctl(object->handle, command, argument, &made);

	if (UNLIKELY(made.handle != 0)) {
		if (object_made(&made) < 0)
			return -ENOMEM;
		/* KVM_CREATE_DEVICE has told the descriptor in its structure; the others return it. */
		return result < 0 || command == KVM_CREATE_DEVICE ? result : made.fd;
	}
	return result;
}

struct core_run {
	struct object *object;
	uint64_t argument;
	long result;
};

static void run_core_borne(void *context)
{
	struct core_run *call = context;
	call->result = r3_core.run(call->object->handle, call->argument, r3_self.number);
}

static long run_core_far(struct object *object, uint64_t argument)
{
	struct core_run call = { object, argument, -ENOMEM };
	helper_run(run_core_borne, &call);
	return call.result;
}

/*
 * KVM_RUN. A signal that comes while the thread is inside is noted by the trampoline, which makes the run loop return -EINTR; its handler
 * runs on leaving, or it stays pending where only the mask of KVM_SET_SIGNAL_MASK had let it through.
 */
static inline long run_vcpu(struct thread *self, struct object *object, uint64_t argument)
{
	bool masked = object->masked;
	long result;

	signals_begin_run(self, object, masked);
	if (is_confined())
		result = run_core_far(object, argument);
	else
		result = r3_core.run(object->handle, argument, self->number);
	signals_end_run(self, object, masked);
	return result;
}

/* What is not KVM_RUN. */
__attribute__((noinline)) static long control_object(struct object *object, uint32_t command, uint64_t argument)
{
	if (command == KVM_SET_SIGNAL_MASK && object->kind == R3_VCPU)
		return set_signal_mask(object, argument);
	return call_core(object, command, argument);
}

/* at: the descriptor's place in the table, NULL where it can have none. */
static inline int kvm_ioctl(struct object *_Atomic *at, struct object *object, uint32_t command, uint64_t argument)
{
	long result;

	if (UNLIKELY(object->foreign) && !adopt_system(object))
		return fail(EIO);
	struct thread *self = enter();
	self->object = object;
	COMPILER_BARRIER();
	if (UNLIKELY(!at || atomic_load_explicit(at, memory_order_acquire) != object ||
		     atomic_load_explicit(&object->dying, memory_order_relaxed) != ALIVE))
		result = -EBADF;
	else if (LIKELY(command == KVM_RUN && object->kind == R3_VCPU))
		result = run_vcpu(self, object, argument);
	else
		result = control_object(object, command, argument);
	COMPILER_BARRIER();
	object_leave(self);
	leave(self);
	return (int)fail_or(result);
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;

	va_start(arguments, request);
	uint64_t argument = va_arg(arguments, uint64_t);
	va_end(arguments);
	if (UNLIKELY(_IOC_TYPE(request) == KVMIO)) {
		check_fork();
		struct object *_Atomic *at = table_entry(fd);
		struct object *object = LIKELY(at != NULL) ? atomic_load_explicit(at, memory_order_acquire) : NULL;
		/* What the table knows is the client's: the core calls the kernel's KVM, if any. */
		if (UNLIKELY(!object) && !CALLED_BY_CORE()) {
			object = table_find(fd);
			at = table_entry(fd);
		}
		if (object)
			return kvm_ioctl(at, object, (uint32_t)request, argument);
	}
	return NEXT(ioctl)(fd, request, argument);
}

struct open_call {
	int flags, fd, error;
};

static void open_borne(void *context)
{
	struct open_call *call = context;
	call->fd = kvm_open(call->flags);
	call->error = errno;
}

int kvm_open(int flags)
{
	struct r3_new_fd made = { 0 };
	int error, fd;

	if (is_confined()) {
		struct open_call call = { flags, -1, ENOMEM };
		helper_run(open_borne, &call);
		return call.fd < 0 ? fail(call.error) : call.fd;
	}

	if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
		return fail(EEXIST);
	if (flags & O_DIRECTORY)
		return fail(ENOTDIR);
	error = core_load();
	if (error)
		return fail(error);
	struct thread *self = enter();
	long result = r3_core.open(&made);
	fd = result < 0 ? fail((int)-result) : object_made(&made);
	if (fd >= 0 && !(flags & O_CLOEXEC))
		NEXT(fcntl)(fd, F_SETFD, 0);
	leave(self);
	return fd;
}
