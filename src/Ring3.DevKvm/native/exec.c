/*
 * ring3-exec: starts a program with libring3.so in front of the C library, in place of itself.
 *
 * usage: ring3-exec [--direct] [--cpuid] [--trace=ioctl[:FILE]] [--stats] [--] PROGRAM [ARGS...]
 *        ring3-exec --version
 *
 * It is native so that the program inherits the caller's signal dispositions, limits and descriptors as they are.
 * Exit status: the program's; 64 bad usage; 66 the library is missing; 69 this machine lacks what an option needs; 74 the help cannot be written;
 * 126 the program cannot be used; 127 there is no such program.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "elf_file.h"
#include "stop.h"

enum { USAGE = 64, NO_LIBRARY = 66, UNAVAILABLE = 69, NO_OUTPUT = 74, UNUSABLE = 126, NO_PROGRAM = 127 };

static const char usage[] =
	"Usage: ring3 exec [options] [--] PROGRAM [ARGS...]\n"
	"\n"
	"Runs PROGRAM, and everything it starts, with Ring3 as its /dev/kvm.\n"
	"\n"
	"Options:\n"
	"  --direct              hand over each system call of PROGRAM, whatever it is; what is\n"
	"                        done by itself where a library cannot stand in front of it\n"
	"  --cpuid               show a processor that has virtualisation: for programs that\n"
	"                        look for vmx or svm; needs a processor whose CPUID can fault\n"
	"  --trace=ioctl[:FILE]  print each KVM call, to standard error or FILE\n"
	"  --stats               print KVM's counters when the program ends\n"
	"  -h, --help            show this text\n";

static int show(const char *text)
{
	if (fputs(text, stdout) < 0 || fflush(stdout) != 0)
		stop(NO_OUTPUT, "cannot write standard output: %s", strerror(errno));
	return 0;
}

static const char *set_env(const char *name, const char *value)
{
	if (setenv(name, value, 1) != 0)
		stop(UNUSABLE, "%s", strerror(errno));
	return value;
}

static void option_trace(const char *value)
{
	char path[PATH_MAX + 8], absolute[PATH_MAX];

	if (strncmp(value, "ioctl", 5) != 0 || (value[5] && value[5] != ':') || strcmp(value, "ioctl:") == 0)
		stop(USAGE, "--trace knows 'ioctl' and 'ioctl:FILE', not '%s'", value);
	if (value[5] == ':' && value[6] != '/') {
		/* The program may change its directory. */
		if (!getcwd(absolute, sizeof absolute))
			stop(UNUSABLE, "the current directory: %s", strerror(errno));
		if (snprintf(path, sizeof path, "ioctl:%s/%s", absolute, value + 6) >= (int)sizeof path)
			stop(USAGE, "--trace: the name is too long");
		value = path;
	}
	set_env("RING3_TRACE", value);
}

/* Whether the kernel can make CPUID fault; executing the program ends what this tries. */
static void option_cpuid(void)
{
	if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) != 0)
		stop(UNAVAILABLE, "--cpuid: this machine cannot make CPUID fault (cpuid_fault in /proc/cpuinfo): %s", strerror(errno));
	syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
	set_env("RING3_CPUID", "1");
}

/*
 * LD_PRELOAD cannot name a file whose path has a space or a colon, so a symbolic link to its directory stands for it: in the user's run-time
 * directory, which goes with the session, or else in a directory of the user's own in /tmp.
 */
static const char *plain_name_of(const char *directory)
{
	static char link[PATH_MAX];
	char at[PATH_MAX - 32], text[PATH_MAX];
	const char *run = getenv("XDG_RUNTIME_DIR");
	struct stat st;
	uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */

	for (const char *c = directory; *c; c++)
		hash = (hash ^ (unsigned char)*c) * 0x100000001b3;
	if (!run || *run != '/' || strpbrk(run, " :") || strlen(run) > 256 || access(run, W_OK | X_OK) != 0)
		run = "/tmp";
	snprintf(at, sizeof at, "%s/ring3-%u", run, (unsigned)geteuid());
	if ((mkdir(at, 0755) != 0 && errno != EEXIST) || lstat(at, &st) != 0)
		stop(NO_LIBRARY, "LD_PRELOAD cannot name %s, which has a space or a colon, and %s cannot be made: %s", directory, at, strerror(errno));
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022))
		stop(NO_LIBRARY, "LD_PRELOAD cannot name %s, which has a space or a colon, and %s belongs to somebody else", directory, at);
	snprintf(link, sizeof link, "%s/%016llx", at, (unsigned long long)hash);
	if (symlink(directory, link) != 0 && errno != EEXIST)
		stop(NO_LIBRARY, "LD_PRELOAD cannot name %s, which has a space or a colon, and %s cannot be made: %s", directory, link, strerror(errno));
	ssize_t n = readlink(link, text, sizeof text - 1);
	text[n < 0 ? 0 : n] = 0;
	if (strcmp(text, directory) != 0)
		stop(NO_LIBRARY, "%s does not lead to %s: remove it", link, directory);
	return link;
}

static char directory[PATH_MAX]; /* of this program and the libraries */

static void find_directory(void)
{
	ssize_t n = readlink("/proc/self/exe", directory, sizeof directory - 1);

	if (n <= 0)
		stop(NO_LIBRARY, "cannot find libring3.so: /proc is not mounted");
	directory[n] = 0;
	*strrchr(directory, '/') = 0;
}

/* Does not return. Names that the loader uses while FS is the program's have to be bound: direct/direct.h. */
static void execute_directly(const char *program, char **arguments)
{
	char loader[PATH_MAX + 32];
	size_t n = 0;

	while (arguments[n])
		n++;
	char **list = calloc(n + 3, sizeof *list);
	if (!list)
		stop(UNUSABLE, "%s", strerror(ENOMEM));
	snprintf(loader, sizeof loader, "%s/ring3-direct", directory);
	list[0] = loader;
	list[1] = (char *)program;
	memcpy(list + 2, arguments, n * sizeof *list);
	const char *now = getenv("LD_BIND_NOW");
	if (!now || !*now)
		set_env("LD_BIND_NOW", "ring3");
	execv(loader, list);
	stop(NO_LIBRARY, "%s: %s", loader, strerror(errno));
}

/* The library next to this program. */
static void preload(void)
{
	char library[PATH_MAX + 32], *list;
	const char *before = getenv("LD_PRELOAD"), *name = directory;

	find_directory();
	if (strpbrk(directory, " :"))
		name = plain_name_of(directory);
	snprintf(library, sizeof library, "%s/libring3.so", name);
	if (access(library, R_OK) != 0)
		stop(NO_LIBRARY, "cannot read %s: %s", library, strerror(errno));
	if (!before || !*before) {
		set_env("LD_PRELOAD", library);
		return;
	}
	/* Once is enough for a nested ring3 exec. */
	size_t length = strlen(library);
	if (strncmp(before, library, length) == 0 && (!before[length] || before[length] == ':' || before[length] == ' '))
		return;
	if (asprintf(&list, "%s:%s", library, before) < 0)
		stop(UNUSABLE, "%s", strerror(ENOMEM));
	set_env("LD_PRELOAD", list);
}

/* As execvp looks for it. */
static const char *find(const char *program)
{
	static char path[PATH_MAX];
	struct stat st;
	const char *search = getenv("PATH");

	if (!*program)
		stop(NO_PROGRAM, "there is no program with an empty name");
	if (strchr(program, '/'))
		return program;
	if (!search)
		search = "/usr/local/bin:/bin:/usr/bin";
	for (;;) {
		const char *end = strchrnul(search, ':');
		int n = snprintf(path, sizeof path, "%.*s%s%s", (int)(end - search), search, end == search ? "" : "/", program);
		if (n < (int)sizeof path && stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0)
			return path;
		if (!*end)
			break;
		search = end + 1;
	}
	stop(NO_PROGRAM, "%s: command not found", program);
}

/* The dynamic linker as the program: what it loads is its first argument that is no option; NULL: none. */
static const char *program_of_linker(char **arguments)
{
	static const char *const with_value[] = {
		"--argv0", "--audit", "--glibc-hwcaps-mask", "--glibc-hwcaps-prepend", "--inhibit-rpath", "--library-path", "--preload",
	};

	for (; arguments && *arguments; arguments++) {
		if (strncmp(*arguments, "--", 2) != 0)
			return *arguments;
		for (size_t i = 0; i < sizeof with_value / sizeof *with_value; i++) {
			if (strcmp(*arguments, with_value[i]) == 0 && arguments[1]) {
				arguments++;
				break;
			}
		}
	}
	return NULL;
}

static bool direct; /* the program makes its system calls itself */

static void check_elf(const char *path, int fd, char **arguments);

/* What the dynamic linker is asked to load: a name without a slash is searched as libraries are, and it says itself what it cannot use. */
static void check_loaded(const char *program)
{
	unsigned char identification[EI_NIDENT];
	struct elf elf;
	int fd = strchr(program, '/') ? open(program, O_RDONLY | O_CLOEXEC) : -1;

	if (fd < 0)
		return;
	if (pread(fd, identification, sizeof identification, 0) == EI_NIDENT && memcmp(identification, ELFMAG, SELFMAG) == 0) {
		elf_read(fd, &elf);
		if (elf.is_x86_64 && !elf_is_dynamic(&elf))
			stop(UNUSABLE, "%s: is statically linked, so the dynamic linker cannot load it", program);
		if (elf_needs_direct(&elf))
			direct = true; /* the linker and all that it loads */
	}
	close(fd);
}

/* arguments: of the program itself; NULL: something else executes it, so that it has to be one that loads the library. */
static void check_elf(const char *path, int fd, char **arguments)
{
	struct elf elf;

	elf_read(fd, &elf);
	if (!elf.is_x86_64)
		stop(UNUSABLE, "%s: is not an x86-64 program", path);
	if (elf_needs_direct(&elf)) {
		if (!arguments)
			stop(UNUSABLE, "%s: makes system calls itself (%s), so it has to be the program", path, elf.is_go ? "Go" : *elf.interpreter ? "musl" : "static");
		direct = true;
		return;
	}
	const char *program = *elf.interpreter ? NULL : program_of_linker(arguments);
	if (program)
		check_loaded(program);
}

static void check(const char *path, char **arguments, int depth)
{
	union {
		unsigned char identification[EI_NIDENT];
		char text[PATH_MAX];
	} head;
	struct stat st;
	char capability[64];

	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		stop(NO_PROGRAM, "%s: no such program", path);
	if (stat(path, &st) != 0)
		stop(errno == ENOENT ? NO_PROGRAM : UNUSABLE, "%s: %s", path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		stop(UNUSABLE, "%s: is a directory", path);
	if (access(path, X_OK) != 0)
		stop(UNUSABLE, "%s: %s", path, strerror(errno));
	if (((st.st_mode & S_ISUID) && st.st_uid != geteuid()) || ((st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) && st.st_gid != getegid()))
		stop(UNUSABLE, "%s: is set-uid or set-gid, so the system ignores LD_PRELOAD for it", path);
	if (geteuid() != 0 && getxattr(path, "security.capability", capability, sizeof capability) > 0)
		stop(UNUSABLE, "%s: has file capabilities, so the system ignores LD_PRELOAD for it", path);
	if (fd < 0)
		return; /* may be executed, not read: nothing more to see */
	memset(&head, 0, sizeof head);
	ssize_t n = read(fd, &head, sizeof head - 1);
	if (n > 2 && memcmp(head.text, "#!", 2) == 0) {
		char *interpreter = head.text + 2 + strspn(head.text + 2, " \t");
		interpreter[strcspn(interpreter, " \t\n")] = 0;
		if (depth < 4)
			check(interpreter, arguments, depth + 1);
	} else if (n < EI_NIDENT || memcmp(head.identification, ELFMAG, SELFMAG) != 0) {
		if (depth > 0 || n < 1 || memchr(head.text, 0, (size_t)n))
			stop(UNUSABLE, "%s: is not a program", path);
	} else {
		check_elf(path, fd, depth ? NULL : arguments);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	int i;

	for (i = 1; i < argc && argv[i][0] == '-'; i++) {
		if (strcmp(argv[i], "--") == 0) {
			i++;
			break;
		}
		if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-?") == 0)
			return show(usage);
		else if (strcmp(argv[i], "--version") == 0)
			return show("ring3-exec " RING3_VERSION "\n");
		else if (strncmp(argv[i], "--trace=", 8) == 0)
			option_trace(argv[i] + 8);
		else if (strcmp(argv[i], "--trace") == 0 && i + 1 < argc)
			option_trace(argv[++i]);
		else if (strcmp(argv[i], "--direct") == 0)
			direct = true;
		else if (strcmp(argv[i], "--cpuid") == 0)
			option_cpuid();
		else if (strcmp(argv[i], "--stats") == 0)
			set_env("RING3_STATS", "1");
		else
			stop(USAGE, "unknown option '%s' (see 'ring3 exec --help')", argv[i]);
	}
	if (i >= argc)
		stop(USAGE, "exec needs a program (see 'ring3 exec --help')");
	const char *program = find(argv[i]);
	check(program, argv + i + 1, 0);
	preload();
	if (direct)
		execute_directly(program, argv + i);
	execv(program, argv + i);
	if (errno == ENOEXEC) {
		/* A script without "#!", as the shell would run it. */
		char **shell = calloc((size_t)(argc - i) + 2, sizeof *shell);
		if (shell) {
			shell[0] = "/bin/sh";
			shell[1] = (char *)program;
			memcpy(shell + 2, argv + i + 1, (size_t)(argc - i) * sizeof *shell);
			execv(shell[0], shell);
		}
	}
	stop(errno == ENOENT ? NO_PROGRAM : UNUSABLE, "%s: %s", program, strerror(errno));
}
