/* SPDX-License-Identifier: Apache-2.0 */
/*
 *     spoiled_records ENCLAVE SIGSTRUCT SEED TABLE
 *
 * Children write what they like to the records that are mapped into them, their own thread's and their TCS's, and go
 * on: in and out, with signals and faults inside. Whatever becomes of them, their parent and its entries are left
 * alone. TABLE is where the image has the address of its table.
 */
#include "own_enter.h"

#define CHILDREN 40
#define PROBES 4

static struct enclave enclave;
static uint64_t state;
static int the_index;

static uint64_t choose(uint64_t limit)
{
	state = state * 6364136223846793005 + 1442695040888963407;
	return (state >> 33) % limit;
}

static bool goes(int index, int code)
{
	struct own own;
	struct turn turn;

	fill(&own, &turn, tcs(&enclave, index), 0);
	turn.code = code;
	turn.a = code == TURN_LOOP ? 100 : 0;
	own_near(&own);
	return own.out[RAX] == EEXIT && (code != TURN_LOOP || turn.result == 5050);
}

/* The record that is found by a key, as csrc/vdso/transitions.S finds it. */
static uint64_t record(uint64_t *entries, int words, uint64_t hashed, uint64_t key)
{
	uint64_t *entry = entries + (hashed * 0x61c88647 >> 40) % 512 * words;

	for (int i = 0; i < PROBES; i++, entry += words)
		if (*entry == key)
			return entry[words / 2];
	return 0;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

	if (info->si_code <= 0)
		return;
	if ((uint64_t)regs[REG_RIP] != own_at(own_aep) || !goes(the_index, TURN_SKIP))
		_exit(4);
}

static void spoil(uint64_t *table, int index)
{
	static const uint64_t words[] = { 0, 1, 2, 3, ~0UL, 1UL << 63, 0x7fffffffffff, 4096 };
	uint64_t fs = read_fsbase(), address = tcs(&enclave, index);
	uint64_t thread = record(table, 4, fs + read_gsbase(), fs);
	uint64_t its_tcs = record(table + 516 * 4, 2, address, address);

	if (!thread || !its_tcs)
		_exit(5);
	for (int i = choose(3); i >= 0; i--) {
		uint64_t *at = (uint64_t *)(choose(2) ? thread + choose(16) * 8 : its_tcs + choose(17) * 8);
		uint64_t value = words[choose(8)];

		if (choose(2))
			*at = value;
		else
			*(uint32_t *)at = value;
	}
}

static void child(uint64_t *table, int index)
{
	static const int codes[] = { TURN_EXIT, TURN_LOOP, TURN_UD2, TURN_SYSCALL, TURN_EXIT_LONG };

	the_index = index;
	for (int i = 0; i < 6; i++)
		goes(index, i & 1 ? TURN_EXIT : TURN_LOOP);
	spoil((uint64_t *)*table, index);
	for (int i = 0; i < 6; i++) {
		if (choose(3) == 0)
			raise(SIGUSR1);
		goes(index, codes[choose(5)]);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	uint64_t *table;
	int ends[3] = { 0 };

	begin(argc, argv);
	end_after(100);
	state = strtoull(argv[3], NULL, 0) * 0x9e3779b97f4a7c15 + 1;
	table = (uint64_t *)(getauxval(AT_SYSINFO_EHDR) + strtoul(argv[4], NULL, 0));
	own_near = copy_own_enter();
	enclave = build(&the_image);
	handle(SIGUSR1, on_signal);
	handle(SIGILL, on_signal);
	handle(SIGSEGV, on_signal);
	handle(SIGSYS, on_signal);
	for (int i = 0; i < 6; i++)
		goes(0, TURN_LOOP);
	for (int i = 0; i < CHILDREN; i++) {
		pid_t pid = fork_bound();
		int status = 0;

		if (!pid)
			child(table, 1 + i % (TCSS - 1));
		choose(1);
		/* It may go round for ever: what it does inside is what its records say. */
		for (int turns = 0; !waitpid(pid, &status, WNOHANG); turns++) {
			if (turns == 200)
				kill(pid, SIGKILL);
			usleep(1000);
		}
		if (WIFEXITED(status) && WEXITSTATUS(status) == 5)
			check(false, "a child", "found no records");
		ends[WIFSIGNALED(status) ? 2 : WEXITSTATUS(status) != 0]++;
		if (!goes(0, TURN_LOOP) || !goes(0, TURN_EXIT))
			check(false, "the parent's turns", "behind child %d", i);
	}
	dprintf(1, "%d ended well, %d otherwise, %d by a signal\n", ends[0], ends[1], ends[2]);
	return finish();
}
