/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mask and action of SIGILL are the program's own over an ENCLU.
 *
 *     illegal_action ENCLAVE SIGSTRUCT block|spent|refused
 */
#include "host.h"
#include <sys/syscall.h>

static struct enclave enclave;

static uint64_t mask(void)
{
	uint64_t mask = 0;

	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, sizeof(mask));
	return mask;
}

static void *action(void)
{
	struct sigaction action;

	sigaction(SIGILL, NULL, &action);
	return action.sa_handler;
}

static void pass_over(int number, siginfo_t *info, void *context)
{
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

static void block(int number)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, number);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

static void enter_bare(void)
{
	struct op op = { .code = OP_NOP };
	struct bare bare = bare_record(EENTER, tcs(&enclave, 0), bare_resume, &op);

	bare_enclu(&bare);
	check_equal("ENCLU is left by EEXIT", bare.where, 1);
}

static void enter_unchanged(void)
{
	uint64_t mask_before = mask();
	void *action_before = action();

	enter_bare();
	check_equal("the mask is unchanged", mask(), mask_before);
	check_equal("the action is unchanged", (uint64_t)action(), (uint64_t)action_before);
}

/* Does an illegal instruction kill? Asked of a child, which takes the action over. */
static bool kills(void)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		asm volatile("ud2");
		_exit(0);
	}
	return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
	       WTERMSIG(status) == SIGILL;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 3 ? argv[3] : "";

	begin(argc, argv);
	enclave = build(&the_image);
	if (!strcmp(mode, "block")) {
		handle(SIGILL, pass_over);
		enter_unchanged();
		block(SIGILL);
		enter_unchanged();
		enter_unchanged();
		/* Looked at anew when the rest of the mask has changed. */
		block(SIGUSR1);
		enter_unchanged();
	} else if (!strcmp(mode, "spent")) {
		struct sigaction once = { .sa_sigaction = pass_over,
					  .sa_flags = SA_SIGINFO | SA_RESETHAND };

		sigaction(SIGILL, &once, NULL);
		asm volatile("ud2");
		check_equal("it is spent", (uint64_t)action(), (uint64_t)SIG_DFL);
		block(SIGUSR1);
		enter_unchanged();
		check_equal("it stays spent", (uint64_t)action(), (uint64_t)SIG_DFL);
		CHECK("the next illegal instruction kills", kills());
	} else {
		struct {
			void *handler;
			unsigned long flags;
			void *restorer;
			uint64_t mask;
		} ignore = { .handler = (void *)SIG_IGN };

		check_errno("a short sigset", syscall(SYS_rt_sigaction, SIGILL, &ignore, NULL, 4L),
			    EINVAL);
		enter_unchanged();
		handle(SIGILL, pass_over);
		check_errno("a long sigset", syscall(SYS_rt_sigaction, SIGILL, &ignore, NULL, 16L),
			    EINVAL);
		block(SIGUSR1);
		enter_unchanged();
		asm volatile("ud2");
		check_equal("the handler", (uint64_t)action(), (uint64_t)pass_over);
	}
	return finish();
}
