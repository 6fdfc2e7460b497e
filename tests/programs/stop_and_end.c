/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that is inside can be stopped and continued, killed by a signal, or ended because
 * another thread of its process ends the process; the enclave it shared goes on.
 */
#include "host.h"

static struct enclave enclave;
static struct op *shared; /* in memory that parent and child share */

/* A child that spins inside until shared->c is set; its status is 0 when it left as it should. */
static pid_t spinning_child(int index)
{
	pid_t child;

	*shared = (struct op){ .code = OP_SPIN, .a = (uint64_t)&shared->c };
	child = fork_bound();
	if (!child)
		_exit(!do_op(&enclave, index, shared));
	for (int i = 0; i < 20000 && !*(volatile unsigned long *)&shared->out[0]; i++)
		usleep(1000);
	check_equal("the child is inside", shared->out[0], 1);
	return child;
}

static void stop_and_continue(void)
{
	pid_t child = spinning_child(1);
	int status = 0;

	for (int i = 0; i < 3; i++) {
		kill(child, SIGSTOP);
		waitpid(child, &status, WUNTRACED);
		CHECK("stopped while inside", WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
		kill(child, SIGCONT);
		waitpid(child, &status, WCONTINUED);
		CHECK("continued", WIFCONTINUED(status));
	}
	shared->c = 1;
	waitpid(child, &status, 0);
	check_equal("then it leaves as it should", status, 0);
}

static void killed_by_sigterm(void)
{
	pid_t child = spinning_child(2);
	int status = 0;

	kill(child, SIGTERM);
	waitpid(child, &status, 0);
	CHECK("SIGTERM ends it", WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

static void *spin(void *argument)
{
	do_op(&enclave, 3, shared);
	return argument;
}

static void *leave_by_exec(void *argument)
{
	char *arguments[] = { "/bin/true", NULL };

	(void)argument;
	execv(arguments[0], arguments);
	return NULL;
}

/* One thread inside while another ends the process: by exit_group, or by exec. */
static void ended_by_another_thread(bool by_exec)
{
	pthread_t inside, other;
	int status = 0;
	pid_t child;

	*shared = (struct op){ .code = OP_SPIN, .a = (uint64_t)&shared->c };
	child = fork_bound();
	if (!child) {
		pthread_create(&inside, NULL, spin, NULL);
		while (!*(volatile unsigned long *)&shared->out[0])
			usleep(1000);
		if (!by_exec)
			_exit(0);
		pthread_create(&other, NULL, leave_by_exec, NULL);
		pthread_join(other, NULL);
		_exit(9);
	}
	waitpid(child, &status, 0);
	check_equal("the thread was inside", shared->out[0], 1);
	check_equal(by_exec ? "exec by another thread" : "exit by another thread", status, 0);
}

/* A signal to one thread only, sent while another is inside: that one goes on. */
static volatile int got;

static void note(int number)
{
	(void)number;
	got++;
}

static void signal_for_another_thread(void)
{
	pthread_t thread;

	signal(SIGUSR1, note);
	*shared = (struct op){ .code = OP_SPIN, .a = (uint64_t)&shared->c };
	pthread_create(&thread, NULL, spin, NULL);
	while (!*(volatile unsigned long *)&shared->out[0])
		usleep(1000);
	pthread_kill(pthread_self(), SIGUSR1);
	check_equal("signal to the thread outside", got, 1);
	pthread_kill(thread, SIGUSR1);
	for (int i = 0; i < 2000 && got < 2; i++)
		usleep(1000);
	check_equal("signal to the thread inside", got, 2);
	shared->c = 1;
	check_equal("join", pthread_join(thread, NULL), 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	end_after(50);
	enclave = build(&the_image);
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	stop_and_continue();
	killed_by_sigterm();
	signal_for_another_thread();
	ended_by_another_thread(false);
	/* The thread that died inside left by an AEX: the TCS is free, with one frame less. */
	CHECK("the TCS has its other frame",
	      do_op(&enclave, 3, &(struct op){ .code = OP_NOP }));
	ended_by_another_thread(true);
	CHECK("the enclave goes on", do_op(&enclave, 0, &(struct op){ .code = OP_NOP }));
	return finish();
}
