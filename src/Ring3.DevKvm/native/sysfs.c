/*
 * The paths that a client looks at: /dev/kvm, with --cpuid /proc/cpuinfo, and the module parameters below /sys/module/kvm*. Parameters say what Ring3 does; of
 * kvm_amd and kvm_intel there is the one that belongs to the host's processor, as clients choose by CPUID. Some can be set with
 * RING3_PARAMETERS=name=value,...: ModuleParameters.cs reads the same variable.
 */
#include "ring3.h"

#include <cpuid.h>
#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct parameter {
	const char *name, *value;
};

/* What RING3_PARAMETERS can set. */
static const char settable[] = "eager_page_split nx_huge_pages nx_huge_pages_recovery_period_ms nx_huge_pages_recovery_ratio pml";

static const struct parameter kvm_parameters[] = {
	{ "eager_page_split", "Y\n" },        { "enable_pmu", "N\n" },          { "enable_vmware_backdoor", "N\n" },
	{ "force_emulation_prefix", "0\n" },  { "halt_poll_ns", "0\n" },        { "halt_poll_ns_grow", "2\n" },
	{ "halt_poll_ns_grow_start", "10000\n" }, { "halt_poll_ns_shrink", "0\n" }, { "ignore_msrs", "N\n" },
	{ "kvmclock_periodic_sync", "Y\n" },  { "min_timer_period_us", "200\n" }, { "mitigate_smt_rsb", "N\n" },
	{ "mmio_caching", "Y\n" },            { "nx_huge_pages", "N\n" }, { "nx_huge_pages_recovery_period_ms", "0\n" },
	{ "nx_huge_pages_recovery_ratio", "60\n" }, { "pi_inject_timer", "0\n" }, { "report_ignored_msrs", "Y\n" },
	{ "tdp_mmu", "Y\n" },                 { "tsc_tolerance_ppm", "250\n" }, { "vector_hashing", "Y\n" },
	{ NULL, NULL },
};

static const struct parameter amd_parameters[] = {
	{ "avic", "N\n" }, { "nested", "0\n" }, { "npt", "Y\n" }, { "nrips", "1\n" }, { "sev", "N\n" }, { "sev_es", "N\n" },
	{ "vgif", "0\n" }, { "vls", "0\n" },    { "vnmi", "N\n" }, { NULL, NULL },
};

static const struct parameter intel_parameters[] = {
	{ "emulate_invalid_guest_state", "Y\n" }, { "enable_apicv", "N\n" }, { "enable_shadow_vmcs", "N\n" }, { "ept", "Y\n" },
	{ "eptad", "Y\n" }, { "flexpriority", "N\n" }, { "nested", "N\n" }, { "pml", "Y\n" }, { "preemption_timer", "N\n" },
	{ "unrestricted_guest", "Y\n" }, { "vnmi", "Y\n" }, { "vpid", "Y\n" }, { NULL, NULL },
};

static bool host_is_intel(void)
{
	unsigned a, b, c, d;
	return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx;
}

static bool word_is_one_of(const char *word, const char *list)
{
	size_t n = strlen(word);

	for (const char *at = list; (at = strstr(at, word)); at++)
		if ((at == list || at[-1] == ' ') && (at[n] == ' ' || !at[n]))
			return true;
	return false;
}

/* What the file says: the default, or the value of RING3_PARAMETERS if the core understands it too. */
static const char *contents_of(const struct parameter *p)
{
	static __thread char text[32];
	const char *item = word_is_one_of(p->name, settable) ? getenv("RING3_PARAMETERS") : NULL;
	size_t n = strlen(p->name);

	for (; item; item = strchr(item, ',')) {
		item += strspn(item, ", ");
		if (strncmp(item, p->name, n) != 0 || item[n] != '=')
			continue;
		const char *value = item + n + 1;
		size_t length = strcspn(value, ", ");
		if (!length || length >= sizeof text - 1)
			continue;
		for (size_t i = 0; i < length; i++)
			text[i] = (char)tolower((unsigned char)value[i]);
		text[length] = 0;
		if (p->value[0] != 'Y' && p->value[0] != 'N') {
			if (strspn(text, "0123456789") == length)
				return strcat(text, "\n");
		} else if (word_is_one_of(text, "1 y yes on t true force")) {
			return "Y\n";
		} else if (word_is_one_of(text, "0 n no off f false never auto")) {
			return "N\n";
		}
	}
	return p->value;
}

static enum path_kind classify_module(const char *rest, const char **contents)
{
	const struct parameter *p;

	/* rest: what follows "/sys/module/kvm" */
	if (strncmp(rest, "_amd", 4) == 0 && (rest[4] == '/' || !rest[4])) {
		p = host_is_intel() ? NULL : amd_parameters;
		rest += 4;
	} else if (strncmp(rest, "_intel", 6) == 0 && (rest[6] == '/' || !rest[6])) {
		p = host_is_intel() ? intel_parameters : NULL;
		rest += 6;
	} else if (rest[0] == '/' || !rest[0]) {
		p = kvm_parameters;
	} else {
		return PATH_OTHER;
	}
	if (!p)
		return PATH_ABSENT;
	if (!*rest || strcmp(rest, "/") == 0 || strcmp(rest, "/parameters") == 0 || strcmp(rest, "/parameters/") == 0)
		return PATH_DIRECTORY;
	if (strncmp(rest, "/parameters/", 12) != 0)
		return PATH_ABSENT;
	for (; p->name; p++) {
		if (strcmp(rest + 12, p->name) == 0) {
			*contents = contents_of(p);
			return PATH_FILE;
		}
	}
	return PATH_ABSENT;
}

static enum path_kind classify_absolute(const char *path, const char **contents)
{
	if (strcmp(path, "/dev/kvm") == 0)
		return PATH_DEVICE;
	if (UNLIKELY(r3_cpuid) && strcmp(path, "/proc/cpuinfo") == 0)
		return PATH_CPUINFO;
	if (strncmp(path, "/sys/module/kvm", 15) == 0)
		return classify_module(path + 15, contents);
	return PATH_OTHER;
}

/* Whether a component is one of the names that our paths have. A link of any other name is looked at when the kernel's answer is known. */
static bool mentions_kvm(const char *path)
{
	static const char *const names[] = { "", "_amd", "_intel" };

	for (const char *at = path; (at = strstr(at, "kvm")) != NULL; at += 3) {
		if (at != path && at[-1] != '/')
			continue;
		size_t n = strcspn(at + 3, "/");
		for (size_t i = 0; i < sizeof names / sizeof *names; i++)
			if (strlen(names[i]) == n && memcmp(at + 3, names[i], n) == 0)
				return true;
	}
	return strncmp(path, "parameters", 10) == 0;
}

static bool ends_with_cpuinfo(const char *path)
{
	size_t n = strlen(path);
	return n >= 7 && memcmp(path + n - 7, "cpuinfo", 7) == 0;
}

/* Quick for everything else: a search in the path's text. */
enum path_kind path_classify(int directory, const char *path, bool follow, const char **contents)
{
	char absolute[PATH_MAX];
	enum path_kind kind;

	if (!path || LIKELY(!mentions_kvm(path) && !(r3_cpuid && ends_with_cpuinfo(path))))
		return PATH_OTHER;
	if (path[0] == '/' && (kind = classify_absolute(path, contents)) != PATH_OTHER && !strstr(path, "/."))
		return kind;
	if (r3_paths_hidden)
		return PATH_OTHER;
	return path_resolve(directory, path, follow, absolute) ? classify_absolute(absolute, contents) : PATH_OTHER;
}

enum path_kind path_classify_link(int directory, const char *path, const char **contents)
{
	char absolute[PATH_MAX];

	if (!path || !path_is_link(directory, path) || !path_resolve(directory, path, true, absolute))
		return PATH_OTHER;
	return classify_absolute(absolute, contents);
}

int path_open_file(const char *contents, int flags)
{
	if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
		return fail(EEXIST);
	if (flags & O_DIRECTORY)
		return fail(ENOTDIR);
	if ((flags & O_ACCMODE) != O_RDONLY)
		return fail(EACCES);
	int fd = memfd_create("kvm-parameter", MFD_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t written = pwrite(fd, contents, strlen(contents), 0);
	(void)written;
	return descriptor_read_only(fd, flags);
}

/* As sysfs and procfs would give it. */
int descriptor_read_only(int fd, int flags)
{
	char link[32];

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	int reader = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | (flags & O_CLOEXEC));
	if (reader >= 0) {
		syscall(SYS_dup3, reader, fd, flags & O_CLOEXEC);
		syscall(SYS_close, reader);
	} else if (!(flags & O_CLOEXEC)) {
		syscall(SYS_fcntl, fd, F_SETFD, 0);
	}
	return fd;
}
