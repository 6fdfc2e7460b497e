/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PROGRAM ENCLAVE SIGSTRUCT SEED STEPS [interrupted]: two enclaves, three threads, and whatever the seed decides, one step after
 * the other: turns through the vDSO and by an EENTER of the program's own, faults inside, nested entries from
 * handlers, usercalls that another thread ends, signals, masks, ignored signals, single steps, mappings that go and
 * come, TCSs that are none, children, threads that end. All that can be observed is printed, an address by what it is
 * in, so that two runs with one seed print the same, whoever makes their transitions. Where threads inside are
 * interrupted at any moment, their TCS is free in between, and nobody tries it.
 */
#include "own_enter.h"

#include <sched.h>
#include <sys/syscall.h>

#define THREADS 3
#define ENCLAVES 2
#define USED_TCSS 4

static struct enclave enclaves[ENCLAVES];
static uint64_t image_start, state;
static bool interrupted;
static uint8_t *hole; /* a page that nobody may touch */

/* ---- what is printed -------------------------------------------------------------------------- */

static char line[1 << 16];
static size_t used;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	used += vsnprintf(line + used, sizeof(line) - used, format, list);
	va_end(list);
	if (used >= sizeof(line))
		fail("too long a line");
}

static void end_line(void)
{
	say("\n");
	for (size_t at = 0; at < used;) {
		ssize_t wrote = write(1, line + at, used - at);

		if (wrote < 0 && errno != EINTR)
			_exit(3);
		at += wrote > 0 ? wrote : 0;
	}
	used = 0;
}

/* A value that does not depend on where things lie. */
static void say_value(const char *name, uint64_t value)
{
	for (int i = 0; i < ENCLAVES; i++)
		if (value - enclaves[i].base < enclaves[i].size) {
			say(" %s=E%d+%lx", name, i, value - enclaves[i].base);
			return;
		}
	if (value - (uint64_t)own_near < PAGE)
		say(" %s=own+%lx", name, value - (uint64_t)own_near);
	else if (value - image_start < 4 * PAGE)
		say(" %s=image+%lx", name, value - image_start);
	else if (value - (uint64_t)hole < PAGE)
		say(" %s=hole+%lx", name, value - (uint64_t)hole);
	else if (value >> 32 == 0 || value >> 48 == 0x1057 || value >> 48 == 0x5a5a)
		say(" %s=%lx", name, value);
	else
		say(" %s=?", name);
}

static const char *const names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
				       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15" };

static void say_registers(const char *what, const uint64_t *regs, unsigned int but)
{
	say(" %s", what);
	for (int i = 0; i < 16; i++)
		if (!(but >> i & 1))
			say_value(names[i], regs[i]);
}

static void say_flags(uint64_t flags)
{
	say(" fl=%lx", flags & (ARITHMETIC | DIRECTION | 0x100));
}

/* ---- what is decided -------------------------------------------------------------------------- */

static unsigned int choose(unsigned int limit)
{
	state = state * 6364136223846793005 + 1442695040888963407;
	return (state >> 33) % limit;
}

static uint64_t some_flags(void)
{
	uint64_t flags = 0;

	for (int bit = 0; bit < 12; bit++)
		if (choose(2))
			flags |= 1UL << bit;
	return (flags & ARITHMETIC) | (choose(4) ? 0 : DIRECTION);
}

/* ---- a transition ------------------------------------------------------------------------------ */

/* Where a call stands, for the handlers of what happens in it. */
struct call {
	struct call *outer;
	uint64_t tcs_address;
	int enclave;
	bool own, resumes_here;
	struct own registers;
	struct turn turn;
	struct sgx_enclave_run run;
};

static volatile bool stop_spinning;
static struct call *volatile spinner;

static __thread struct call *innermost;
static __thread int depth;
static __thread uint64_t fsbase, gsbase;

static void one_call(int enclave, uint64_t tcs_address, bool own, int code);

/* Once more in by the same TCS, or by another, as a handler may. */
static void nested(struct call *call, bool skip)
{
	if (choose(3) == 0 && depth < 2)
		one_call(call->enclave, call->tcs_address, choose(2), choose(2) ? TURN_EXIT_LONG : TURN_LOOP);
	if (skip)
		one_call(call->enclave, call->tcs_address, choose(2), TURN_SKIP);
}

static int handler_of_run(long rdi, long rsi, long rdx, long rsp, long r8, long r9,
			  struct sgx_enclave_run *run)
{
	say(" handler(");
	say_value("rdi", rdi);
	say_value("rsi", rsi);
	say_value("rdx", rdx);
	say_value("r8", r8);
	say_value("r9", r9);
	say(" function=%u)", run->function);
	return 0;
}

/* What the processor gave the enclave; through the vDSO, what its function passes on. */
static void say_entry(const struct call *call)
{
	const uint64_t *out = call->turn.out;

	if (!out[RCX]) {
		say(" never in");
		return;
	}
	say(" in:");
	if (call->own) {
		say_registers("", out, 1 << RDI | 1 << RSP);
		say(" rsp%s rdi%s", out[RSP] == call->registers.in[RSP] ? "" : " WRONG",
		    out[RDI] == (uint64_t)&call->turn ? "" : " WRONG");
		say_flags(out[16]);
	} else {
		say_value("rax", out[RAX]);
		say_value("rcx", out[RCX]);
		say_value("rbx", out[RBX]);
		say_value("rdx", out[RDX]);
		say_value("rsi", out[RSI]);
		say_value("r8", out[R8]);
		say_value("r9", out[R9]);
	}
	say_value("fs", out[17]);
	say_value("gs", out[18]);
}

static void say_exit(const struct call *call)
{
	const struct own *own = &call->registers;

	if (!call->own) {
		say(" run: function=%u vector=%u error=%x", call->run.function,
		    call->run.exception_vector, call->run.exception_error_code);
		say_value("address", call->run.exception_addr);
	} else {
		bool moved = call->turn.code == TURN_EXIT_TO;

		say(" out:");
		say_registers("", own->out, 1 << RSP | 1 << RBP | 1 << RDI | (moved ? 1 << RBP : 0));
		say(" rsp%s rbp%s", own->out[RSP] == own->in[RSP] ? "" : " WRONG",
		    moved || own->out[RBP] == own->in[RBP] ? "" : " WRONG");
		say_flags(own->flags);
	}
	say(" bases%s", read_fsbase() == fsbase && read_gsbase() == gsbase ? "" : " WRONG");
	say(" result=%lx", call->turn.result);
}

static void finish_vdso(struct call *call)
{
	/* What was interrupted is made to end. */
	for (int i = 0; i < 4 && call->run.function == ERESUME; i++) {
		say(" run: function=3 vector=%u error=%x", call->run.exception_vector,
		    call->run.exception_error_code);
		say_value("address", call->run.exception_addr);
		nested(call, true);
		say(" resumed=%d", call_vdso((uint64_t)&call->turn, 0, 0, ERESUME, 0, 0, &call->run));
	}
}

static void one_call(int enclave, uint64_t tcs_address, bool own, int code)
{
	struct call call = { .outer = innermost, .tcs_address = tcs_address, .enclave = enclave, .own = own };
	struct turn *turn = &call.turn;

	innermost = &call;
	depth++;
	say(" [%s %d", own ? "own" : "vdso", code);
	fill(&call.registers, turn, tcs_address, some_flags());
	turn->code = code;
	turn->a = code == TURN_LOOP	? 10 + choose(200) :
		  code == TURN_SPIN	? (uint64_t)&stop_spinning :
		  code == TURN_READ	? (uint64_t)hole :
		  code == TURN_EXIT_TO && choose(2) ? 0x1234567890abcdef :
						0;
	if (code == TURN_SPIN)
		spinner = &call;
	if (code == TURN_SYSCALL)
		turn->in[RAX] = SYS_getppid;
	if (own) {
		own_near(&call.registers);
	} else {
		call.run.tcs = tcs_address;
		if (choose(3) == 0)
			call.run.user_handler = (uint64_t)handler_of_run;
		if (code == TURN_EXIT_TO)
			turn->a = 0x1234567890abcdef; /* its caller needs RBP */
		say(" returned=%d", call_vdso((uint64_t)turn, 0x5a5a1, 0x5a5a2, EENTER, 0x5a5a3, 0x5a5a4, &call.run));
		finish_vdso(&call);
	}
	say_entry(&call);
	say_exit(&call);
	say("]");
	depth--;
	innermost = call.outer;
}

/* ---- signals ----------------------------------------------------------------------------------- */

static __thread int trapped;
static volatile int handled;

static void on_signal(int number, siginfo_t *info, void *context)
{
	static const int order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
				       REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
				       REG_R12, REG_R13, REG_R14, REG_R15 };
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	struct call *call = innermost;
	uint64_t got[16], rip = regs[REG_RIP];
	bool at_own = call && call->own;

	for (int i = 0; i < 16; i++)
		got[i] = regs[order[i]];
	say(" {signal %d code %d", number, info->si_code);
	if (info->si_code > 0)
		say_value("address", (uint64_t)info->si_addr);
	if (rip - (uint64_t)own_near < PAGE || rip - image_start < 4 * PAGE)
		say_value("rip", rip);
	say(" bases%s", read_fsbase() == fsbase && read_gsbase() == gsbase ? "" : " WRONG");
	if (number == SIGTRAP && regs[REG_EFL] & 0x100) {
		/* It single-steps; until it is behind. */
		if (rip == own_at(own_enclu) || rip == own_at(own_behind))
			say_registers("", got, 1 << RSP | 1 << RBP | 1 << RDI);
		if (++trapped > 60 || rip == own_at(own_behind) + 1)
			regs[REG_EFL] &= ~0x100;
		say("}");
		return;
	}
	if (at_own && rip == own_at(own_aep)) {
		say_registers("", got, 1 << RSP);
		say_flags(regs[REG_EFL]);
		say(" rsp%s", got[RSP] == call->registers.in[RSP] ? "" : " WRONG");
		nested(call, info->si_code > 0);
	} else if (at_own && rip == own_at(own_enclu) && info->si_code > 0) {
		/* The EENTER itself has faulted. */
		say_registers("", got, 1 << RSP | 1 << RDI);
		say_flags(regs[REG_EFL]);
		regs[REG_RIP] = own_at(own_behind);
	} else if (!call && choose(2)) {
		one_call(choose(ENCLAVES), tcs(&enclaves[0], 0) + 0, choose(2), TURN_EXIT);
	}
	say("}");
	handled++;
}

static const int handled_signals[] = { SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS, SIGUSR1 };

static void handle_all(void)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER };

	for (size_t i = 0; i < sizeof(handled_signals) / sizeof(int); i++)
		sigaction(handled_signals[i], &action, NULL);
}

static void say_signals(void)
{
	struct sigaction action;
	sigset_t mask;

	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	say(" signals:");
	for (size_t i = 0; i < sizeof(handled_signals) / sizeof(int); i++) {
		sigaction(handled_signals[i], NULL, &action);
		say("%s%s", action.sa_handler == SIG_IGN ? "i" : action.sa_handler == SIG_DFL ? "d" : "h",
		    sigismember(&mask, handled_signals[i]) ? "b" : "");
	}
}

/* ---- the threads ------------------------------------------------------------------------------- */

static struct worker {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	void (*task)(void);
	bool ends;
	pid_t tid;
} workers[THREADS];

static void *work(void *argument)
{
	struct worker *worker = argument;

	worker->tid = gettid();
	fsbase = read_fsbase();
	gsbase = read_gsbase();
	pthread_mutex_lock(&worker->mutex);
	while (!worker->ends) {
		while (!worker->task && !worker->ends)
			pthread_cond_wait(&worker->changed, &worker->mutex);
		if (worker->task) {
			worker->task();
			worker->task = NULL;
			pthread_cond_broadcast(&worker->changed);
		}
	}
	pthread_mutex_unlock(&worker->mutex);
	return NULL;
}

static void begin_worker(struct worker *worker)
{
	pthread_mutex_init(&worker->mutex, NULL);
	pthread_cond_init(&worker->changed, NULL);
	worker->task = NULL;
	worker->ends = false;
	if (pthread_create(&worker->thread, NULL, work, worker))
		fail("a thread");
}

static void let(struct worker *worker, void (*task)(void))
{
	pthread_mutex_lock(&worker->mutex);
	worker->task = task;
	pthread_cond_broadcast(&worker->changed);
	pthread_mutex_unlock(&worker->mutex);
}

static void wait_for(struct worker *worker)
{
	pthread_mutex_lock(&worker->mutex);
	while (worker->task)
		pthread_cond_wait(&worker->changed, &worker->mutex);
	pthread_mutex_unlock(&worker->mutex);
}

/* ---- the steps --------------------------------------------------------------------------------- */

static int some_enclave, some_tcs;

static uint64_t where(void)
{
	return tcs(&enclaves[some_enclave], some_tcs);
}

static void do_turn(void)
{
	static const int plain[] = { TURN_EXIT, TURN_EXIT, TURN_EXIT_LONG, TURN_EXIT_LOAD,
				     TURN_LOOP, TURN_MOVE_GS, TURN_TRAP_FLAG };

	for (int i = choose(4); i >= 0; i--)
		one_call(some_enclave, where(), choose(2), plain[choose(7)]);
}

static void do_fault(void)
{
	static const int faults[] = { TURN_UD2,	    TURN_READ,	TURN_DIVIDE,  TURN_INT3,
				      TURN_SYSCALL, TURN_CPUID, TURN_EXIT_TO, TURN_ENTER };

	one_call(some_enclave, where(), choose(2), faults[choose(8)]);
}

static void do_first_half(void)
{
	one_call(some_enclave, where(), choose(2), TURN_OCALL);
}

static void do_second_half(void)
{
	one_call(some_enclave, where(), choose(2), TURN_EXIT);
}

static void do_ocall(void)
{
	do_first_half();
	do_second_half();
}

static void do_masked(void)
{
	sigset_t mask, before;

	sigemptyset(&mask);
	if (choose(2))
		sigaddset(&mask, SIGUSR1);
	for (int i = 0; i < 6; i++)
		if (choose(3) == 0)
			sigaddset(&mask, handled_signals[i]);
	pthread_sigmask(SIG_BLOCK, &mask, &before);
	do_turn();
	say_signals();
	if (sigismember(&mask, SIGUSR1))
		raise(SIGUSR1);
	do_turn();
	say_signals();
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	say_signals();
}

static void do_ignored(void)
{
	int number = handled_signals[choose(6)];

	signal(number, SIG_IGN);
	do_turn();
	say_signals();
	raise(number);
	do_turn();
	say_signals();
	handle_all();
}

static void do_single_steps(void)
{
	struct call call = { .tcs_address = where(), .own = true };

	innermost = &call;
	trapped = 0;
	fill(&call.registers, &call.turn, where(), 0x100);
	call.turn.code = choose(2) ? TURN_EXIT : TURN_EXIT_LONG;
	say(" [steps");
	own_near(&call.registers);
	say_entry(&call);
	say_exit(&call);
	say(" trapped=%d]", trapped);
	innermost = NULL;
}

static void do_raise(void)
{
	raise(SIGUSR1);
}

static void do_unmapped(void)
{
	uint64_t tcs_address = where();
	bool gone = choose(2), own = choose(2);

	one_call(some_enclave, tcs_address, own, TURN_EXIT);
	if (gone)
		munmap((void *)tcs_address, PAGE);
	else
		mprotect((void *)tcs_address, PAGE, PROT_NONE);
	one_call(some_enclave, tcs_address, own, TURN_EXIT);
	if (gone)
		mmap((void *)tcs_address, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		     enclaves[some_enclave].fd, 0);
	else
		mprotect((void *)tcs_address, PAGE, PROT_READ | PROT_WRITE);
	one_call(some_enclave, tcs_address, own, TURN_EXIT);
}

static void do_no_tcs(void)
{
	static const uint64_t offsets[] = { 8, 100 * PAGE, -PAGE };
	unsigned int which = choose(4);

	one_call(some_enclave, which == 3 ? 0 : tcs(&enclaves[some_enclave], 0) + offsets[which],
		 choose(2), TURN_EXIT);
}

static void do_spin(void)
{
	stop_spinning = false;
	one_call(some_enclave, where(), true, TURN_SPIN);
	spinner = NULL;
}

static void until_inside(void)
{
	unsigned long before = spinner->turn.result;

	while (spinner->turn.result == before)
		sched_yield();
}

/* A signal to a thread inside, and somebody else at its TCS. */
static void disturb(struct worker *worker, struct worker *other)
{
	int before = handled;

	let(worker, do_spin);
	while (!spinner)
		sched_yield();
	until_inside();
	if (choose(3)) {
		syscall(SYS_tgkill, getpid(), worker->tid, SIGUSR1);
		while (handled == before)
			sched_yield();
		until_inside();
	}
	if (other != worker && !interrupted) {
		let(other, do_second_half);
		wait_for(other);
	}
	stop_spinning = true;
}

static void do_child(void)
{
	pid_t child;
	int status;

	end_line();
	child = fork_bound();
	if (!child) {
		say("  child:");
		do_turn();
		do_fault();
		do_turn();
		end_line();
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child)
		fail("waitpid");
	say("  status %x", status);
	do_turn();
}

static void step(int number)
{
	struct worker *worker = &workers[choose(THREADS)], *other = &workers[choose(THREADS)];
	unsigned int kind = choose(25);

	some_enclave = choose(ENCLAVES);
	some_tcs = choose(USED_TCSS);
	say("%d: thread %d E%d tcs %d kind %u:", number, (int)(worker - workers), some_enclave, some_tcs, kind);
	switch (kind) {
	case 0 ... 6:
		let(worker, do_turn);
		break;
	case 7 ... 10:
		let(worker, do_fault);
		break;
	case 11:
		let(worker, do_ocall);
		break;
	case 12:
		let(worker, do_first_half);
		wait_for(worker);
		let(other, do_second_half);
		wait_for(other);
		break;
	case 13:
		let(worker, do_masked);
		break;
	case 14:
		let(worker, do_ignored);
		break;
	case 15:
		let(worker, do_single_steps);
		break;
	case 16:
		let(worker, do_raise);
		break;
	case 17:
		let(worker, do_unmapped);
		break;
	case 18:
		let(worker, do_no_tcs);
		break;
	case 19:
		let(worker, do_child);
		break;
	case 20:
		disturb(worker, other);
		break;
	case 21:
		pthread_mutex_lock(&worker->mutex);
		worker->ends = true;
		pthread_cond_broadcast(&worker->changed);
		pthread_mutex_unlock(&worker->mutex);
		pthread_join(worker->thread, NULL);
		begin_worker(worker);
		let(worker, do_turn);
		break;
	default:
		let(worker, do_turn);
		wait_for(worker);
		let(other, do_turn);
		wait_for(other);
	}
	wait_for(worker);
	end_line();
}

int main(int argc, char **argv)
{
	int steps = argc > 4 ? atoi(argv[4]) : 40;

	begin(argc, argv);
	interrupted = argc > 5;
	end_after(100);
	state = strtoull(argv[3], NULL, 0) * 0x9e3779b97f4a7c15 + 1;
	image_start = getauxval(AT_SYSINFO_EHDR);
	own_near = copy_own_enter();
	hole = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < ENCLAVES; i++)
		enclaves[i] = build(&the_image);
	fsbase = read_fsbase();
	gsbase = read_gsbase();
	handle_all();
	for (int i = 0; i < THREADS; i++)
		begin_worker(&workers[i]);
	for (int i = 0; i < steps; i++)
		step(i);
	return finish();
}
