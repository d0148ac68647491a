/*
 * libring3.so: the part of Ring3 that sits in the client's process in front of the C library.
 *
 * It is preloaded into a whole process tree, so it does nothing until a process opens /dev/kvm: no thread, no mapping, no handler. Only
 * then is libring3-core.so loaded (core.c). From that moment on
 *   - a KVM descriptor is a memfd that table.c maps to an object of the core,
 *   - a thread is either outside (client code) or inside (in the core, or in a critical section here). A handler of the client never runs
 *     inside: signals.c defers it to the moment of leaving, which is where the kernel would run it.
 */
#ifndef RING3_H
#define RING3_H

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <ucontext.h>

#include "core.h"

#define EXPORT __attribute__((visibility("default")))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
/* Orders this thread's accesses against its own signal handlers, and, with membarrier() on the other side, against other threads. */
#define COMPILER_BARRIER() atomic_signal_fence(memory_order_seq_cst)

/* The next definition of a C library function behind ours, found on first use. */
#define NEXT(function) \
	({ \
		static __typeof__(&function) next_; \
		if (UNLIKELY(!next_)) \
			next_ = (__typeof__(&function))next_definition(#function); \
		next_; \
	})

__attribute__((visibility("hidden"))) void *next_definition(const char *name); /* lookup.c */

typedef uint64_t kernel_sigset; /* bit n-1 is signal n */
#define SIGNAL_BIT(n) (1ull << ((n) - 1))
/*
 * The .NET runtime stops threads with what it takes for the first real-time signal: 34, and clients see the range begin one later. A client
 * that is loaded directly asks a C library of its own, so there it is one of the last.
 */
#define RUNTIME_SIGNAL (r3_direct ? 63 : 34)
/* With --cpuid: blocked in the kernel's mask where the client has blocked SIGSEGV. Clients see the real-time range end one earlier. */
#define BLOCKED_SEGV 64
/* The core's own instructions raise them, so they are never blocked inside. */
#define FAULT_SIGNALS (SIGNAL_BIT(SIGSEGV) | SIGNAL_BIT(SIGBUS) | SIGNAL_BIT(SIGFPE))

struct object {
	uint64_t handle;                  /* of the core; 0: the slot is free */
	struct r3_vcpu_signal *signal;    /* vCPU only */
	uint32_t kind;                    /* enum r3_kind */
	uint32_t descriptors;             /* how many the table knows of */
	_Atomic uint32_t dying;           /* enum dying */
	bool foreign;                     /* belongs to the core of the process that forked this one */
	bool masked;                      /* KVM_SET_SIGNAL_MASK gave a mask */
	kernel_sigset mask;
	dev_t device;
	ino_t inode;
	int probe;                        /* orphan: a descriptor of ours to look whether another process or a mapping still holds it; else -1 */
	struct object *next;              /* of all objects, or of the free list */
};

enum dying { ALIVE, DYING, RELEASED };

/* What this library knows of one thread of the client. */
struct thread {
	volatile int inside;                      /* depth */
	struct r3_vcpu_signal *volatile run;      /* inside KVM_RUN of this vCPU */
	struct object *volatile object;           /* protects the object from its release: see object_release() */
	volatile int deferred;                    /* a signal arrived inside: everything is blocked until leaving */
	volatile int cancelled;                   /* pthread_cancel was called: signals.c */
	bool prepared;
	bool own;                                 /* not the client's: a thread of the core or of helpers.c */
	struct helper *helper;                    /* takes this thread's calls into the core: helpers.c */
	siginfo_t carried[4];                     /* what the kernel did not let another thread queue: signals.c */
	bool attached;                            /* the core knows the thread: it allocates nothing when it is called */
	volatile int handlers;                    /* of the client that run; too high after a longjmp out of one */
	siginfo_t held[3];                        /* of FAULT_SIGNALS that somebody sent while the thread was inside */
	kernel_sigset resume;                     /* deferred: the mask that leaving restores */
	kernel_sigset before_run;                 /* KVM_SET_SIGNAL_MASK: the mask outside KVM_RUN */
	bool shielded;                            /* cancellation is disabled until leaving, which restores cancel_state */
	int cancel_state;
	uint32_t number;                          /* no other thread of the process has it, also after its end */
	pthread_t id;
	struct thread *next, **link;
};

extern __thread struct thread r3_self __attribute__((tls_model("initial-exec"), visibility("hidden")));

#pragma GCC visibility push(hidden)

extern bool r3_direct;                            /* the client is loaded beside the core: direct/direct.h; set before the core is loaded */

/* core.c */
extern struct r3_core r3_core;
extern volatile bool r3_active;                   /* the core was loaded once, in this process or in one it was forked from */
extern volatile bool r3_tracking;                 /* the table may have entries */
extern const volatile uint64_t *r3_bounds;        /* [lo, hi) of the client memory of all slots */
extern const volatile uint8_t *volatile r3_irqfd_hints; /* NULL: no core in this process */
extern volatile uint32_t *r3_alive;               /* 0 in a process that was forked since */
extern uintptr_t r3_core_begin, r3_core_end;
extern __thread int r3_loading __attribute__((tls_model("initial-exec")));
void track(void);
bool core_is_loaded(void);
int core_load(void);                              /* 0, or an errno */
void core_report(void);                           /* the process ends */
void core_after_fork(void);
void thread_prepare(struct thread *self);
void thread_registry_lock(void);
void thread_registry_unlock(void);
extern struct thread *r3_threads;

/* The kernel's number of a thread, without a system call: it is in the name of its clock. */
static inline pid_t thread_id(pthread_t thread)
{
	clockid_t clock;
	return pthread_getcpuclockid(thread, &clock) == 0 ? (pid_t)~(clock >> 3) : 0;
}

/* helpers.c */
extern volatile bool r3_confined;                 /* a seccomp filter refuses what the core needs: no thread of the client calls it, or makes system calls beyond the filter's */
int helpers_start(void);                          /* 0, or an errno */
void helpers_after_fork(struct thread *self);
void helper_prepare(void);
bool helper_run(void (*function)(void *), void *argument); /* in this thread's helper, errno kept; false: there can be none */
void helper_give_back(struct thread *self);
void porter_run(void (*function)(void *), void *argument);
bool thread_is_own(pid_t id);
long call_host_far(long number, long a, long b, long c, long d, long e, long f);

static inline bool is_confined(void)
{
	return UNLIKELY(r3_confined) && !r3_self.own;
}

/* 0 or positive, or -errno. Nothing of the C library. */
static inline long raw_call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return result;
}

/* A system call that is not among those of every client's loop: as syscall(). */
#define CALL_HOST(number, a, b, c, d, e, f, ...) \
	(is_confined() ? call_host_far(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f)) : syscall(number, a, b, c, d, e, f))
#define call_host(...) CALL_HOST(__VA_ARGS__, 0, 0, 0, 0, 0, 0)

/* filters.c */
extern volatile bool r3_paths_hidden;             /* a filter refuses what looks at paths */
extern volatile bool r3_filtered;                 /* some thread of the client has, or had, asked for a filter since the program began */
bool filter_signalled(const siginfo_t *info);

/* Whether the caller at this return address is the core itself, whose calls pass unseen. */
static inline bool from_core(const void *return_address)
{
	return (uintptr_t)return_address - r3_core_begin < r3_core_end - r3_core_begin || UNLIKELY(r3_loading);
}
#define CALLED_BY_CORE() from_core(__builtin_return_address(0))

/* First line of every entry that looks at the table or calls the core. */
static inline void check_fork(void)
{
	if (UNLIKELY(!*r3_alive))
		core_after_fork();
}

/* A child of vfork: it runs in its parent's memory with descriptors of its own. */
extern pid_t r3_owner;
bool shares_parent_memory(void);

/* masks.c */
kernel_sigset signals_kernel_mask(kernel_sigset mask); /* for a mask of the client */
kernel_sigset signals_client_mask(kernel_sigset mask); /* and back */
void mask_to_client(sigset_t *set);               /* a mask of the kernel as the client sees it */
void mask_from_client(sigset_t *set);

static inline kernel_sigset to_kernel(const sigset_t *set)
{
	kernel_sigset k;
	__builtin_memcpy(&k, set, sizeof k);
	return k;
}

/* direct */
void direct_handler(int sig, siginfo_t *info, void *context);
void direct_internal_action(int sig, const struct sigaction *action);

/* cpuid.c */
extern volatile bool r3_cpuid;                    /* CPUID faults in the client's threads, and SIGSEGV is never blocked: set by the constructor or never */
bool cpuid_emulate(const siginfo_t *info, void *context); /* a SIGSEGV: whether it was a CPUID, which is done */
void cpuid_of_own_thread(void);                   /* this thread is the core's: it sees the host's */
void cpuid_before_filter(bool refuses);           /* a filter comes that refuses what cpuid_emulate() needs */
const char *cpuid_flag(void);                     /* the flag's name in /proc/cpuinfo, with a space in front */

static inline bool stands_in(int sig)
{
	return sig == BLOCKED_SEGV && UNLIKELY(r3_cpuid);
}

/* signals.c */
void vcpu_poke(struct r3_vcpu_signal *run);
void signals_install(void);
void signals_stand_in(void);
void signals_after_fork(void);
void signals_deliver(struct thread *self);
void signals_unblock_runtime(void);
void signals_begin_masked_run(struct thread *self, struct object *vcpu);
void signals_end_masked_run(struct thread *self, struct object *vcpu);
void signals_enter_direct(void);
void signals_leave_direct(void);
void signals_trampoline(int sig, siginfo_t *info, void *context);
void signals_stop(int sig, siginfo_t *info, void *context);
bool signals_take_blocked(int sig, siginfo_t *info, const ucontext_t *context);
bool signals_plain_action(int sig, struct sigaction *action);
void signals_take_carried(int sig, siginfo_t *info);
bool signals_take_action(int sig, siginfo_t *info, struct sigaction *action);
void signals_shield(struct thread *self);
void signals_unshield(struct thread *self);

static inline struct thread *enter(void)
{
	struct thread *self = &r3_self;
	if (UNLIKELY(!self->prepared))
		thread_prepare(self);
	self->inside++;
	COMPILER_BARRIER();
	if (UNLIKELY(self->cancelled) && self->inside == 1) {
		self->inside = 0;
		signals_shield(self);
	}
	return self;
}

static inline void leave(struct thread *self)
{
	COMPILER_BARRIER();
	if (--self->inside)
		return;
	COMPILER_BARRIER();
	if (UNLIKELY(self->deferred))
		signals_deliver(self);
	if (UNLIKELY(self->cancelled))
		signals_unshield(self);
}

/* Around KVM_RUN: the thread is inside and self->run is set in between. masked: KVM_SET_SIGNAL_MASK has given a mask. */
static inline void signals_begin_run(struct thread *self, struct object *vcpu, bool masked)
{
	if (UNLIKELY(masked))
		signals_begin_masked_run(self, vcpu);
	else
		self->run = vcpu->signal;
	COMPILER_BARRIER();
	if (UNLIKELY(self->deferred))
		vcpu_poke(vcpu->signal);
}

static inline void signals_end_run(struct thread *self, struct object *vcpu, bool masked)
{
	COMPILER_BARRIER();
	self->run = NULL;
	COMPILER_BARRIER();
	if (UNLIKELY(masked))
		signals_end_masked_run(self, vcpu);
	else if (UNLIKELY(self->deferred))
		vcpu->signal->signalled = 0;
}

/* table.c */
#define CHUNK 1024
#define CHUNKS 1024
extern struct object *_Atomic *_Atomic r3_chunks[CHUNKS];

/* Where the table says what a number means; it stays there. NULL: it says nothing yet. */
static inline struct object *_Atomic *table_entry(int fd)
{
	unsigned n = (unsigned)fd;

	if (UNLIKELY(n >= CHUNK * CHUNKS))
		return NULL;
	struct object *_Atomic *chunk = atomic_load_explicit(&r3_chunks[n / CHUNK], memory_order_acquire);
	return chunk ? chunk + n % CHUNK : NULL;
}

/* What the table says, NULL: unknown. */
static inline struct object *table_get(int fd)
{
	struct object *_Atomic *at = table_entry(fd);
	return at ? atomic_load_explicit(at, memory_order_acquire) : NULL;
}

struct object *table_find(int fd);                /* also identifies unknown descriptors; NULL: not one of ours */
void table_add(int fd, struct object *object);    /* fd is a new descriptor of the object */
int object_made(const struct r3_new_fd *made);    /* takes over a new object; its descriptor */
void object_release(struct object *object);       /* it is dying */

/* Ends the protection of self->object. PAIRS-WITH: object_release(). */
static inline void object_leave(struct thread *self)
{
	struct object *object = self->object;

	self->object = NULL;
	COMPILER_BARRIER();
	if (UNLIKELY(atomic_load_explicit(&object->dying, memory_order_relaxed) == DYING))
		object_release(object);
}

uint64_t handle_of_fd(int fd);
void table_after_fork(void);
bool adopt_system(struct object *object);
/* A descriptor is about to be closed / was closed: brackets the real call. */
struct closing {
	struct object *object;
	int probe;
};
void closing_begin(int fd, struct closing *closing);
void closing_end(struct closing *closing);
void table_forget(int fd);                        /* the number means something else now */
void table_each(unsigned first, unsigned last, void (*each)(int fd, void *context), void *context);

/* descriptors.c */
struct msghdr;
void descriptors_received(struct msghdr *message);

/* ioctl.c */
int kvm_open(int flags);
bool copy_from_client(void *to, uint64_t from, size_t size); /* from an address that may be wrong */

/* irqfd.c */
bool irqfd_write(int fd, const void *buffer);

/* Whether a write was one to an irqfd of this process and is done. For all others this is a load and a comparison. */
static inline bool irqfd_written(int fd, const void *buffer, size_t length, const void *return_address)
{
	const volatile uint8_t *hints = r3_irqfd_hints;

	if (LIKELY(!hints) || length != sizeof(uint64_t) || (unsigned)fd >= R3_IRQFD_SLOTS || LIKELY(!hints[fd]))
		return false;
	return !from_core(return_address) && irqfd_write(fd, buffer);
}

/* resolve.c */
bool path_is_link(int directory, const char *path);
bool path_resolve(int directory, const char *path, bool follow, char *to); /* to: PATH_MAX bytes, the path without links, "." and ".." */

/* sysfs.c: what /dev/kvm and /sys/module/kvm* look like. */
enum path_kind { PATH_OTHER, PATH_DEVICE, PATH_FILE, PATH_DIRECTORY, PATH_ABSENT, PATH_CPUINFO };
enum path_kind path_classify(int directory, const char *path, bool follow, const char **contents);
enum path_kind path_classify_link(int directory, const char *path, const char **contents); /* of a symbolic link; PATH_OTHER for all else */
int path_open_file(const char *contents, int flags);
int descriptor_read_only(int fd, int flags);      /* the same number for an open file of the memfd that reads from its begin; flags of the client's open */

/* cpuinfo.c */
bool cpuinfo_open(int flags, int *fd);            /* false: the kernel's file does */

#pragma GCC visibility pop

static inline int fail(int error)
{
	errno = error;
	return -1;
}

static inline long fail_or(long result)
{
	if (UNLIKELY(result < 0)) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

#endif
