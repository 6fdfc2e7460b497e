/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program whose enclave uses AEX-Notify: whatever interrupts it, every result is right, and the enclave is told of
 * the exits. WHAT is
 *
 *     once          what one exit shows, and one leaf that faults
 *     report2       EVERIFYREPORT2 of zeros; TURNS is what RAX shall be
 *     signals       SIGALRM at 1 kHz: the threads enter until they have been told WANTED times, all together
 *     interrupted   the same, interrupted by somebody else
 *     unarmed       each thread enters WANTED times, and is never told
 */
#include "host.h"

#include "aex_notify.h"

#define ATTRIBUTE_AEXNOTIFY (1UL << 10)
#define EVERIFYREPORT2 8
#define EDECCSSA 9
#define THREADS 4
#define ENTRIES_MOST 20000

static struct enclave enclave;
static uint64_t turns, wanted;
static bool armed;
static uint64_t told; /* all threads, together */
static volatile int ticks;
static sigset_t alarm_only;

static struct enclave build_notified(const struct image *image, uint64_t attributes)
{
	struct enclave built = {
		.fd = open_device(),
		.base = reserve(image->size),
		.size = image->size,
		.image = image,
	};
	struct secs secs = enclave_secs(&built, attributes);

	if (create(built.fd, &secs) || add_segments(built.fd, image))
		fail("building an enclave with AEX-Notify");
	if (init(built.fd, sigstruct))
		fail("SGX_IOC_ENCLAVE_INIT");
	if (map_segments(&built))
		fail("mapping the enclave");
	return built;
}

static struct op counts_of(int thread)
{
	struct op op = { .code = NOTIFY_COUNTS };

	CHECK("the enclave tells its counts", do_op(&enclave, thread, &op));
	return op;
}

static void tick(int number, siginfo_t *info, void *context)
{
	ticks++;
}

/* Of the turns, in all four places, and the carry flag. */
static bool right(const struct op *op)
{
	uint64_t sum = op->a * (op->a + 1) / 2;

	return op->out[0] == sum && op->out[1] == sum && op->out[2] == sum && op->out[3] == sum &&
	       (op->out[4] & 0xff) == 1;
}

struct result {
	uint64_t index, entries, wrong, notified;
};

static void *work(void *argument)
{
	struct result *result = argument;
	struct op arm = { .code = NOTIFY_ARM }, counts = { .code = NOTIFY_COUNTS };
	uint64_t index = result->index, done = 0;

	pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
	if (armed && !do_op(&enclave, index, &arm))
		result->wrong++;
	while (done < wanted && result->entries < ENTRIES_MOST) {
		struct op op = { .code = NOTIFY_LOOP, .a = turns };

		if (!do_op(&enclave, index, &op) || !right(&op))
			result->wrong++;
		result->entries++;
		if (!do_op(&enclave, index, &counts))
			result->wrong++;
		done = __atomic_add_fetch(&told, counts.out[0] - result->notified, __ATOMIC_RELAXED);
		result->notified = counts.out[0];
		if (!armed)
			done = result->entries;
	}
	return NULL;
}

static void in_threads(void)
{
	struct result results[THREADS] = { 0 };
	pthread_t threads[THREADS];

	/* The signals are for the threads, which are inside: not for this one, which waits for them. */
	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm_only, NULL);
	for (int i = 0; i < THREADS; i++) {
		results[i].index = i;
		if (pthread_create(&threads[i], NULL, work, &results[i]))
			fail("pthread_create");
	}
	for (int i = 0; i < THREADS; i++) {
		const struct result *result = &results[i];

		pthread_join(threads[i], NULL);
		check(!result->wrong, "every sum is right", "thread %d: %lu of %lu entries wrong", i,
		      result->wrong, result->entries);
	}
	if (armed)
		check(told >= wanted, "they were told", "%lu times", told);
	else
		check_equal("they were never told", told, 0);
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
}

/* An exception is an exit as well: the handler sees what it was, and goes on behind it. */
static void skipped_by_the_handler(void)
{
	struct op op = { .code = NOTIFY_UD2 }, arm = { .code = NOTIFY_ARM };
	struct sgx_enclave_run run;
	uint64_t before;

	CHECK("armed", do_op(&enclave, 0, &arm));
	before = counts_of(0).out[1];
	CHECK("UD2 comes back from the vDSO", enter(&run, tcs(&enclave, 0), &op) == 0);
	check_equal("as an exception of what is inside", run.function, ERESUME);
	check_equal("its vector", run.exception_vector, VECTOR_UD);
	CHECK("ERESUME", call_vdso(0, 0, 0, ERESUME, 0, 0, &run) == 0);
	check_equal("the enclave leaves by itself", run.function, EEXIT);
	check_equal("having gone on behind the UD2", op.out[0], 1);
	check_equal("because the handler skipped it", counts_of(0).out[1], before + 1);
}

static void edeccssa_without_a_frame(void)
{
	struct op op = { .code = NOTIFY_LEAF, .a = EDECCSSA };
	struct sgx_enclave_run run;

	CHECK("EDECCSSA on CSSA 0", enter(&run, tcs(&enclave, 1), &op) == 0);
	check_equal("is an exception inside", run.function, ERESUME);
	check_equal("#GP", run.exception_vector, VECTOR_GP);
}

/* Where the processor has it not, the handler goes on behind it, as the Intel SDK's does. */
static void verify_report2(void)
{
	struct op op = { .code = NOTIFY_LEAF, .a = EVERIFYREPORT2 }, arm = { .code = NOTIFY_ARM };
	struct sgx_enclave_run run;

	CHECK("armed", do_op(&enclave, 0, &arm));
	CHECK("EVERIFYREPORT2", enter(&run, tcs(&enclave, 0), &op) == 0);
	if (turns == SKIPPED_LEAF) {
		check_equal("is an exception inside", run.function, ERESUME);
		check_equal("#GP", run.exception_vector, VECTOR_GP);
		CHECK("ERESUME", call_vdso(0, 0, 0, ERESUME, 0, 0, &run) == 0);
	}
	check_equal("the enclave leaves by itself", run.function, EEXIT);
	check_equal("RAX", op.out[0], turns);
	check_equal("ZF tells an error", op.out[1], 1);
}

static void flags_must_agree(void)
{
	struct op op = { .code = NOTIFY_ARM };
	struct enclave other = build_notified(&the_image, 0);
	struct sgx_enclave_run run;

	CHECK("a TCS that wants to be told, in an enclave that is not", enter(&run, tcs(&other, 0), &op) == 0);
	check_equal("is not entered", run.function, EENTER);
	check_equal("with #GP", run.exception_vector, VECTOR_GP);
}

static void storm_of_signals(void)
{
	static const struct itimerval every_ms = { { 0, 1000 }, { 0, 1000 } };

	handle(SIGALRM, tick);
	setitimer(ITIMER_REAL, &every_ms, NULL);
	in_threads();
	CHECK("the handler ran", ticks > 0);
}

int main(int argc, char **argv)
{
	const char *what = argc > 3 ? argv[3] : "";

	begin(argc, argv);
	if (argc > 5) {
		turns = strtoul(argv[4], NULL, 0);
		wanted = strtoul(argv[5], NULL, 0);
	}
	enclave = build_notified(&the_image, ATTRIBUTE_AEXNOTIFY);
	armed = strcmp(what, "unarmed");
	if (!strcmp(what, "once")) {
		skipped_by_the_handler();
		edeccssa_without_a_frame();
		flags_must_agree();
	} else if (!strcmp(what, "report2")) {
		verify_report2();
	} else if (!strcmp(what, "signals")) {
		storm_of_signals();
	} else {
		in_threads();
	}
	return finish();
}
