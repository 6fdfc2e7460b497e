/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads whose pages come, change and go while the EPC has room for a part of them only.
 *
 *     sgx2_pressure ENCLAVE SIGSTRUCT ROUNDS PAGES
 *
 * Each of four threads does so many rounds, or rounds for $SECONDS, on PAGES of its own; before the
 * enclave there is a hole of at least 4 MiB. In a round every page is added, by EACCEPT or by a
 * touch, filled, read back, restricted, extended, trimmed and removed: what a thread has written
 * must be there until it has removed it, and what it may not do must fault.
 */
#include "host.h"

#include <time.h>

#include "sgx2.h"

#define THREADS 4
#define PRESENT (SECINFO_REG | SECINFO_R)

static struct enclave enclave;
static uint64_t pages;
static int rounds, seconds;
static time_t began;
static uint64_t done;

struct worker {
	pthread_t thread;
	int index;
	uint64_t at, seed;
	const char *wrong;
	struct sgx_enclave_run run; /* of the last entry, and what it has answered */
	uint64_t code;
};

static bool does(struct worker *me, struct op *op)
{
	int result = enter(&me->run, tcs(&enclave, me->index), op);

	me->code = op->out[0];
	return !result && me->run.function == EEXIT;
}

static bool fills(struct worker *me, uint64_t page)
{
	struct op op = { .code = OP_FILL, .a = me->at + page * PAGE, .b = PAGE,
			 .c = me->seed + page };

	return does(me, &op);
}

/* What a page that was filled so has, read by the enclave. */
static bool is_filled(struct worker *me, uint64_t page)
{
	struct op op = { .code = OP_HASH, .a = me->at + page * PAGE, .b = PAGE };
	uint64_t word = me->seed + page, hash = 0;

	for (uint64_t i = 0; i < PAGE / 8; i++) {
		word = next_word(word);
		hash = mix_word(hash, word);
	}
	return does(me, &op) && op.out[0] == hash;
}

static bool is_zero(struct worker *me, uint64_t page)
{
	struct op op = { .code = OP_HASH, .a = me->at + page * PAGE, .b = PAGE };
	uint64_t hash = 0;

	for (uint64_t i = 0; i < PAGE / 8; i++)
		hash = mix_word(hash, 0);
	return does(me, &op) && op.out[0] == hash && !op.out[1];
}

static bool accepts(struct worker *me, uint64_t flags)
{
	struct op op = { .code = OP_EACCEPT_RANGE, .a = me->at, .b = flags, .c = pages * PAGE };

	return does(me, &op) && !op.out[0];
}

static bool extends(struct worker *me, uint64_t page)
{
	struct op op = { .code = OP_EMODPE, .a = me->at + page * PAGE, .b = SECINFO_R | SECINFO_W };

	return does(me, &op);
}

/* What is wrong, or NULL. */
static const char *one_round(struct worker *me, uint64_t round)
{
	uint64_t at = me->at;

	me->seed = round << 32 | (uint64_t)me->index << 24;
	for (uint64_t i = round % 3; i < pages; i += 3)
		if (touch(&enclave, me->index, OP_WRITE, at + i * PAGE) != PFEC_SGX_WRITE)
			return "a write to what is not accepted";
	if (!accepts(me, AUGMENTED))
		return "EACCEPT of new pages";
	for (uint64_t i = 0; i < pages; i += 7)
		if (!is_zero(me, i))
			return "a new page is not zero";
	for (uint64_t i = 0; i < pages; i++)
		if (!fills(me, i))
			return "filling";
	for (uint64_t i = 0; i < pages; i++)
		if (!is_filled(me, pages - 1 - i))
			return "what was written";
	if (restrict_pages(&enclave, at, pages * PAGE, SECINFO_R))
		return "RESTRICT_PERMISSIONS";
	if (!accepts(me, PRESENT | SECINFO_PR))
		return "EACCEPT of restricted pages";
	for (uint64_t i = round % 5; i < pages; i += 5)
		if (touch(&enclave, me->index, OP_WRITE, at + i * PAGE) != PFEC_SGX_WRITE)
			return "a write to a restricted page";
	for (uint64_t i = 0; i < pages; i++)
		if (!is_filled(me, i))
			return "what was written, restricted";
	for (uint64_t i = 0; i < pages; i += 2)
		if (!extends(me, i))
			return "EMODPE";
	me->seed++;
	for (uint64_t i = 0; i < pages; i += 2)
		if (!fills(me, i) || !is_filled(me, i))
			return "filling what was extended";
	for (uint64_t i = 1; i < pages; i += 10)
		if (touch(&enclave, me->index, OP_WRITE, at + i * PAGE) != PFEC_SGX_WRITE)
			return "a write to what was not extended";
	for (uint64_t i = 0; i < pages; i += 2)
		if (!is_filled(me, i))
			return "what was written, extended";
	if (modify_pages(&enclave, at, pages * PAGE, PT_TRIM))
		return "MODIFY_TYPES";
	for (uint64_t i = round % 4; i < pages; i += 4)
		if (touch(&enclave, me->index, OP_READ, at + i * PAGE) != PFEC_SGX_READ)
			return "a read of a TRIM page";
	if (!accepts(me, SECINFO_TRIM | SECINFO_MODIFIED))
		return "EACCEPT of TRIM pages";
	if (remove_pages(&enclave, at, pages * PAGE))
		return "REMOVE_PAGES";
	return NULL;
}

static void *work(void *argument)
{
	struct worker *me = argument;

	for (int round = 1; seconds ? time(NULL) < began + seconds : round <= rounds; round++) {
		me->wrong = one_round(me, round);
		if (me->wrong)
			break;
		__atomic_add_fetch(&done, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct worker workers[THREADS] = {};

	begin(argc, argv);
	if (argc < 5)
		fail("usage: %s ENCLAVE SIGSTRUCT ROUNDS PAGES", argv[0]);
	rounds = atoi(argv[3]);
	pages = strtoul(argv[4], NULL, 0);
	seconds = getenv("SECONDS") ? atoi(getenv("SECONDS")) : 0;
	enclave = build(&the_image);
	began = time(NULL);
	for (int i = 0; i < THREADS; i++) {
		struct worker *me = &workers[i];

		me->index = i;
		/* Neighbours, so that runs of pages meet. */
		me->at = enclave.base + i * pages * PAGE;
		map_hole(&enclave, me->at, pages * PAGE, PROT_READ | PROT_WRITE);
		if (pthread_create(&me->thread, NULL, work, me))
			fail("pthread_create");
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(workers[i].thread, NULL);
		check(!workers[i].wrong, "every round of a thread",
		      "thread %d: %s; its last entry: function %u, vector %u, error code %#x at %#llx, answer %#lx",
		      i, workers[i].wrong, workers[i].run.function, workers[i].run.exception_vector,
		      workers[i].run.exception_error_code, workers[i].run.exception_addr,
		      workers[i].code);
	}
	check(done >= THREADS, "rounds", "%lu", done);
	dprintf(1, "rounds %lu\n", done);
	return finish();
}
