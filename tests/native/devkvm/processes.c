/* fork, vfork and exec. */
#include "test.h"

#include <spawn.h>

static int wait_status(pid_t pid)
{
	int status;
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static void use_in_child(struct machine *m)
{
	struct kvm_regs regs;
	CHECK_ERROR(ioctl(m->vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), EIO);
	CHECK_ERROR(ioctl(m->vcpu, KVM_GET_REGS, &regs), EIO);
	CHECK_ERROR(ioctl(m->vcpu, KVM_RUN, 0), EIO);
}

static void child_gets_eio(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			use_in_child(&m);
			/* /dev/kvm itself is of no process. */
			CHECK(ioctl(m.kvm, KVM_GET_API_VERSION, 0) == 12);
			_exit(0);
		}
		CHECK(wait_status(pid) == 0);
		CHECK(run(&m) == 0);
	}
	destroy(&m);
}

static void child_runs_its_own(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			struct machine own;
			CREATE(&own, GUEST_OUT, true);
			for (int j = 0; j < 100; j++)
				CHECK(run(&own) == 0 && own.run->exit_reason == KVM_EXIT_IO);
			use_in_child(&m);
			/* And its child in turn. */
			pid_t grandchild = fork();
			CHECK(grandchild >= 0);
			if (grandchild == 0) {
				struct machine third;
				use_in_child(&own);
				CREATE(&third, GUEST_OUT, false);
				CHECK(run(&third) == 0);
				destroy(&third);
				_exit(0);
			}
			CHECK(wait_status(grandchild) == 0);
			destroy(&own);
			_exit(0);
		}
		CHECK(run(&m) == 0);
		CHECK(wait_status(pid) == 0);
	}
	CHECK(run(&m) == 0);
	destroy(&m);
}

/* What a child does with its copies of the descriptors does not touch the parent's objects. */
static void child_closes(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		close(m.vm);
		close(m.vcpu);
		closefrom(3);
		_exit(0);
	}
	CHECK(wait_status(pid) == 0);
	CHECK(run(&m) == 0);
	pid = vfork();
	CHECK(pid >= 0);
	if (pid == 0) {
		close(m.vcpu);
		close(m.vm);
		_exit(0);
	}
	CHECK(wait_status(pid) == 0);
	CHECK(run(&m) == 0);
	destroy(&m);
}

/* The parent's last close does not wait for a child that still has the descriptor. */
static void child_outlives(void)
{
	struct machine m;
	int go[2];
	char c = 0;
	CHECK(pipe(go) == 0);
	CREATE(&m, GUEST_OUT, false);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(read(go[0], &c, 1) == 1);
		use_in_child(&m);
		_exit(0);
	}
	destroy(&m);
	CHECK(write(go[1], &c, 1) == 1);
	CHECK(wait_status(pid) == 0);
	CREATE(&m, GUEST_OUT, false);
	CHECK(run(&m) == 0);
	destroy(&m);
}

static void programs(void)
{
	struct machine m;
	CREATE(&m, GUEST_OUT, false);
	for (int i = 0; i < 20; i++) {
		CHECK(system("exit 3") == 0x300);
		pid_t pid;
		char *arguments[] = { "sh", "-c", "exit 5", NULL }, *environment[] = { NULL };
		CHECK(posix_spawn(&pid, "/bin/sh", NULL, NULL, arguments, environment) == 0);
		CHECK(wait_status(pid) == 5);
		CHECK(run(&m) == 0);
	}
	destroy(&m);
}

static void *run_guest(void *argument)
{
	return (void *)(intptr_t)run(argument);
}

/* Children are made while other threads run guests, and killed while they do. */
static void killed_children(void)
{
	for (int i = 0; i < 10; i++) {
		int ready[2];
		char c;
		CHECK(pipe(ready) == 0);
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			struct machine m[2];
			pthread_t t[2];
			for (int j = 0; j < 2; j++) {
				CREATE(&m[j], GUEST_SPIN, false);
				CHECK(pthread_create(&t[j], NULL, run_guest, &m[j]) == 0);
			}
			CHECK(write(ready[1], "", 1) == 1);
			pthread_join(t[0], NULL);
			_exit(1);
		}
		CHECK(read(ready[0], &c, 1) == 1);
		CHECK(kill(pid, SIGKILL) == 0);
		CHECK(wait_status(pid) == 256 + SIGKILL);
		close(ready[0]);
		close(ready[1]);
	}
}

static void fork_while_running(void)
{
	struct machine m;
	struct kvm_regs regs;
	pthread_t thread;
	CREATE(&m, GUEST_SPIN, false);
	CHECK(pthread_create(&thread, NULL, run_guest, &m) == 0);
	(void)regs;
	for (int i = 0; i < 10; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			struct machine own;
			CREATE(&own, GUEST_OUT, false);
			CHECK(run(&own) == 0);
			_exit(0);
		}
		CHECK(wait_status(pid) == 0);
	}
	/* The process ends while the guest runs. */
}

static volatile sig_atomic_t taken;

static void take(int sig)
{
	(void)sig;
	taken++;
}

/* The actions that a child of vfork sets before it executes a program are its own. */
static void vfork_child_sets_actions(void)
{
	struct machine m;
	struct sigaction action = { .sa_handler = take }, now;

	CREATE(&m, GUEST_OUT, false);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	CHECK(signal(SIGUSR2, SIG_IGN) == SIG_DFL);
	pid_t pid = vfork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct sigaction before;
		bool known = sigaction(SIGUSR1, NULL, &before) == 0 && before.sa_handler == take;
		signal(SIGUSR1, SIG_DFL);
		signal(SIGUSR2, SIG_DFL);
		signal(SIGTERM, SIG_IGN);
		/* SIGUSR1 ends the shell, SIGTERM does not. */
		execl("/bin/sh", "sh", "-c", known ? "kill -TERM $$; kill -USR1 $$" : "exit 1", NULL);
		_exit(1);
	}
	CHECK(wait_status(pid) == 256 + SIGUSR1);
	CHECK(raise(SIGUSR1) == 0 && taken == 1);
	CHECK(raise(SIGUSR2) == 0);
	CHECK(sigaction(SIGTERM, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
	CHECK(run(&m) == 0);
	destroy(&m);
}

static const struct test tests[] = {
	{ "child_gets_eio", child_gets_eio }, { "child_runs_its_own", child_runs_its_own }, { "child_closes", child_closes },
	{ "child_outlives", child_outlives }, { "programs", programs }, { "killed_children", killed_children },
	{ "fork_while_running", fork_while_running },
	{ "vfork_child_sets_actions", vfork_child_sets_actions },
};
MAIN(tests)
