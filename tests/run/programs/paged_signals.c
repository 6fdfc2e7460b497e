/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals, stops and ends of threads whose enclave's pages come and go.
 *
 *     paged_signals ENCLAVE SIGSTRUCT BYTES WHAT
 *
 * BYTES of the enclave's heap, more than the EPC, are filled and hashed. WHAT is
 *     storm      by threads that a signal interrupts a thousand times a second, whose handler enters, too
 *     actions    whatever the program does with SIGSEGV and SIGBUS, which it never gets
 *     stopped    by a child that is stopped and continued
 *     ends       by threads that end inside, all at once or one by one, by exit or exec
 *     resumed    by a thread that was interrupted, and goes on when all its pages have been out
 *     read-only  from outside, through a mapping by a descriptor that can only be read
 */
#include "host.h"

#include <sys/syscall.h>
#include <time.h>

#define THREADS 4
#define ENDING 2
#define STOPS 12
#define TICKS 100

static struct enclave enclave;
static uint64_t heap, bytes;

static void expect(uint64_t length, uint64_t seed, uint64_t *hash, uint64_t *sum)
{
	*hash = *sum = 0;
	for (uint64_t i = 0; i < length / 8; i++) {
		seed = next_word(seed);
		*hash = mix_word(*hash, seed);
		*sum += seed;
	}
}

static bool fill(int index, uint64_t at, uint64_t length, uint64_t seed)
{
	struct op op = { .code = OP_FILL, .a = at, .b = length, .c = seed };

	return do_op(&enclave, index, &op);
}

static bool is_filled(int index, uint64_t at, uint64_t length, uint64_t seed)
{
	struct op op = { .code = OP_HASH, .a = at, .b = length };
	uint64_t hash, sum;

	expect(length, seed, &hash, &sum);
	return do_op(&enclave, index, &op) && op.out[0] == hash && op.out[1] == sum;
}

/* From outside, which the processor of a debug enclave alone would allow. */
static bool looks_filled(uint64_t seed)
{
	const volatile uint64_t *word = (const volatile uint64_t *)heap;
	uint64_t wrong = 0;

	for (uint64_t i = 0; i < bytes / 8; i++) {
		seed = next_word(seed);
		wrong += word[i] != seed;
	}
	return !wrong;
}

/* ---- a storm of signals ------------------------------------------------------------------- */

static volatile int ticks, nested_wrong;
static __thread volatile bool in_enclave;
static __thread int own_tcs;

static void tick(int number)
{
	struct op op = { .code = OP_ENTRY };

	__atomic_add_fetch(&ticks, 1, __ATOMIC_RELAXED);
	/* Where it has interrupted the enclave, into its second frame; else into its first. */
	if (in_enclave && (!do_op(&enclave, own_tcs, &op) || op.out[ENTRY_RAX] > 1))
		nested_wrong++;
}

static void *hash_in_storm(void *argument)
{
	uint64_t length = bytes / THREADS / PAGE * PAGE, wrong = 0;
	static const struct timespec ms = { 0, 1000000 };
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = SIGUSR1,
	};
	struct itimerspec every = { ms, ms };
	timer_t timer;

	own_tcs = (uintptr_t)argument;
	event._sigev_un._tid = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &every, NULL))
		fail("timer");
	in_enclave = true;
	for (int turn = 0; turn < 3 || ticks < TICKS; turn++) {
		uint64_t seed = own_tcs * 100 + turn;

		wrong += !fill(own_tcs, heap + own_tcs * length, length, seed);
		wrong += !is_filled(own_tcs, heap + own_tcs * length, length, seed);
	}
	in_enclave = false;
	timer_delete(timer);
	return (void *)wrong;
}

static void storm(void)
{
	pthread_t thread[THREADS];
	void *wrong;

	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = tick, .sa_flags = SA_RESTART }, NULL);
	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&thread[i], NULL, hash_in_storm, (void *)i))
			fail("pthread_create");
	for (int i = 0; i < THREADS; i++) {
		char name[20];

		pthread_join(thread[i], &wrong);
		snprintf(name, sizeof(name), "thread %d", i);
		check(!wrong, name, "%lu wrong", (unsigned long)wrong);
	}
	check_equal("wrong entries by the handler", nested_wrong, 0);
}

/* ---- what the program does with the signals of a page that is not there ------------------- */

static volatile int unwanted;

static void count_unwanted(int number)
{
	unwanted++;
}

struct state {
	uint64_t mask;
	void *handler[2];
};

static struct state state(void)
{
	struct sigaction action;
	struct state now;
	sigset_t mask;

	sigprocmask(SIG_SETMASK, NULL, &mask);
	now.mask = *(uint64_t *)&mask;
	sigaction(SIGSEGV, NULL, &action);
	now.handler[0] = (void *)action.sa_handler;
	sigaction(SIGBUS, NULL, &action);
	now.handler[1] = (void *)action.sa_handler;
	return now;
}

static void with(const char *name, void (*handler)(int), bool all_blocked)
{
	static const int faults[] = { SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP };
	struct state before, after;
	char text[80];
	sigset_t mask;

	sigemptyset(&mask);
	for (int i = 0; i < 5; i++)
		sigaddset(&mask, faults[i]);
	signal(SIGSEGV, handler);
	signal(SIGBUS, handler);
	if (all_blocked)
		sigprocmask(SIG_BLOCK, &mask, NULL);
	before = state();
	snprintf(text, sizeof(text), "%s: inside", name);
	CHECK(text, is_filled(0, heap, bytes, 1));
	snprintf(text, sizeof(text), "%s: outside", name);
	CHECK(text, looks_filled(1));
	snprintf(text, sizeof(text), "%s: inside again", name);
	CHECK(text, is_filled(0, heap, bytes, 1));
	after = state();
	snprintf(text, sizeof(text), "%s: nothing has changed", name);
	check(!memcmp(&before, &after, sizeof(before)), text, "mask %#lx, handlers %p %p; before %#lx %p %p",
	      after.mask, after.handler[0], after.handler[1], before.mask, before.handler[0],
	      before.handler[1]);
	sigprocmask(SIG_UNBLOCK, &mask, NULL);
}

static void actions(void)
{
	CHECK("filled", fill(0, heap, bytes, 1));
	with("default", SIG_DFL, false);
	with("handled", count_unwanted, false);
	with("ignored", SIG_IGN, false);
	with("blocked", SIG_DFL, true);
	with("blocked and handled", count_unwanted, true);
	with("blocked and ignored", SIG_IGN, true);
	check_equal("signals that the program got", unwanted, 0);
}

/* ---- stops and ends ----------------------------------------------------------------------- */

static void stopped(void)
{
	struct op touch = { .code = OP_TOUCH, .a = heap, .b = bytes, .c = 1 };
	int status, stops = 0;
	pid_t child = fork_bound();

	if (!child) {
		bool right = true;

		for (int turn = 0; turn < 3; turn++)
			right = right && fill(0, heap, bytes, turn) && is_filled(0, heap, bytes, turn) &&
				looks_filled(turn);
		_exit(!right);
	}
	for (;;) {
		if (stops < STOPS)
			kill(child, SIGSTOP);
		if (waitpid(child, &status, WUNTRACED) != child)
			fail("waitpid");
		if (!WIFSTOPPED(status))
			break;
		/* Pages of a process that is stopped go out, too. */
		if (stops++ % 4 == 0)
			do_op(&enclave, 1, &touch);
		kill(child, SIGCONT);
		usleep(3000);
	}
	check_equal("the child's answers", status, 0);
	check(stops > 0, "it was stopped", "never");
}

static void *hash_for_ever(void *argument)
{
	struct op op = { .code = OP_TOUCH, .a = heap, .b = bytes, .c = 1UL << 40 };

	do_op(&enclave, (uintptr_t)argument, &op);
	_exit(8);
}

static void end_here(int number)
{
	syscall(SYS_exit, 0);
}

/* By TCSs of their own: who ends inside leaves a frame behind. */
static pid_t with_threads_inside(pthread_t *thread, int way)
{
	pid_t child = fork_bound();

	if (!child) {
		for (uintptr_t i = 0; i < ENDING; i++)
			if (pthread_create(&thread[i], NULL, hash_for_ever,
					   (void *)(1 + way * ENDING + i)))
				_exit(9);
		usleep(20000);
	}
	return child;
}

static void ends(void)
{
	static const char *const how[] = { "exit", "exec", "a signal", "the threads' own" };
	pthread_t thread[ENDING];
	int status;

	CHECK("filled", fill(0, heap, bytes, 2));
	for (int way = 0; way < 4; way++) {
		pid_t child = with_threads_inside(thread, way);

		if (!child) {
			if (way == 0)
				_exit(0);
			if (way == 1)
				execlp("true", "true", NULL);
			if (way == 2)
				kill(getpid(), SIGKILL);
			signal(SIGUSR1, end_here);
			for (int i = 0; i < ENDING; i++)
				pthread_kill(thread[i], SIGUSR1);
			/* By a TCS whose first frame is an ended thread's. */
			_exit(!is_filled(1, heap, bytes, 2));
		}
		CHECK(how[way], is_filled(0, heap, bytes, 2));
		if (waitpid(child, &status, 0) != child)
			fail("waitpid");
		check_equal("the child's end", status, way == 2 ? SIGKILL : 0);
		CHECK("and afterwards", is_filled(0, heap, bytes, 2));
	}
}

/* ---- an interrupted thread whose pages go out --------------------------------------------- */

static void nothing(int number)
{
}

static void resumed(void)
{
	static const struct itimerval soon = { { 0, 1000 }, { 0, 1000 } }, never;
	struct op op = { .code = OP_LOOP, .a = 3000000 };
	uint64_t sum = 0, interrupted = 0;
	struct bare bare = bare_record(EENTER, tcs(&enclave, 5), bare_capture, &op);

	signal(SIGALRM, nothing);
	CHECK("filled", fill(0, heap, bytes, 3));
	for (uint64_t i = 0; i < op.a; i++)
		sum += i * i;
	setitimer(ITIMER_REAL, &soon, NULL);
	bare_enclu(&bare);
	while (bare.where == 2) {
		setitimer(ITIMER_REAL, &never, NULL);
		interrupted++;
		/* Its SSA frame, its TCS, its stack are used by nobody meanwhile. */
		CHECK("hashed", is_filled(0, heap, bytes, 3));
		CHECK("hashed again", is_filled(0, heap, bytes, 3));
		memcpy(bare.in, bare.out, sizeof(bare.in));
		bare.in_fx = bare.out_fx;
		if (interrupted < 5)
			setitimer(ITIMER_REAL, &soon, NULL);
		bare.where = 0;
		bare_enclu(&bare);
	}
	setitimer(ITIMER_REAL, &never, NULL);
	check(interrupted > 0, "it was interrupted", "never");
	check_equal("its sum", op.out[0], sum);
	check_equal("its turns", op.out[1], op.a);
}

/* ---- a mapping that nobody can write ------------------------------------------------------ */

static void *read_all(void *argument)
{
	const struct segment *data = &the_image.segment[3];
	uint64_t at = enclave.base + data->offset, wrong = 0;

	for (int turn = 0; turn < 3; turn++)
		for (uint64_t i = 0; i < data->length / 8; i++)
			wrong += ((const volatile uint64_t *)at)[i] != ((const uint64_t *)data->data)[i];
	return (void *)wrong;
}

static void read_only(void)
{
	const struct segment *data = &the_image.segment[3];
	uint64_t *word = (uint64_t *)data->data;
	pthread_t thread[THREADS];
	struct secs secs;
	void *wrong, *at;
	int status;
	pid_t child;

	enclave = (struct enclave){
		.fd = open(SGX_NODE, O_RDONLY | O_CLOEXEC),
		.base = reserve(the_image.size),
		.size = the_image.size,
		.image = &the_image,
	};
	at = (void *)(enclave.base + data->offset);
	secs = enclave_secs(&enclave, 0);
	for (uint64_t i = 0, value = 1; i < data->length / 8; i++)
		word[i] = value = next_word(value);
	check_works("CREATE", create(enclave.fd, &secs));
	check_works("ADD_PAGES", add_segments(enclave.fd, &the_image));
	CHECK("mapped", mmap(at, data->length, PROT_READ, MAP_SHARED | MAP_FIXED, enclave.fd, 0) == at);
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&thread[i], NULL, read_all, NULL))
			fail("pthread_create");
	child = fork_bound();
	if (!child)
		_exit(!!read_all(NULL));
	for (int i = 0; i < THREADS; i++) {
		pthread_join(thread[i], &wrong);
		check_equal("words that a thread has read wrong", (uint64_t)wrong, 0);
	}
	waitpid(child, &status, 0);
	check_equal("a child, too", status, 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc < 5)
		fail("usage: paged_signals ENCLAVE SIGSTRUCT BYTES WHAT");
	bytes = strtoul(argv[3], NULL, 0);
	if (!strcmp(argv[4], "read-only")) {
		read_only();
		return finish();
	}
	enclave = build(&the_image);
	heap = at_symbol(&enclave, "heap_begin");
	if (!strcmp(argv[4], "storm"))
		storm();
	else if (!strcmp(argv[4], "actions"))
		actions();
	else if (!strcmp(argv[4], "stopped"))
		stopped();
	else if (!strcmp(argv[4], "ends"))
		ends();
	else if (!strcmp(argv[4], "resumed"))
		resumed();
	else
		fail("no %s", argv[4]);
	return finish();
}
