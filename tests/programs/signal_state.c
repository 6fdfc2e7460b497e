/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ENCLU works, and the exceptions come back through the vDSO, whatever the program did with its
 * signals; and its mask and dispositions are the same afterwards.
 */
#include "host.h"

static const int fault_signals[] = { SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP };
#define FAULT_SIGNALS 5

static volatile int handler_calls;

static void count_calls(int number)
{
	(void)number;
	handler_calls++;
}

struct state {
	sigset_t mask, pending;
	struct sigaction actions[FAULT_SIGNALS];
};

static struct state look(void)
{
	struct state state;

	memset(&state, 0, sizeof(state));
	sigprocmask(SIG_SETMASK, NULL, &state.mask);
	sigpending(&state.pending);
	for (int i = 0; i < FAULT_SIGNALS; i++)
		sigaction(fault_signals[i], NULL, &state.actions[i]);
	return state;
}

static void same(const char *what, const struct state *before, const struct state *after)
{
	char name[100];

	/* The kernel's mask is 64 bits; glibc's sigset_t is longer and only those bits are set. */
	snprintf(name, sizeof(name), "%s: mask unchanged", what);
	check_equal(name, *(const uint64_t *)&after->mask, *(const uint64_t *)&before->mask);
	snprintf(name, sizeof(name), "%s: nothing pending", what);
	check_equal(name, *(const uint64_t *)&after->pending, 0);
	for (int i = 0; i < FAULT_SIGNALS; i++) {
		const struct sigaction *a = &before->actions[i], *b = &after->actions[i];

		snprintf(name, sizeof(name), "%s: disposition of signal %d unchanged", what,
			 fault_signals[i]);
		check(a->sa_handler == b->sa_handler && a->sa_flags == b->sa_flags &&
			      *(const uint64_t *)&a->sa_mask == *(const uint64_t *)&b->sa_mask,
		      name, "handler %p flags %#x, before %p %#x", (void *)b->sa_handler,
		      (unsigned int)b->sa_flags, (void *)a->sa_handler, (unsigned int)a->sa_flags);
	}
}

/* Enter and leave both ways, and each kind of exception through the vDSO. */
static void exercise(const struct enclave *enclave, const char *what)
{
	struct op nop = { .code = OP_NOP }, ud2 = { .code = OP_UD2 }, divide = { .code = OP_DIVIDE };
	struct op gp = { .code = OP_READ, .a = 0x8000000000000000 };
	struct op pf = { .code = OP_READ, .a = 0x40 };
	struct op *faults[] = { &ud2, &divide, &gp, &pf };
	static const unsigned int vectors[] = { VECTOR_UD, VECTOR_DE, VECTOR_GP, VECTOR_PF };
	struct bare bare = bare_record(EENTER, tcs(enclave, 0), bare_resume, &nop);
	struct state before = look(), after;
	struct sgx_enclave_run run;
	char name[100];

	handler_calls = 0;
	snprintf(name, sizeof(name), "%s: enter by the vDSO", what);
	check(do_op(enclave, 0, &nop), name, "failed");
	after = look();
	snprintf(name, sizeof(name), "%s, vDSO", what);
	same(name, &before, &after);

	bare_enclu(&bare);
	snprintf(name, sizeof(name), "%s: enter by a bare ENCLU", what);
	check_equal(name, bare.where, 1);
	after = look();
	snprintf(name, sizeof(name), "%s, bare ENCLU", what);
	same(name, &before, &after);

	for (int i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "%s: vector %u by the vDSO", what, vectors[i]);
		check(enter(&run, tcs(enclave, 0), faults[i]) == 0 && run.function == ERESUME &&
			      run.exception_vector == vectors[i],
		      name, "function %u vector %u", run.function, run.exception_vector);
		after = look();
		snprintf(name, sizeof(name), "%s, vector %u", what, vectors[i]);
		same(name, &before, &after);
		if (!leave_faulted(enclave, 0))
			fail("%s: the frame does not leave", what);
	}
	snprintf(name, sizeof(name), "%s: no handler ran", what);
	check_equal(name, handler_calls, 0);
}

static void all_actions(void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };

	sigaddset(&action.sa_mask, SIGUSR1);
	for (int i = 0; i < FAULT_SIGNALS; i++)
		sigaction(fault_signals[i], &action, NULL);
}

/*
 * A fault with no vDSO to report it and no handler that may run: the signal kills. Each on a TCS of
 * its own, for the enclave is shared and the fault takes an SSA frame of it.
 */
static void killed_by(const struct enclave *enclave, const char *name, void (*prepare)(void),
		      uint64_t opcode, int wanted)
{
	struct op op = { .code = opcode };
	static int next_tcs = 1;
	int index = next_tcs++, status = 0;
	pid_t child = fork();

	if (!child) {
		struct bare bare = bare_record(EENTER, tcs(enclave, index), bare_capture, &op);

		prepare();
		bare_enclu(&bare);
		_exit(0);
	}
	waitpid(child, &status, 0);
	check(WIFSIGNALED(status) && WTERMSIG(status) == wanted, name, "status %#x", status);
}

static void by_default(void)
{
	all_actions(SIG_DFL, 0);
}

static void ignoring(void)
{
	all_actions(SIG_IGN, 0);
}

static void blocking_with_handler(void)
{
	sigset_t all;

	all_actions(count_calls, 0);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
}

int main(int argc, char **argv)
{
	sigset_t all, none;
	struct enclave enclave;

	begin(argc, argv);
	enclave = build(&the_image);
	sigfillset(&all);
	sigemptyset(&none);

	exercise(&enclave, "default");
	sigprocmask(SIG_SETMASK, &all, NULL);
	exercise(&enclave, "all blocked");
	sigprocmask(SIG_SETMASK, &none, NULL);

	all_actions(SIG_IGN, 0);
	exercise(&enclave, "ignored");
	sigprocmask(SIG_SETMASK, &all, NULL);
	exercise(&enclave, "ignored and blocked");
	sigprocmask(SIG_SETMASK, &none, NULL);

	all_actions(count_calls, SA_RESTART);
	exercise(&enclave, "own handlers");
	sigprocmask(SIG_SETMASK, &all, NULL);
	exercise(&enclave, "own handlers, blocked");
	sigprocmask(SIG_SETMASK, &none, NULL);
	all_actions(count_calls, SA_RESETHAND | SA_NODEFER);
	exercise(&enclave, "own handlers, once only");
	all_actions(SIG_DFL, 0);

	killed_by(&enclave, "default: SIGILL kills", by_default, OP_UD2, SIGILL);
	killed_by(&enclave, "default: SIGFPE kills", by_default, OP_DIVIDE, SIGFPE);
	killed_by(&enclave, "ignored: SIGILL kills all the same", ignoring, OP_UD2, SIGILL);
	killed_by(&enclave, "ignored: SIGFPE kills all the same", ignoring, OP_DIVIDE, SIGFPE);
	killed_by(&enclave, "blocked: SIGFPE kills all the same", blocking_with_handler, OP_DIVIDE,
		  SIGFPE);
	killed_by(&enclave, "blocked: SIGILL kills all the same", blocking_with_handler, OP_UD2,
		  SIGILL);
	exercise(&enclave, "after the children");
	return finish();
}
