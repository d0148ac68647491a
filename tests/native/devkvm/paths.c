/* Every name that leads to /dev/kvm is it. Where Ring3 runs, the kernel's own device, which may be there as well, must not be met. */
#include "test.h"

#include <limits.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>

static char directory[] = "/tmp/ring3-paths-XXXXXX";

static bool under_ring3(void)
{
	const char *list = getenv("LD_PRELOAD");
	return list && strstr(list, "libring3.so");
}

static void check_kvm(int fd)
{
	char link[32], name[64] = "";

	CHECK(fd >= 0);
	CHECK(ioctl(fd, KVM_GET_API_VERSION, 0) == 12);
	if (under_ring3()) {
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		CHECK(readlink(link, name, sizeof name - 1) > 0 && strncmp(name, "/memfd:kvm", 10) == 0);
	}
}

static void is_kvm(int at, const char *path)
{
	struct stat st;
	struct statx stx;
	int fd;
	FILE *f;

	fprintf(stderr, "%s\n", path);
	check_kvm(fd = openat(at, path, O_RDWR | O_CLOEXEC));
	CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0 && close(fd) == 0);
	check_kvm(fd = openat(at, path, O_RDWR | O_CREAT, 0600));
	CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0 && close(fd) == 0);
	CHECK(fstatat(at, path, &st, 0) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232));
	CHECK(statx(at, path, 0, STATX_BASIC_STATS, &stx) == 0 && S_ISCHR(stx.stx_mode) && stx.stx_rdev_major == 10 && stx.stx_rdev_minor == 232);
	CHECK(faccessat(at, path, R_OK | W_OK, 0) == 0);
	if (at != AT_FDCWD)
		return;
	check_kvm(fd = open(path, O_RDONLY));
	CHECK(close(fd) == 0);
	check_kvm(fd = open64(path, O_RDWR));
	CHECK(close(fd) == 0);
	CHECK((f = fopen(path, "r+e")) != NULL);
	check_kvm(fileno(f));
	CHECK(fclose(f) == 0);
	CHECK(stat(path, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232));
	CHECK(access(path, R_OK | W_OK) == 0);
	char *real = realpath(path, NULL);
	CHECK(real && strcmp(real, "/dev/kvm") == 0);
	free(real);
}

static void all_names(void)
{
	static const char *const names[] = {
		"/dev/kvm", "//dev//kvm", "/dev/./kvm", "/dev/../dev/./kvm", "/../dev/kvm", "/dev/fd/../../../dev/kvm", "link", "link-to-link", "relative", "dev/kvm", "dev/../dev/kvm", "./link", "kvm",
	};
	struct stat st;
	char text[PATH_MAX];

	CHECK(symlink("/dev/kvm", "link") == 0 && symlink("link", "link-to-link") == 0 && symlink("../../dev/./kvm", "relative") == 0);
	CHECK(symlink("/dev", "dev") == 0 && symlink("dev/kvm", "kvm") == 0);
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
		if (strncmp(names[i], "/dev/fd/", 8) != 0 || access("/dev/fd/..", F_OK) == 0)
			is_kvm(AT_FDCWD, names[i]);
	}
	int dev = open("/dev", O_RDONLY | O_DIRECTORY), here = open(".", O_RDONLY | O_DIRECTORY);
	CHECK(dev >= 0 && here >= 0);
	is_kvm(dev, "kvm");
	is_kvm(dev, "./kvm");
	is_kvm(dev, "../dev/kvm");
	is_kvm(here, "link");
	is_kvm(here, "dev/kvm");
	CHECK(chdir("/dev") == 0);
	is_kvm(AT_FDCWD, "kvm");
	is_kvm(AT_FDCWD, "../dev/kvm");
	CHECK(chdir("/") == 0);
	is_kvm(AT_FDCWD, "dev/kvm");
	CHECK(fchdir(here) == 0);

	/* What does not follow a link sees the link. */
	CHECK(lstat("link", &st) == 0 && S_ISLNK(st.st_mode));
	CHECK(lstat("kvm", &st) == 0 && S_ISLNK(st.st_mode));
	CHECK(fstatat(here, "kvm", &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode));
	CHECK(readlink("link", text, sizeof text) == 8);
	CHECK_ERROR(open("link", O_RDWR | O_NOFOLLOW), ELOOP);
	CHECK_ERROR(open("kvm", O_RDWR | O_NOFOLLOW), ELOOP);
	CHECK_ERROR(open("link", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
	CHECK_ERROR(open("link", O_RDONLY | O_DIRECTORY), ENOTDIR);

	/* Names that only look like it. */
	CHECK(mkdir("other", 0700) == 0 && symlink("loop", "loop") == 0 && symlink("nowhere", "dangling") == 0);
	CHECK_ERROR(open("other/kvm", O_RDWR), ENOENT);
	CHECK(open("/dev/kvm/kvm", O_RDWR) == -1);
	CHECK_ERROR(open("loop", O_RDWR), ELOOP);
	CHECK_ERROR(open("dangling", O_RDWR), ENOENT);
	CHECK_ERROR(stat("dangling", &st), ENOENT);
	CHECK_ERROR(access("dangling", F_OK), ENOENT);
	const char *volatile nothing = NULL;
	CHECK_ERROR(open(nothing, O_RDWR), EFAULT);
	CHECK_ERROR(open("", O_RDWR), ENOENT);
	int fd = open("dangling", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && close(fd) == 0 && unlink("nowhere") == 0);
	CHECK(close(dev) == 0 && close(here) == 0);
	for (unsigned i = 0; i < 8; i++)
		unlinkat(AT_FDCWD, ((const char *const[]){ "link", "link-to-link", "relative", "dev", "kvm", "loop", "dangling", "other" })[i], i == 7 ? AT_REMOVEDIR : 0);
}

static void in_directory(void (*run)(void))
{
	CHECK(mkdtemp(directory) != NULL && chdir(directory) == 0);
	run();
	CHECK(chdir("/") == 0 && rmdir(directory) == 0);
}

static void names(void)
{
	in_directory(all_names);
}

/* The same on a machine without the kernel's device. */
static void names_without_a_device(void)
{
	if (!under_ring3())
		SKIP("the device of the kernel is the one that is looked for");
	if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
		SKIP("no mount namespaces");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || mount("none", "/dev", "tmpfs", 0, NULL) != 0)
		SKIP("cannot mount");
	CHECK(syscall(SYS_faccessat, AT_FDCWD, "/dev/kvm", F_OK) == -1);
	in_directory(all_names);
	CHECK(syscall(SYS_faccessat, AT_FDCWD, "/dev/kvm", F_OK) == -1);
}

/* An open that has nothing to do with it leaves errno and the descriptor alone. */
static void others(void)
{
	CHECK(mkdtemp(directory) != NULL);
	for (int i = 0; i < 1000; i++) {
		int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		errno = 77;
		int again = open("/dev/null", O_RDONLY | O_CLOEXEC);
		CHECK(errno == 77 && again == fd + 1 && close(again) == 0 && close(fd) == 0);
		CHECK_ERROR(openat(-1, "kvm", O_RDONLY), EBADF);
	}
	CHECK(rmdir(directory) == 0);
}

static const struct test tests[] = { { "names", names }, { "names_without_a_device", names_without_a_device }, { "others", others } };
MAIN(tests)
