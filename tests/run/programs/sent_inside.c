/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals that others send to a thread inside an enclave keep what they carry.
 *
 *     sent_inside ENCLAVE SIGSTRUCT values|blocked
 *     sent_inside ENCLAVE SIGSTRUCT stopped      blocked, and a stop that SIGCONT ends at once, both
 *                                                while whoever traces this program is stopped itself
 */
#include "host.h"

#define VALUES 2000

static struct enclave enclave;
static pthread_t entering;
static volatile bool sent_all;
static volatile unsigned int got[VALUES], wrong;

static void note_value(int number, siginfo_t *info, void *context)
{
	unsigned int value = info->si_value.sival_int;

	if (info->si_code != SI_QUEUE || info->si_pid != getpid() || value >= VALUES)
		wrong++;
	else
		got[value]++;
}

static void *send_values(void *nothing)
{
	for (int i = 0; i < VALUES; i++) {
		union sigval value = { .sival_int = i };

		while (pthread_sigqueue(entering, SIGRTMIN, value))
			usleep(100);
		if (i % 4 == 3)
			usleep(400);
	}
	sent_all = true;
	return nothing;
}

static void values(void)
{
	unsigned int lost = 0, doubled = 0;
	struct op op = { .code = OP_NOP };
	pthread_t sender;

	signal(SIGILL, SIG_IGN);
	handle(SIGRTMIN, note_value);
	entering = pthread_self();
	pthread_create(&sender, NULL, send_values, NULL);
	while (!sent_all) {
		struct op loop = { .code = OP_LOOP, .a = 100000 };

		if (!do_op(&enclave, 0, &loop))
			fail("entering");
	}
	pthread_join(sender, NULL);
	CHECK("it still enters", do_op(&enclave, 0, &op));
	for (int i = 0; i < VALUES; i++) {
		lost += !got[i];
		doubled += got[i] > 1;
	}
	check(!wrong, "si_code and sender", "%u of %d wrong", wrong, VALUES);
	check(!lost && !doubled, "values", "%u lost, %u doubled", lost, doubled);
}

/* The mailbox is shared: another process tells the enclave when to leave. */
static void blocked(bool stopping)
{
	struct op *op = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t parent = getpid(), pid;
	int status;

	*op = (struct op){ .code = OP_SPIN, .a = (uint64_t)&op->c };
	pid = fork();
	if (!pid) {
		struct timespec now = { 0 };
		sigset_t set, pending;
		siginfo_t info;

		end_after(8);
		sigemptyset(&set);
		sigaddset(&set, SIGBUS);
		sigprocmask(SIG_BLOCK, &set, NULL);
		CHECK("it leaves by EEXIT", do_op(&enclave, 0, op));
		sigpending(&pending);
		check_equal("it is pending outside", sigismember(&pending, SIGBUS), 1);
		check_equal("it waits to be taken", sigtimedwait(&set, &info, &now), SIGBUS);
		check_equal("its si_code", info.si_code, SI_USER);
		check_equal("its sender", info.si_pid, parent);
		check_equal("it came once", sigtimedwait(&set, &info, &now), -1);
		_exit(failures);
	}
	while (!*(volatile unsigned long *)&op->out[0])
		usleep(1000);
	kill(pid, SIGBUS);
	usleep(100000);
	check_equal("it is not taken inside", waitpid(pid, &status, WNOHANG), 0);
	if (stopping) {
		kill(getppid(), SIGSTOP);
		usleep(100000);
		kill(pid, SIGSTOP);
		usleep(100000);
		kill(pid, SIGCONT);
		kill(getppid(), SIGCONT);
		usleep(100000);
	}
	*(volatile unsigned long *)&op->c = 1;
	waitpid(pid, &status, 0);
	check_equal("status of the process that blocks it", status, 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	enclave = build(&the_image);
	end_after(18);
	if (argc > 3 && !strcmp(argv[3], "values"))
		values();
	else
		blocked(!strcmp(argv[3], "stopped"));
	return finish();
}
