/*
 * Programs that make system calls themselves (static, Go): loaded beside the core, their system calls handed over by Syscall User Dispatch.
 *
 *   load.c, image.c   the program, its stack and what it is told at its start
 *   entry.c           signal frames in and out; the only code that runs with the client's FS
 *   calls.c, paths.c  what becomes of a system call
 *   signals.c         the client's handlers and frames
 *   clone.c           clone, exit
 *   processes.c       fork, vfork, exec
 *
 * A thread of the client is a thread of the host's C library with its stack and its thread-local storage; FS is what distinguishes them:
 *
 *   client code       FS, RSP and all registers are the client's
 *   dispatch          in the handler of SIGSYS, on the alternate stack, which is part of the host thread's stack. FS is the client's
 *   host              there, with the host's FS, and inside (ring3.h): the interposer's functions and the core
 *
 * Invariants
 *   - The kernel hands over the system calls of all code outside the zone: one range of addresses with everything of the host that has been
 *     mapped before the client starts. So the selector never changes, and threads, handlers and children can share it.
 *   - The client's handlers start from client code only. A signal that comes in dispatch is held; the way back to the client looks for it.
 *     A signal that comes in host is deferred as in any client (../signals.c).
 *   - The kernel has SIGSYS and the runtime's signal unblocked in client code, whatever mask the client asks for.
 */
#ifndef RING3_DIRECT_H
#define RING3_DIRECT_H

#include "../ring3.h"

#include <ucontext.h>

/* A block is aligned to its size, so the stack pointer of a handler leads to its thread: guard page, struct direct, alternate stack, first frames. */
#define BLOCK_BYTES (1ul << 20)
#define GUARD_BYTES 4096ul
#define DIRECT_BYTES (32ul << 10)
#define FIRST_FRAMES_BYTES (128ul << 10)
#define CLIENT_FPU_BYTES (16ul << 10)

/* As the kernel pushes it. */
struct kernel_ucontext {
	unsigned long flags;
	void *link;
	stack_t stack;
	greg_t registers[23];
	void *fpu;
	uint64_t reserved[8];
	kernel_sigset mask;
};

struct kernel_frame {
	const void *restorer;
	struct kernel_ucontext context;
	siginfo_t info;
};

struct held {
	int sig;
	siginfo_t info;
};
#define MOST_HELD 4
#define FLAG_RESTORER 0x04000000

typedef void (*handler_function)(int, siginfo_t *, void *);

struct direct {
	volatile int held_count;                  /* entry.c knows where it is */
	volatile int in_host;
	volatile int in_vfork;                    /* it is a child of vfork that runs here */
	uintptr_t host_fs, client_fs;
	struct held held[MOST_HELD];
	stack_t own_stack, client_stack;          /* alternate stacks: of the block, and what the client thinks */
	int *clear_tid, *set_tid, *parent_tid;    /* set_tid_address; CLONE_CHILD_SETTID, CLONE_PARENT_SETTID */
	pid_t tid;
	char **lists[2];                          /* of an execve */
	bool is_leader;                           /* the process's first thread */
	bool strict;                              /* SECCOMP_MODE_STRICT */
	_Atomic uint32_t began;                   /* futex: the thread is on its way into the client */
	void *way_out[8];                         /* where SYS_exit goes on: entry.c */
	struct kernel_frame start;                /* how a new thread begins */
	_Alignas(64) uint8_t fpu[CLIENT_FPU_BYTES];
};
_Static_assert(sizeof(struct direct) <= DIRECT_BYTES, "struct direct");
_Static_assert(offsetof(struct direct, held_count) == 0, "entry.c");

#pragma GCC visibility push(hidden)

static inline struct direct *direct_self(void)
{
	return (struct direct *)(((uintptr_t)__builtin_frame_address(0) & ~(BLOCK_BYTES - 1)) + GUARD_BYTES);
}

/* entry.c */
extern uintptr_t r3_zone_begin;
uintptr_t fs_read(void);
void fs_write(uintptr_t base);
void entry_prepare(void);
long window_call(struct direct *self, const long *call); /* number and six arguments; RESTART: a signal is held, the call was not made */
#define RESTART (-100000l)
_Noreturn void finish(struct direct *self, struct kernel_ucontext *context);
_Noreturn void resume(struct kernel_ucontext *context); /* rt_sigreturn to a frame that is ready */
long vfork_call(long flags, int *parent_tid, int *child_tid, uintptr_t tls, struct kernel_ucontext *context);
int leave_begin(void **way_out) __attribute__((returns_twice));                      /* as setjmp */
_Noreturn void leave_for(void **way_out, long status);
bool copy_guarded(void *to, const void *from, size_t size); /* false: part of it is not mapped */
bool dispatch_on(void);

extern const char entry_restorer[], entry_copy_instruction[], entry_copy_failed[], entry_window_begin[], entry_window_syscall[];
extern const char entry_window_abort[], entry_finish_begin[], entry_finish_syscall[], entry_finish_retry[];

/* signals.c */
void end_by_fault(void);
size_t fpu_bytes(const void *fpu);
void deliver(struct direct *self, struct kernel_ucontext *context, int sig, siginfo_t *info);
long client_sigaction(const struct direct *self, int sig, const void *new, void *old, size_t size);
long client_sigprocmask(struct kernel_ucontext *context, int how, const void *new, void *old, size_t size);
long client_sigaltstack(struct direct *self, const struct kernel_ucontext *context, const stack_t *new, stack_t *old);
bool client_sigreturn(struct direct *self, struct kernel_ucontext *context);

/* calls.c */
void dispatch(struct direct *self, struct kernel_ucontext *context, int number);
void host_begin(struct direct *self);
void host_end(struct direct *self);
/* Of a function of the C library: -errno. Not inline: a compiler may take the address of errno where FS is still the client's. */
long host_result(long result);
#define HOST(self, call) \
	({ \
		host_begin(self); \
		long result_ = host_result((long)(call)); \
		host_end(self); \
		result_; \
	})

/* paths.c */
const char *path_of_client(char *to, long from);         /* to: PATH_MAX bytes; NULL: it cannot be read, or is too long */
bool path_is_own_program(const char *path);               /* /proc/self/exe */
long call_of_paths(struct direct *self, long *c); /* c: the number and the arguments, which may be changed */

/* clone.c */
long client_clone(struct direct *self, struct kernel_ucontext *context, const long *c);
_Noreturn void client_exit(struct direct *self, long status);
_Noreturn void begin_main(struct direct *self);
void threads_after_fork(struct direct *self);
struct direct *block_prepare(void *block);              /* NULL: there are too many */
bool block_is_known(const struct direct *self);

/* processes.c */
struct clone_call {
	unsigned long flags;
	uintptr_t stack, tls;
	int *pidfd, *parent_tid, *child_tid;
	int signal;
};
long client_fork(struct direct *self, struct kernel_ucontext *context, const struct clone_call *call);
long client_vfork(struct direct *self, struct kernel_ucontext *context, const struct clone_call *call);
long client_exec(struct direct *self, long *c);

/* image.c */
struct image {
	uintptr_t end, bias, entry, headers;
	size_t header_count;
	bool dynamic;                             /* it loads libraries */
	uint64_t interpreter, interpreter_size;   /* in the file; size 0: there is none */
};
int image_load(int fd, struct image *image, const char **why); /* 0, or an errno */
void break_prepare(uintptr_t end);
long client_brk(uintptr_t to);

/* load.c */
extern const char *r3_program; /* its absolute path */
extern const char *r3_loader;  /* ring3-direct; NULL: unknown */

#pragma GCC visibility pop

#endif
