/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a runtime without the vDSO does with an exception, in several threads at once: the SIGILL
 * handler, in which SIGILL is blocked, finds RIP at the AEP, enters the same TCS on CSSA 1, has the frame
 * repaired, leaves, and returns to ERESUME. Whatever the other threads do meanwhile, no SIGILL may
 * find the default action.
 */
#include "host.h"

#define THREADS 4
#define TURNS 40

static struct enclave enclave;
static pthread_barrier_t barrier;
static volatile int elsewhere, not_blocked_again;
static __thread int my_index, repaired;

static void on_sigill(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	struct op op = { .code = OP_SET_RIP, .a = at_symbol(&enclave, "raise_ud2") + 2 };
	struct bare bare;

	(void)number, (void)info;
	if (regs[REG_RIP] != (greg_t)bare_resume || regs[REG_RAX] != ERESUME) {
		__atomic_add_fetch(&elsewhere, 1, __ATOMIC_RELAXED);
		return;
	}
	bare = bare_record(EENTER, tcs(&enclave, my_index), bare_resume, &op);
	bare_enclu(&bare);
	repaired += bare.where == 1;
}

static void *run_thread(void *argument)
{
	uintptr_t wrong = 0;

	my_index = (int)(uintptr_t)argument;
	pthread_barrier_wait(&barrier);
	for (int n = 0; n < TURNS; n++) {
		struct op op = { .code = OP_UD2 };
		struct bare bare = bare_record(EENTER, tcs(&enclave, my_index), bare_resume, &op);

		bare_enclu(&bare);
		if (bare.where != 1 || op.out[0] != 1 || repaired != n + 1)
			wrong++;
	}
	return (void *)wrong;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_sigill, .sa_flags = SA_SIGINFO }, seen;
	pthread_t threads[THREADS];
	char name[60];
	sigset_t mask;
	void *wrong;

	begin(argc, argv);
	enclave = build(&the_image);
	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, SIGILL);
	if (sigaction(SIGILL, &action, NULL))
		fail("sigaction");
	pthread_barrier_init(&barrier, NULL, THREADS);
	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, run_thread, (void *)i))
			fail("pthread_create");
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], &wrong);
		snprintf(name, sizeof(name), "thread %d", i);
		check(!wrong, name, "%lu wrong results", (unsigned long)wrong);
	}
	check_equal("every SIGILL came from the AEP", elsewhere, 0);
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	CHECK("SIGILL is not blocked afterwards", !sigismember(&mask, SIGILL));
	action.sa_handler = SIG_DFL;
	CHECK("sigaction gives what was set",
	      sigaction(SIGILL, &action, &seen) == 0 && seen.sa_sigaction == on_sigill &&
		      (seen.sa_flags & ~0x04000000) == SA_SIGINFO &&
		      sigismember(&seen.sa_mask, SIGILL) && !sigismember(&seen.sa_mask, SIGSEGV));
	return finish();
}
