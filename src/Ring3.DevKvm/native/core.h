/*
 * The C interface of libring3-core.so (Exports.cs). Results are >= 0 or -errno; nothing here sets errno.
 */
#ifndef RING3_CORE_H
#define RING3_CORE_H

#include <stdint.h>

/* ObjectKind in NewFd.cs. */
enum r3_kind { R3_NONE, R3_SYSTEM, R3_VM, R3_VCPU, R3_DEVICE, R3_STATS, R3_GUEST_MEMFD };

/* An object that a call has made and the memfd that stands for it; handle 0: the call made none. NewFd in NewFd.cs. */
struct r3_new_fd {
	uint64_t handle;
	int32_t fd;
	int32_t kind;
};

/* How a signal reaches a vCPU that runs: stores of the trampoline, in this order. VcpuSignal in the core. */
struct r3_vcpu_signal {
	uint32_t *exit_request;
	uint32_t *wake_word;
	uint32_t signalled;
};

/* What the core is told at its start. */
struct r3_host {
	uint64_t (*fd_handle)(int fd); /* handle behind a client's descriptor, 0: not one of ours */
};

/* What the core tells: [lo, hi) contains the client memory of every slot; lo >= hi: there is none. Which descriptors may be irqfds. */
struct r3_shared {
	const volatile uint64_t *client_bounds;
	const volatile uint8_t *irqfd_hints; /* R3_IRQFD_SLOTS bytes; 0: a write to this number is none of the core's business */
};
#define R3_IRQFD_SLOTS (1 << 14) /* IrqfdWrites.Slots */

struct r3_core {
	int (*version)(char *text, int size); /* with its NUL, or -E2BIG. The first call, by whatever libring3.so: it never changes */
	int (*init)(const struct r3_host *host, struct r3_shared *shared);
	long (*open)(struct r3_new_fd *made);
	long (*ioctl)(uint64_t handle, uint32_t command, uint64_t argument, struct r3_new_fd *made);
	/* ioctl with KVM_RUN of a vCPU's handle. thread: number of the calling thread, of the interposer's. */
	long (*run)(uint64_t handle, uint64_t argument, uint32_t thread);
	void (*release)(uint64_t handle);
	long (*read)(uint64_t handle, void *buffer, uint64_t length, int64_t offset);
	int (*irqfd_write)(int fd, const void *buffer); /* a write of 8 bytes. 1: done; 0: nothing was done, write */
	struct r3_vcpu_signal *(*vcpu_signal)(uint64_t handle);
	int (*invalidate_start)(uint64_t lo, uint64_t hi);
	void (*invalidate_end)(uint64_t lo, uint64_t hi);
	void (*at_exit)(void);
};

#endif
