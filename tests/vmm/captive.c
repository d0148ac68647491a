// What a guest that owned the machine's process would try: in every one of its threads, on a signal.
// As a library (LD_PRELOAD): handlers that try, and write a line "THREAD WHAT ERRNO" each to the file that CAPTIVE_LOG names; "THREAD end" is the last.
// As a program: captive PID SIGNAL sends every thread of a process the signal and prints how many there are.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOWHERE "/nonexistent/file"
enum { tries = 60, foreign = 61 };

#ifdef LIBRARY
static int output;

static void say(const char *what, long result)
{
	char line[96];
	int error = result == -1 ? errno : 0;
	int n = snprintf(line, sizeof line, "%ld %s %d\n", syscall(SYS_gettid), what, error);
	if (write(output, line, n) != n)
		_exit(99);
}

#define TRY(what, ...) say(what, syscall(__VA_ARGS__))

// Every one of them does something, or fails for another reason than permission, in a process that is not confined, whoever's it is.
static void attempt(int signal)
{
	int saved = errno;
	char buffer[256];
	char *none[] = { NULL };
	struct stat status;
	struct rlimit limit;
	pid_t parent = getppid();
	(void)signal;
	TRY("files open", SYS_open, "/etc/passwd", O_RDONLY, 0);
	TRY("files openat", SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
	TRY("files openat-proc", SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY, 0);
	TRY("files creat", SYS_creat, getenv("CAPTIVE_FILE"), 0600);
	TRY("files unlink", SYS_unlink, getenv("CAPTIVE_VICTIM"));
	TRY("rename", SYS_rename, getenv("CAPTIVE_FILE"), getenv("CAPTIVE_TO"));
	TRY("openat2", SYS_openat2, AT_FDCWD, "/etc/passwd", NULL, 0);
	TRY("execve", SYS_execve, NOWHERE, none, none);
	TRY("execveat", SYS_execveat, -1, "", none, none, AT_EMPTY_PATH);
	TRY("socket-inet", SYS_socket, AF_INET, SOCK_STREAM, 0);
	TRY("socket-unix", SYS_socket, AF_UNIX, SOCK_STREAM, 0);
	TRY("socket-netlink", SYS_socket, AF_NETLINK, SOCK_RAW, 0);
	TRY("socketpair", SYS_socketpair, AF_UNIX, SOCK_DGRAM, 0, buffer);
	TRY("connect", SYS_connect, -1, buffer, 16);
	TRY("bind", SYS_bind, -1, buffer, 16);
	TRY("listen", SYS_listen, -1, 1);
	TRY("setsockopt", SYS_setsockopt, -1, SOL_SOCKET, SO_ATTACH_FILTER, buffer, 16);
	TRY("ptrace", SYS_ptrace, PTRACE_PEEKUSER, 0, 0, 0);
	TRY("process_vm_readv", SYS_process_vm_readv, -1, NULL, 0, NULL, 0, 0);
	TRY("process_vm_writev", SYS_process_vm_writev, -1, NULL, 0, NULL, 0, 0);
	TRY("kill-parent", SYS_kill, parent, 0);
	TRY("tgkill-parent", SYS_tgkill, parent, parent, 0);
	TRY("sigqueue-parent", SYS_rt_tgsigqueueinfo, parent, 0x7ffffffe, 1, buffer);
	TRY("pidfd_open", SYS_pidfd_open, getpid(), 0);
	TRY("pidfd_getfd", SYS_pidfd_getfd, -1, 0, 0);
	TRY("pidfd_send_signal", SYS_pidfd_send_signal, -1, 0, NULL, 0);
	long child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (child == 0)
		syscall(SYS_exit_group, 0);
	say("fork", child);
	TRY("clone3", SYS_clone3, NULL, 0);
	TRY("unshare", SYS_unshare, 0);
	TRY("setns", SYS_setns, -1, 0);
	TRY("chroot", SYS_chroot, NOWHERE);
	TRY("chdir", SYS_chdir, NOWHERE);
	TRY("mkdir", SYS_mkdir, NOWHERE, 0700);
	TRY("rmdir", SYS_rmdir, NOWHERE);
	TRY("link", SYS_link, NOWHERE, "/tmp/x");
	TRY("symlink", SYS_symlink, "x", NOWHERE);
	TRY("mknod", SYS_mknod, NOWHERE, S_IFREG | 0600, 0);
	TRY("chmod", SYS_chmod, NOWHERE, 0600);
	TRY("truncate", SYS_truncate, NOWHERE, 0);
	TRY("stat", SYS_newfstatat, AT_FDCWD, "/etc/passwd", &status, 0);
	TRY("stat-empty", SYS_newfstatat, 1, "/etc/passwd", &status, AT_EMPTY_PATH);
	TRY("statx", SYS_statx, AT_FDCWD, "/etc/passwd", 0, 0, buffer);
	TRY("readlink", SYS_readlink, "/proc/self/exe", buffer, sizeof buffer);
	TRY("getdents", SYS_getdents64, -1, buffer, sizeof buffer);
	TRY("io_uring_setup", SYS_io_uring_setup, 0, NULL);
	TRY("io_setup", SYS_io_setup, 0, NULL);
	TRY("sendfile", SYS_sendfile, -1, -1, NULL, 1);
	TRY("keyctl", SYS_keyctl, -1, 0, 0, 0, 0);
	TRY("shmget", SYS_shmget, 0, 4096, 0600);
	TRY("msgget", SYS_msgget, 0, 0600);
	TRY("inotify_init", SYS_inotify_init1, 0);
	TRY("type-into-terminal", SYS_ioctl, -1, TIOCSTI, "x");
	TRY("set-owner", SYS_fcntl, -1, F_SETOWN, parent);
	TRY("set-signal", SYS_fcntl, -1, F_SETSIG, SIGKILL);
	TRY("prlimit-parent", SYS_prlimit64, parent, RLIMIT_CPU, NULL, NULL);
	TRY("prlimit", SYS_prlimit64, 0, RLIMIT_CPU, getrlimit(RLIMIT_CPU, &limit) ? NULL : &limit, NULL);
	TRY("sched_setaffinity", SYS_sched_setaffinity, parent, 0, NULL);
	TRY("setpriority", SYS_setpriority, PRIO_PROCESS, 0x7ffffffe, 0);
	TRY("setuid", SYS_setuid, getuid());
	TRY("personality", SYS_personality, 0xffffffff);
	TRY("umask", SYS_umask, 022);
	TRY("prctl-ptracer", SYS_prctl, PR_SET_PTRACER, -1, 0, 0, 0);
	int n = snprintf(buffer, sizeof buffer, "%ld end\n", syscall(SYS_gettid));
	if (write(output, buffer, n) != n)
		_exit(99);
	errno = saved;
}

// A call by the numbers of x32, which a filter of 64-bit numbers does not know.
static void leave_abi(int signal)
{
	(void)signal;
	say("x32", syscall(0x40000000 | SYS_getpid));
}

__attribute__((constructor)) static void begin(void)
{
	const char *log = getenv("CAPTIVE_LOG"), *name;
	char program[256] = "";
	struct sigaction action = { .sa_handler = attempt, .sa_flags = SA_ONSTACK | SA_RESTART };
	// Not those that start it: the shell of ./ring3, timeout, strace.
	if (!log || readlink("/proc/self/exe", program, sizeof program - 1) < 0 || !(name = strrchr(program, '/')) || (strcmp(name, "/ring3") && strcmp(name, "/dotnet")))
		return;
	output = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (output < 0)
		_exit(99);
	// Programs that this one starts are left alone.
	unsetenv("LD_PRELOAD");
	sigaction(tries, &action, NULL);
	action.sa_handler = leave_abi;
	sigaction(foreign, &action, NULL);
}
#else
int main(int count, char **words)
{
	char path[64];
	struct dirent *entry;
	int sent = 0;
	if (count != 3)
		return 2;
	snprintf(path, sizeof path, "/proc/%s/task", words[1]);
	DIR *tasks = opendir(path);
	while (tasks && (entry = readdir(tasks)))
		sent += atoi(entry->d_name) > 0 && syscall(SYS_tgkill, atoi(words[1]), atoi(entry->d_name), atoi(words[2])) == 0;
	printf("%d\n", sent);
	return sent == 0;
}
#endif
