/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SIGALRM at 1 kHz while the enclave counts: each interrupts it by an AEX whose state the handler
 * can see, each ERESUME goes on where it was, and no turn is lost. The handler may itself enter the
 * interrupted TCS, and it may run on a stack of its own.
 */
#include "host.h"

#ifndef EVERY_US
#define EVERY_US 1000
#endif
#define TURNS 100000UL
#define ENTRIES_MOST 4000
#define INSIDE_WANTED 50

static struct enclave enclave;
static uint64_t aep, tcs_inside;
static volatile int ticks, inside, wrong_registers, in_elrange, nested, wrong_nested;
static bool nesting;

static void tick(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	uint64_t rip = regs[REG_RIP];

	(void)number, (void)info;
	ticks++;
	if (rip - enclave.base < enclave.size)
		in_elrange++;
	/* RAX is EENTER when the signal came just before the entry. */
	if (rip != aep || regs[REG_RAX] == EENTER)
		return;
	inside++;
	if (regs[REG_RAX] != ERESUME || (uint64_t)regs[REG_RBX] != tcs_inside ||
	    (uint64_t)regs[REG_RCX] != aep)
		wrong_registers++;
	if (regs[REG_RDX] | regs[REG_RSI] | regs[REG_RDI] | regs[REG_R8] | regs[REG_R9] |
	    regs[REG_R12] | regs[REG_R15])
		wrong_registers++;
	if (nesting) {
		struct op op = { .code = OP_ENTRY };

		nested++;
		if (!do_op(&enclave, 0, &op) || op.out[ENTRY_RAX] != 1)
			wrong_nested++;
	}
}

/* An entry whose RCX tells where this way of entering has its AEP. */
static bool loop_by_vdso(struct op *op)
{
	return do_op(&enclave, 0, op);
}

static bool loop_by_bare_enclu(struct op *op)
{
	struct bare bare = bare_record(EENTER, tcs(&enclave, 1), bare_resume, op);

	bare_enclu(&bare);
	return bare.where == 1;
}

static void storm(const char *what, bool (*loop)(struct op *))
{
	static const struct itimerval often = { { 0, EVERY_US }, { 0, EVERY_US } }, never;
	uint64_t sum = 0, wrong = 0, entries = 0;
	char name[80];

	for (uint64_t i = 0; i < TURNS; i++)
		sum += i * i;
	ticks = inside = wrong_registers = in_elrange = nested = wrong_nested = 0;
	setitimer(ITIMER_REAL, &often, NULL);
	while (entries < ENTRIES_MOST && inside < INSIDE_WANTED) {
		struct op op = { .code = OP_LOOP, .a = TURNS };

		if (!loop(&op) || op.out[0] != sum || op.out[1] != TURNS)
			wrong++;
		entries++;
	}
	setitimer(ITIMER_REAL, &never, NULL);
	snprintf(name, sizeof(name), "%s: every sum right", what);
	check(wrong == 0, name, "%lu of %lu entries wrong", wrong, entries);
	snprintf(name, sizeof(name), "%s: the handler ran", what);
	check(ticks > 0, name, "no tick in %lu entries", entries);
	snprintf(name, sizeof(name), "%s: ticks came while inside", what);
	check(inside > 0, name, "none of %d ticks in %lu entries", ticks, entries);
	snprintf(name, sizeof(name), "%s: synthetic registers each time", what);
	check(wrong_registers == 0, name, "%d of %d", wrong_registers, inside);
	snprintf(name, sizeof(name), "%s: no handler saw an address in the enclave", what);
	check(in_elrange == 0, name, "%d of %d", in_elrange, ticks);
	if (nesting) {
		snprintf(name, sizeof(name), "%s: nested entries from the handler", what);
		check(nested > 0 && wrong_nested == 0, name, "%d of %d wrong", wrong_nested, nested);
	}
}

int main(int argc, char **argv)
{
	static uint8_t stack[65536] __attribute__((aligned(16)));
	struct op op = { .code = OP_ENTRY };

	begin(argc, argv);
	enclave = build(&the_image);
	handle(SIGALRM, tick);

	CHECK("first entry", do_op(&enclave, 0, &op));
	aep = op.out[ENTRY_RCX] - 3; /* one ENCLU serves as entry and as AEP */
	tcs_inside = tcs(&enclave, 0);
	storm("vDSO", loop_by_vdso);

	nesting = true;
	storm("vDSO, entering again", loop_by_vdso);
	nesting = false;

	sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = sizeof(stack) }, NULL);
	sigaction(SIGALRM, &(struct sigaction){ .sa_sigaction = tick,
						.sa_flags = SA_SIGINFO | SA_ONSTACK }, NULL);
	storm("vDSO, alternate stack", loop_by_vdso);

	aep = (uint64_t)bare_resume;
	tcs_inside = tcs(&enclave, 1);
	storm("bare ENCLU", loop_by_bare_enclu);
	CHECK("and it still works", do_op(&enclave, 0, &op) && op.out[ENTRY_RAX] == 0);
	return finish();
}
