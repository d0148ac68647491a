/* The C library's functions by name: a client that looks them up through a handle finds KVM as one that links to them. */
#include "test.h"

#include <dlfcn.h>

static void *library(const char *name)
{
	void *handle = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
	if (!handle)
		handle = dlopen(name, RTLD_NOW);
	CHECK(handle != NULL);
	return handle;
}

/* A guest exit with functions that only the handle gave. */
static void use(void *(*find)(void *, const char *), void *handle)
{
	int (*open_)(const char *, int, ...) = find(handle, "open");
	int (*ioctl_)(int, unsigned long, ...) = find(handle, "ioctl");
	void *(*mmap_)(void *, size_t, int, int, int, off_t) = find(handle, "mmap");
	int (*close_)(int) = find(handle, "close");
	struct machine m;

	CHECK(open_ && ioctl_ && mmap_ && close_);
	m.kvm = open_("/dev/kvm", O_RDWR | O_CLOEXEC);
	CHECK(m.kvm >= 0);
	CHECK(ioctl_(m.kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION);
	m.vm = ioctl_(m.kvm, KVM_CREATE_VM, 0);
	CHECK(m.vm >= 0);
	m.memory = mmap_(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(m.memory != MAP_FAILED);
	memcpy(m.memory + 0x1000, GUEST_OUT, sizeof GUEST_OUT);
	set_slot(&m, m.memory, MEMORY_BYTES);
	add_vcpu(&m);
	CHECK(ioctl_(m.vcpu, KVM_RUN, 0) == 0);
	CHECK(m.run->exit_reason == KVM_EXIT_IO);
	CHECK(munmap(m.run, m.run_bytes) == 0);
	CHECK(close_(m.vcpu) == 0 && close_(m.vm) == 0 && close_(m.kvm) == 0);
	CHECK_ERROR(ioctl_(m.kvm, KVM_GET_API_VERSION, 0), EBADF);
}

static void *by_name(void *handle, const char *name)
{
	return dlsym(handle, name);
}

static void *by_version(void *handle, const char *name)
{
	return dlvsym(handle, name, "GLIBC_2.2.5");
}

/* dlsym as a client finds it that looks even that up. */
static void *by_found_name(void *handle, const char *name)
{
	void *(*find)(void *, const char *) = dlsym(library("libc.so.6"), "dlsym");
	return find(handle, name);
}

static void handle_of_the_c_library(void)
{
	use(by_name, library("libc.so.6"));
}

/* A lookup through a library goes through what it depends on, too. */
static void handle_of_a_dependent_library(void)
{
	use(by_name, library("libpthread.so.0"));
}

static void handle_of_the_program(void)
{
	use(by_name, dlopen(NULL, RTLD_NOW));
}

static void with_a_version(void)
{
	use(by_version, library("libc.so.6"));
}

static void lookup_looked_up(void)
{
	use(by_found_name, library("libc.so.6"));
}

/* What a lookup says is the C library's for everything else: results, dlerror(), and the special handles. */
static void other_lookups(void)
{
	void *libc = library("libc.so.6");

	dlerror();
	CHECK(dlsym(libc, "qsort") == (void *)qsort);
	CHECK(dlerror() == NULL);
	CHECK(dlsym(libc, "open") != NULL);
	CHECK(dlerror() == NULL);
	CHECK(dlsym(libc, "no_such_function") == NULL);
	CHECK(strstr(dlerror(), "no_such_function") != NULL);
	CHECK(dlerror() == NULL);
	CHECK(dlvsym(libc, "open", "GLIBC_9.9") == NULL);
	CHECK(strstr(dlerror(), "GLIBC_9.9") != NULL);
	CHECK(dlvsym(libc, "qsort", "GLIBC_2.2.5") == (void *)qsort);
	CHECK(dlsym(RTLD_DEFAULT, "open") == (void *)open);
	/* The program is the first of all objects, so what comes next to it is what it is linked to. */
	CHECK(dlsym(RTLD_NEXT, "open") == (void *)open);
	CHECK(dlsym(RTLD_DEFAULT, "main") == dlsym(dlopen(NULL, RTLD_NOW), "main"));
	dlerror();
	CHECK(dlsym(RTLD_NEXT, "no_such_function") == NULL);
	CHECK(dlerror() != NULL);
}

static const struct test tests[] = {
	{ "handle_of_the_c_library", handle_of_the_c_library },
	{ "handle_of_a_dependent_library", handle_of_a_dependent_library },
	{ "handle_of_the_program", handle_of_the_program },
	{ "with_a_version", with_a_version },
	{ "lookup_looked_up", lookup_looked_up },
	{ "other_lookups", other_lookups },
};
MAIN(tests)
