/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PROGRAM ENCLAVE SIGSTRUCT HOW TABLE PLACE...: stops a thread at each instruction of the transitions that the image
 * makes without a trap. A PLACE is WHERE:OFFSET, of an instruction in the image, or in one of its slots; TABLE is
 * where the image has the address of its table.
 *
 * At the place a jump to itself is put, so that the thread stands there until somebody stops it. That it is there its
 * processor time tells. WHERE:
 *
 *     entry  in the slot of the EENTER         enter  before the transition    inside  behind it
 *     trap   where the common case is given up
 *     exit   in the slot of the EEXIT, or      leave  before the transition    outside behind it
 *     long   in that of one whose MOV stands at some distance
 *     nowhere where EEXIT's target is not canonical
 *
 * HOW: signal (its handler looks at all registers, and enters), hold (another thread's first transition elsewhere
 * stops it), stop (SIGSTOP, SIGCONT), kill (and its parent enters by the TCS), exits (of --aex-every; only inside).
 */
#include "own_enter.h"

#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

#define STANDING 2000000 /* ns of a thread's time in which it gets to any place */
#define TRIES 20
#define NOWHERE_TO_GO 0x1234567890abcdef
#define IMAGE (4 * PAGE) /* of it or of its slots, at least so much */

static struct enclave enclave;
static uint8_t *image_start;
static uint64_t *table;
static uint8_t *entry_slot, *exit_slot, *long_slot;

/* ---- the place -------------------------------------------------------------------------------- */

static struct place {
	char where[12];
	uint8_t *at;
	uint16_t was;
	bool there;
	uint64_t table;
} place;

static void make_writable(uint8_t *code)
{
	uint64_t first = (uint64_t)code & -PAGE;

	if (mprotect((void *)first, IMAGE, PROT_READ | PROT_WRITE | PROT_EXEC))
		fail("mprotect of the image");
}

static bool is(const char *where)
{
	return !strcmp(place.where, where);
}

/* Where the thread that stands there is to be seen. */
static bool before_entry(void)
{
	return is("entry") || is("enter") || is("trap");
}

static bool before_exit(void)
{
	return is("exit") || is("long") || is("leave") || is("nowhere");
}

static void put(void)
{
	memcpy(&place.was, place.at, 2);
	if (is("trap")) {
		place.table = *table;
		*table = 0;
	}
	memcpy(place.at, "\xeb\xfe", 2);
	place.there = true;
}

static void take_away(void)
{
	if (!place.there)
		return;
	place.there = false;
	memcpy(place.at, &place.was, 2);
	if (is("trap"))
		*table = place.table;
}

static void find_place(const char *word)
{
	const char *colon = strchr(word, ':');
	unsigned long offset = strtoul(colon + 1, NULL, 0);

	memcpy(place.where, word, colon - word);
	place.where[colon - word] = 0;
	place.at = offset + (is("entry") ? entry_slot :
			     is("exit")	 ? exit_slot :
			     is("long")	 ? long_slot :
					   image_start);
}

/* ---- where the records are found ------------------------------------------------------------- */

#define PROBES 4
#define THREADS 512
#define TCS_ENTRIES 512
#define NOWHERE 4 /* of the places in a table where one may be found */
#define WAYS (2 * NOWHERE + 1)

static struct {
	uint64_t *at;
	int words;
	uint64_t was[PROBES * 4];
} moved;

static uint64_t spread(uint64_t key)
{
	return key * 0x61c88647 >> 40;
}

/* Let something be found at the n-th place, or not at all. */
static void move_in_table(uint64_t *at, int words, uint64_t key, int n)
{
	int found = 0;

	moved.at = at;
	moved.words = words;
	memcpy(moved.was, at, PROBES * words * 8);
	while (found < PROBES - 1 && at[found * words] != key)
		found++;
	for (int i = 0; i < words; i++) {
		uint64_t *from = &at[found * words + i], *to = &at[n * words + i], other;

		other = n == NOWHERE ? ~0UL >> 1 : *to;
		if (n != NOWHERE)
			*to = *from;
		*from = other;
	}
}

/* The way by which the records are found: 1 to 4 is that of the thread's, 5 to 8 that of the TCS's. */
static void choose_way(int way, uint64_t fs, uint64_t gs, uint64_t tcs_address)
{
	uint64_t *threads = (uint64_t *)*table, *tcss = threads + (THREADS + PROBES) * 4;

	moved.at = NULL;
	if (way > NOWHERE)
		move_in_table(tcss + spread(tcs_address) % TCS_ENTRIES * 2, 2, tcs_address,
			      way - NOWHERE);
	else if (way)
		move_in_table(threads + spread(fs + gs) % THREADS * 4, 4, fs, way);
}

static void usual_way(void)
{
	if (moved.at)
		memcpy(moved.at, moved.was, PROBES * moved.words * 8);
	moved.at = NULL;
}

/* ---- the transition --------------------------------------------------------------------------- */

static struct own own;
static struct turn turn;
static int tcs_index;
static uint64_t fsbase, gsbase;

static uint64_t tcs_of(int index)
{
	return tcs(&enclave, index);
}

static const char *wrong_registers(const uint64_t *got, const uint64_t *wanted, unsigned int but)
{
	static const char *const names[] = { "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
					     "R8",  "R9",  "R10", "R11", "R12", "R13", "R14", "R15" };

	for (int i = 0; i < 16; i++)
		if (!(but >> i & 1) && got[i] != wanted[i])
			return names[i];
	return NULL;
}

/* What the processor gives the enclave, and what the enclave gave the program, as the manual has it. */
static const char *wrong_result(void)
{
	uint64_t wanted[16];
	const char *wrong;

	memcpy(wanted, own.in, sizeof(wanted));
	wanted[RAX] = 0;
	wanted[RCX] = own_at(own_behind);
	if (wrong_registers(turn.out, wanted, 0))
		return "the registers at the entry";
	if ((turn.out[16] ^ own.flags_in) & (ARITHMETIC | DIRECTION))
		return "the flags at the entry";
	memcpy(wanted, turn.in, sizeof(wanted));
	wanted[RAX] = EEXIT;
	wanted[RCX] = own_at(own_aep);
	wanted[RBX] = own_at(own_behind);
	wanted[RSP] = own.in[RSP];
	wanted[RBP] = own.in[RBP];
	wrong = wrong_registers(own.out, wanted, 0);
	if (wrong)
		return wrong;
	if ((own.flags ^ turn.flags) & (ARITHMETIC | DIRECTION))
		return "the flags behind the exit";
	if (own.fsbase != fsbase || own.gsbase != gsbase)
		return "the bases behind the exit";
	return NULL;
}

/* Poison where the transition keeps what it needs: nothing may be right from the last time. */
static __attribute__((noinline)) void poison(uint64_t word)
{
	volatile uint64_t below[256];

	for (int i = 0; i < 256; i++)
		below[i] = word;
	(void)below[0];
}

static void __attribute__((noinline)) go(uint64_t flags, int way)
{
	fill(&own, &turn, tcs_of(tcs_index), flags);
	turn.a = NOWHERE_TO_GO;
	turn.code = is("nowhere")	? TURN_EXIT_TO :
		    is("long")		? TURN_EXIT_LONG :
		    is("exit") && way	? TURN_MOVE_GS :
					  TURN_EXIT;
	poison(flags ? 0 : ~0UL);
	own_near(&own);
}

static void warm_up(int index)
{
	static const int ways_out[] = { TURN_EXIT, TURN_EXIT_LONG, TURN_EXIT_TO };
	struct own mine;
	struct turn its;

	for (int i = 0; i < 36; i++) {
		fill(&mine, &its, tcs_of(index), i & 2 ? ARITHMETIC : 0);
		its.code = ways_out[i % 3];
		own_near(&mine);
	}
}

/* Where a MOV that was changed leads. */
static uint8_t *led_to(const uint8_t *move, const char *name)
{
	int32_t distance;

	if (*move != 0xe9)
		fail("the %s still traps", name);
	memcpy(&distance, move + 1, 4);
	return (uint8_t *)move + 5 + distance;
}

/* ---- a signal ---------------------------------------------------------------------------------- */

static volatile const char *seen_wrong;
static volatile bool seen_there;

static const char *look_at_entry(const greg_t *regs)
{
	static const int order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
				       REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
				       REG_R12, REG_R13, REG_R14, REG_R15 };
	uint64_t got[16], wanted[16] = { 0 }, frame[23];
	struct own nested;
	struct turn its;
	bool interrupted = is("inside") || before_exit();
	const char *wrong;

	for (int i = 0; i < 16; i++)
		got[i] = regs[order[i]];
	if (before_entry()) {
		memcpy(wanted, own.in, sizeof(wanted));
		wanted[RAX] = EENTER;
		wrong = wrong_registers(got, wanted, 0);
		if (!wrong && (regs[REG_EFL] ^ own.flags_in) & (ARITHMETIC | DIRECTION))
			wrong = "the flags before the entry";
	} else if (is("outside")) {
		memcpy(wanted, turn.in, sizeof(wanted));
		wanted[RAX] = EEXIT;
		wanted[RCX] = own_at(own_aep);
		wanted[RBX] = own_at(own_behind);
		wanted[RSP] = own.in[RSP];
		wanted[RBP] = own.in[RBP];
		wrong = wrong_registers(got, wanted, 0);
		if (!wrong && (regs[REG_EFL] ^ turn.flags) & (ARITHMETIC | DIRECTION))
			wrong = "the flags behind the exit, at the signal";
	} else {
		wanted[RAX] = ERESUME;
		wanted[RCX] = own_at(own_aep);
		wanted[RBX] = tcs_of(tcs_index);
		wanted[RSP] = own.in[RSP];
		wanted[RBP] = own.in[RBP];
		wrong = wrong_registers(got, wanted, 0);
		if (!wrong && regs[REG_EFL] & ARITHMETIC)
			wrong = "the flags of the synthetic state";
	}
	if (wrong)
		return wrong;
	if (read_fsbase() != fsbase || read_gsbase() != gsbase)
		return "the bases in the handler";

	/* And by the same TCS another entry. */
	fill(&nested, &its, tcs_of(tcs_index), 0);
	its.code = TURN_SSA;
	its.b = (uint64_t)frame;
	own_near(&nested);
	if (its.out[RAX] != interrupted)
		return "the CSSA of an entry from the handler";
	if (!interrupted)
		return NULL;
	memcpy(wanted, before_exit() ? turn.in : own.in, sizeof(wanted));
	wanted[RAX] = before_exit() ? EEXIT : 0;
	if (is("inside"))
		wanted[RCX] = own_at(own_behind);
	else if (is("nowhere"))
		wanted[RBX] = NOWHERE_TO_GO;
	else
		wanted[RBX] = own_at(own_behind);
	if (before_exit())
		wanted[RSP] = own.in[RSP], wanted[RBP] = own.in[RBP];
	/* EEXIT loses RCX anyway; where it faults RBP is the enclave's own; and some are loaded late. */
	wrong = wrong_registers(frame, wanted,
				is("nowhere")	? 1 << RCX | 1 << RBP :
				is("long")	? 1 << RCX | 1 << RDI | 1 << R14 | 1 << R15 :
				before_exit()	? 1 << RCX :
						  0);
	if (wrong)
		return wrong;
	if ((frame[16] ^ (before_exit() ? turn.flags : own.flags_in)) & (ARITHMETIC | DIRECTION))
		return "the flags in the SSA frame";
	if (is("long"))
		return frame[17] > at_symbol(&enclave, "exit_long_move") &&
				       frame[17] <= at_symbol(&enclave, "exit_long_site") ?
			       NULL :
			       "the RIP in the SSA frame";
	if (frame[17] != at_symbol(&enclave, is("inside")  ? "enclave_entry" :
					     is("nowhere") ? "exit_to_site" :
							     "exit_site"))
		return "the RIP in the SSA frame";
	return NULL;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	uint64_t rip = regs[REG_RIP];

	usual_way();
	take_away();
	if (rip == own_at(before_entry() ? own_enclu : is("outside") ? own_behind : own_aep)) {
		seen_there = true;
		seen_wrong = look_at_entry(regs);
	} else if (rip >= (uint64_t)image_start && rip < (uint64_t)image_start + 0x10000) {
		seen_there = true;
		seen_wrong = "RIP, which is in the image";
	}
}

/* The #GP of an EEXIT that cannot be: the turn ends elsewhere. */
static void on_segv(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	struct own nested;
	struct turn its;

	if ((uint64_t)regs[REG_RIP] != own_at(own_aep))
		fail("a fault at %#llx", regs[REG_RIP]);
	fill(&nested, &its, tcs_of(tcs_index), 0);
	its.code = TURN_SKIP;
	own_near(&nested);
}

/* ---- the thread -------------------------------------------------------------------------------- */

static volatile int to_do, done;
static volatile uint64_t flags_to_do;
static volatile int way_to_go;
static pthread_t worker;
static pid_t worker_tid;
static clockid_t worker_clock;

static void *work(void *nothing)
{
	worker_tid = gettid();
	warm_up(0);
	fsbase = read_fsbase();
	gsbase = read_gsbase();
	done = 1;
	for (int turns = 1;; turns++) {
		while (to_do != turns)
			sched_yield();
		go(flags_to_do, way_to_go);
		/* Who has held it may stand there by now. */
		take_away();
		done = turns + 1;
	}
	return NULL;
}

static uint64_t time_of(clockid_t clock)
{
	struct timespec now;

	if (clock_gettime(clock, &now))
		return 0;
	return now.tv_sec * 1000000000UL + now.tv_nsec;
}

/* Wait until the thread stands, or has passed by; tell whether it stands. */
static bool stands(void)
{
	uint64_t start = time_of(worker_clock);

	while (time_of(worker_clock) < start + STANDING && done != to_do + 1)
		sched_yield();
	return done != to_do + 1;
}

/* A code page of its own for each first transition, that is to be seen to be executed. */
static void hold_everybody(void)
{
	void *page = copy_own_enter();
	struct own mine;
	struct turn its;

	for (int i = 0; i < 2; i++) {
		fill(&mine, &its, tcs_of(1), 0);
		its.code = TURN_EXIT_LOAD;
		((void (*)(struct own *))page)(&mine);
	}
}

static bool stopped_there(const char *how, int way, uint64_t flags)
{
	seen_there = strcmp(how, "signal");
	seen_wrong = NULL;
	flags_to_do = flags;
	way_to_go = way;
	put();
	if (before_entry() && !is("trap"))
		choose_way(way, fsbase, gsbase, tcs_of(tcs_index));
	to_do++;
	if (!stands())
		seen_there = false;
	else if (!strcmp(how, "hold"))
		hold_everybody();
	else if (!strcmp(how, "signal"))
		syscall(SYS_tgkill, getpid(), worker_tid, SIGUSR1);
	while (done != to_do + 1)
		sched_yield();
	usual_way();
	take_away();
	return seen_there;
}

static void with_thread(const char *how, const char *word, uint64_t flags)
{
	bool there = false;
	const char *wrong = NULL;

	for (int i = 0; i < TRIES * WAYS && !there && !wrong; i++) {
		there = stopped_there(how, i % WAYS, flags);
		wrong = seen_wrong ? (const char *)seen_wrong : wrong_result();
	}
	if (wrong)
		check(false, word, "%s %#lx: %s", how, flags, wrong);
	else
		check(there, word, "%s: never stood there", how);
}

/* ---- a process of its own ---------------------------------------------------------------------- */

static struct {
	volatile bool goes, done;
} *shared;

static void in_child(const char *how, const char *word, int way)
{
	const char *wrong;

	warm_up(tcs_index);
	put();
	if (before_entry() && !is("trap"))
		choose_way(way, fsbase, gsbase, tcs_of(tcs_index));
	shared->goes = true;
	go(0, way);
	shared->done = true;
	usual_way();
	take_away();
	wrong = wrong_result();
	if (wrong)
		check(false, word, "%s: %s", how, wrong);
	_exit(wrong != NULL);
}

static bool process_stands(pid_t child)
{
	clockid_t clock;
	uint64_t start;

	if (clock_getcpuclockid(child, &clock))
		fail("the clock of a process");
	while (!shared->goes)
		sched_yield();
	start = time_of(clock);
	while (time_of(clock) < start + STANDING && !shared->done)
		sched_yield();
	return !shared->done;
}

/* Whoever was inside has made an exit that nobody resumes. */
static bool can_be_entered(void)
{
	struct own mine;
	struct turn its;
	bool was_inside = is("inside") || before_exit();

	fill(&mine, &its, tcs_of(tcs_index), 0);
	own_near(&mine);
	if (was_inside && ++tcs_index == TCSS)
		fail("no TCS is left");
	return its.out[RAX] == was_inside;
}

static void with_process(const char *how, const char *word)
{
	int status = 0;

	for (int i = 0; i < TRIES * WAYS; i++) {
		pid_t child;
		bool there;

		shared->goes = shared->done = false;
		child = fork_bound();
		if (!child)
			in_child(how, word, i % WAYS);
		there = process_stands(child);
		if (there && !strcmp(how, "kill")) {
			kill(child, SIGKILL);
			waitpid(child, &status, 0);
			check(can_be_entered(), word, "kill: the CSSA of the next entry");
			return;
		}
		if (there) {
			kill(child, SIGSTOP);
			if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status))
				fail("no stop: %#x", status);
			kill(child, SIGCONT);
		}
		waitpid(child, &status, 0);
		if (status || there) {
			check(status == 0, word, "%s: status %#x", how, status);
			return;
		}
	}
	check(false, word, "%s: never stood there", how);
}

int main(int argc, char **argv)
{
	const char *how = argc > 4 ? argv[3] : "";
	bool by_process;

	begin(argc, argv);
	end_after(100);
	enclave = build(&the_image);
	own_near = copy_own_enter();
	image_start = (uint8_t *)getauxval(AT_SYSINFO_EHDR);
	table = (uint64_t *)(image_start + strtoul(argv[4], NULL, 0));
	handle(SIGUSR1, on_signal);
	handle(SIGSEGV, on_segv);
	make_writable(image_start);
	by_process = !strcmp(how, "kill") || !strcmp(how, "stop");
	if (by_process) {
		shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		warm_up(tcs_index);
		fsbase = read_fsbase();
		gsbase = read_gsbase();
	} else if (pthread_create(&worker, NULL, work, NULL) ||
		   pthread_getcpuclockid(worker, &worker_clock)) {
		fail("a thread");
	}
	while (!by_process && !done)
		sched_yield();
	entry_slot = led_to((const uint8_t *)own_at(own_move), "EENTER");
	exit_slot = led_to((const uint8_t *)at_symbol(&enclave, "exit_site") - 5, "EEXIT");
	make_writable(exit_slot);
	long_slot = led_to((const uint8_t *)at_symbol(&enclave, "exit_long_move"), "longer EEXIT");
	for (int i = 5; i < argc; i++) {
		find_place(argv[i]);
		if (by_process) {
			with_process(how, argv[i]);
			continue;
		}
		with_thread(how, argv[i], 0);
		with_thread(how, argv[i], ARITHMETIC);
	}
	return finish();
}
