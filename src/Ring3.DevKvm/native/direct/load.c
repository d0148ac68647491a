/*
 * ring3-direct: this library loads the program in its own process and begins it. What the host needs is loaded first, so that it lies in one
 * range of addresses, the zone.
 */
#include "direct.h"
#include "../elf_file.h"
#include "../stop.h"

#include <elf.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { UNAVAILABLE = 69, UNUSABLE = 126 };
#define STACK_BYTES (8ul << 20)
#define MOST_STACK_BYTES (1ul << 30)
#define MOST_MAPPINGS 4096

bool r3_direct;
const char *r3_program, *r3_loader;

/* ---- the zone ---- */

struct mapping {
	uintptr_t begin, end;
	bool executable, stack;
};

static size_t read_mappings(struct mapping *to, size_t most)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[PATH_MAX + 128], permissions[8];
	size_t n = 0;

	if (!maps)
		stop(UNUSABLE, "cannot read /proc/self/maps");
	while (n < most && fgets(line, sizeof line, maps)) {
		struct mapping *m = to + n;
		if (sscanf(line, "%lx-%lx %7s", &m->begin, &m->end, permissions) != 3)
			continue;
		m->executable = permissions[2] == 'x';
		m->stack = strstr(line, "[stack]") != NULL;
		n++;
	}
	fclose(maps);
	return n;
}

/*
 * From the lowest code of the host to the end of the address space, without what the loader's own file has (which runs nothing any more), and
 * without holes in which code of the client could come to lie.
 */
static void zone_make(uintptr_t own_code)
{
	static struct mapping mappings[MOST_MAPPINGS];
	size_t n = read_mappings(mappings, MOST_MAPPINGS), first = n, stack = n;

	for (size_t i = 0; i < n; i++) {
		if (mappings[i].stack)
			stack = i;
		bool own = own_code >= mappings[i].begin && own_code < mappings[i].end;
		if (mappings[i].executable && !own && mappings[i].begin < 0x7ffffffff000 && i < first)
			first = i;
	}
	if (stack == n || first >= stack || mappings[first].begin < 1ul << 46)
		stop(UNAVAILABLE, "a program that makes system calls itself needs a stack limit (ulimit -s) under which libraries lie above it");
	for (size_t i = first; i + 1 < stack; i++) {
		size_t gap = mappings[i + 1].begin - mappings[i].end;
		if (gap && mmap((void *)mappings[i].end, gap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
			stop(UNUSABLE, "cannot reserve addresses: %s", strerror(errno));
	}
	r3_zone_begin = mappings[first].begin;
}

/* ---- the client's first stack ---- */

struct stack {
	char *low, *at;
};

static void stack_make(struct stack *stack)
{
	struct rlimit limit;
	size_t bytes = STACK_BYTES;

	if (getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur > bytes)
		bytes = limit.rlim_cur > MOST_STACK_BYTES ? MOST_STACK_BYTES : limit.rlim_cur & ~4095ul;
	stack->low = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	if (stack->low == MAP_FAILED)
		stop(UNUSABLE, "no memory for a stack: %s", strerror(errno));
	mprotect(stack->low, 4096, PROT_NONE);
	stack->at = stack->low + bytes;
}

static char *push(struct stack *stack, const void *bytes, size_t n)
{
	stack->at -= n;
	memcpy(stack->at, bytes, n);
	return stack->at;
}

static size_t count(char *const *list)
{
	size_t n = 0;
	while (list[n])
		n++;
	return n;
}

/* A variable that is the loader's. LD_PRELOAD is for children, unless the program itself would take it. */
static bool is_hidden(const char *variable, const struct image *image)
{
	return strcmp(variable, "LD_BIND_NOW=ring3") == 0 || (image->dynamic && strncmp(variable, "LD_PRELOAD=", 11) == 0);
}

static const Elf64_auxv_t *own_auxiliaries(char *const *environment)
{
	while (*environment)
		environment++;
	return (const Elf64_auxv_t *)(environment + 1);
}

static uint64_t value_for_client(const Elf64_auxv_t *a, const struct image *image, uintptr_t base, const char *name, const char *random, const char *platform)
{
	switch (a->a_type) {
	case AT_PHDR: return image->headers;
	case AT_PHNUM: return image->header_count;
	case AT_PHENT: return sizeof(Elf64_Phdr);
	case AT_BASE: return base;
	case AT_ENTRY: return image->entry;
	case AT_EXECFN: return (uintptr_t)name;
	case AT_RANDOM: return (uintptr_t)random;
	case AT_PLATFORM: return (uintptr_t)platform;
	default: return a->a_un.a_val;
	}
}

static void stack_fill(struct stack *stack, const struct image *image, uintptr_t base, char **arguments, char **environment)
{
	size_t argument_count = count(arguments), variable_count = count(environment), auxiliary_count = 0, at = 0;
	const Elf64_auxv_t *own = own_auxiliaries(environment);
	const char *platform = (const char *)getauxval(AT_PLATFORM);
	char **pushed = malloc((argument_count + variable_count) * sizeof *pushed);

	while (own[auxiliary_count++].a_type != AT_NULL)
		;
	uint64_t *words = malloc((argument_count + variable_count + 3 + 2 * auxiliary_count) * sizeof *words);
	if (!pushed || !words)
		stop(UNUSABLE, "%s", strerror(ENOMEM));
	const char *name = push(stack, r3_program, strlen(r3_program) + 1);
	const char *random = push(stack, (void *)getauxval(AT_RANDOM), 16);
	platform = push(stack, platform ? platform : "x86_64", strlen(platform ? platform : "x86_64") + 1);
	for (size_t i = variable_count; i-- > 0;)
		pushed[argument_count + i] = is_hidden(environment[i], image) ? NULL : push(stack, environment[i], strlen(environment[i]) + 1);
	for (size_t i = argument_count; i-- > 0;)
		pushed[i] = push(stack, arguments[i], strlen(arguments[i]) + 1);
	words[at++] = argument_count;
	for (size_t i = 0; i < argument_count; i++)
		words[at++] = (uintptr_t)pushed[i];
	words[at++] = 0;
	for (size_t i = 0; i < variable_count; i++)
		if (pushed[argument_count + i])
			words[at++] = (uintptr_t)pushed[argument_count + i];
	words[at++] = 0;
	for (size_t i = 0; i < auxiliary_count; i++) {
		words[at++] = own[i].a_type;
		words[at++] = value_for_client(own + i, image, base, name, random, platform);
	}
	stack->at = (char *)(((uintptr_t)stack->at - at * sizeof *words) & ~15ul);
	memcpy(stack->at, words, at * sizeof *words);
	free(words);
	free(pushed);
}

/* ---- the beginning ---- */

static bool dispatch_is_possible(void)
{
	static const char allow; /* SYSCALL_DISPATCH_FILTER_ALLOW */
	return prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 4096, 4096, &allow) == 0 &&
		prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, 0, 0, 0) == 0;
}

static void load_interpreter(int fd, const struct image *image, struct image *interpreter)
{
	char path[PATH_MAX] = "";
	const char *why;

	if (pread(fd, path, image->interpreter_size, (off_t)image->interpreter) != (ssize_t)image->interpreter_size)
		stop(UNUSABLE, "%s: cannot be read", r3_program);
	int from = open(path, O_RDONLY | O_CLOEXEC);
	if (from < 0)
		stop(UNUSABLE, "%s: %s", path, strerror(errno));
	int error = image_load(from, interpreter, &why);
	if (error)
		stop(UNUSABLE, "%s: %s: %s", path, why, strerror(error));
	close(from);
}

/* SIGSYS is nobody else's. */
static void direct_begin_signals(void)
{
	struct sigaction action = { .sa_sigaction = direct_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };

	sigemptyset(&action.sa_mask);
	if (NEXT(sigaction)(SIGSYS, &action, NULL) != 0)
		stop(UNUSABLE, "SIGSYS: %s", strerror(errno));
}

/* The first thread's block is part of its stack. */
static _Noreturn __attribute__((noinline)) void begin(uintptr_t entry, const struct stack *stack)
{
	char room[2 * BLOCK_BYTES];
	char *block = (char *)(((uintptr_t)room + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1));
	struct direct *self = block_prepare(block); /* the first: there is room */
	struct kernel_ucontext *context = &self->start.context;

	memset(context, 0, sizeof *context);
	context->flags = 2 | 4; /* UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS */
	context->registers[REG_RIP] = (greg_t)entry;
	context->registers[REG_RSP] = (greg_t)stack->at;
	context->registers[REG_EFL] = 0x202;
	context->registers[REG_CSGSFS] = 0x33 | (0x2bll << 48);
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, 0, (long)&context->mask, sizeof context->mask, 0, 0);
	context->mask &= ~(SIGNAL_BIT(SIGSYS) | SIGNAL_BIT(RUNTIME_SIGNAL));
	begin_main(self);
}

EXPORT _Noreturn void r3_direct_main(int argc, char **argv, char **environment, uintptr_t own_code)
{
	struct image image, interpreter;
	struct stack stack;
	struct elf elf;
	const char *why;
	char *absolute;

	if (argc < 3)
		stop(64, "usage: ring3-direct PROGRAM NAME [ARGS...]");
	int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		stop(UNUSABLE, "%s: %s", argv[1], strerror(errno));
	r3_loader = realpath("/proc/self/exe", NULL);
	absolute = realpath(argv[1], NULL);
	r3_program = absolute ? absolute : argv[1];
	elf_read(fd, &elf);
	entry_prepare();
	if (!dispatch_is_possible())
		stop(UNAVAILABLE, "%s: makes system calls itself, and this kernel has no Syscall User Dispatch (Linux 5.11): %s", argv[1], strerror(errno));
	r3_direct = true;
	if (r3_cpuid)
		signals_stand_in();
	track();
	int error = core_load();
	if (error)
		stop(UNUSABLE, "the core does not start: %s", strerror(error));
	zone_make(own_code);
	error = image_load(fd, &image, &why);
	if (error)
		stop(UNUSABLE, "%s: %s: %s", argv[1], why, strerror(error));
	image.dynamic = elf_is_dynamic(&elf);
	uintptr_t entry = image.entry, base = 0;
	if (image.interpreter_size) {
		load_interpreter(fd, &image, &interpreter);
		entry = interpreter.entry;
		base = interpreter.bias;
	}
	close(fd);
	break_prepare(image.end);
	stack_make(&stack);
	stack_fill(&stack, &image, base, argv + 2, environment);
	prctl(PR_SET_NAME, basename(strdup(r3_program)));
	direct_begin_signals();
	begin(entry, &stack);
}
