/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Has an enclave, and CHILDREN children that share it, until SIGTERM; prints its process and theirs
 * when all is there: "held PID [PID...]". With "enter" the first enters it again and again.
 *
 *     held ENCLAVE SIGSTRUCT CHILDREN [enter]
 */
#include "host.h"

#include <sys/prctl.h>

static volatile sig_atomic_t over;

static void end(int number)
{
	over = 1;
}

int main(int argc, char **argv)
{
	struct op nop = { .code = OP_NOP };
	struct enclave enclave;
	sigset_t term, before;
	pid_t child[16];
	int children;

	begin(argc, argv);
	children = atoi(argv[3]);
	if (children > 16)
		fail("%d are too many children", children);
	signal(SIGTERM, end);
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_BLOCK, &term, &before);
	enclave = build(&the_image);
	for (int i = 0; i < children; i++) {
		child[i] = fork();
		if (child[i] < 0)
			fail("fork");
		if (!child[i]) {
			signal(SIGTERM, SIG_DFL);
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			sigprocmask(SIG_SETMASK, &before, NULL);
			for (;;)
				pause();
		}
	}
	dprintf(1, "held %d", getpid());
	for (int i = 0; i < children; i++)
		dprintf(1, " %d", child[i]);
	dprintf(1, "\n");
	if (argc > 4) {
		sigprocmask(SIG_SETMASK, &before, NULL);
		while (!over)
			if (!do_op(&enclave, 0, &nop))
				fail("a turn did not enter");
	}
	while (!over)
		sigsuspend(&before);
	for (int i = 0; i < children; i++)
		if (kill(child[i], SIGTERM) || waitpid(child[i], NULL, 0) != child[i])
			fail("a child has gone");
	return finish();
}
