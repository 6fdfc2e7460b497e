/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave whose memory is larger than the EPC does what is asked, and every answer is right.
 *
 *     pressure ENCLAVE SIGSTRUCT BYTES WHAT
 *
 * BYTES of the enclave's heap are used. WHAT is
 *     walk     fill all of it, then hash it, twice
 *     sort     fill a half of it and sort that, with the other half as scratch
 *     threads  four threads fill and hash a quarter each, twice over
 *     mprotect fill and hash an eighth, while another thread takes writing away and gives it back
 *     fork     fill; parent and child then hash all of it at the same time, the child writes, too
 */
#include "host.h"

#define THREADS 4

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

static bool run(int tcs, struct op *op)
{
	return do_op(&enclave, tcs, op);
}

static bool fill(int tcs, uint64_t at, uint64_t length, uint64_t seed)
{
	struct op op = { .code = OP_FILL, .a = at, .b = length, .c = seed };

	return run(tcs, &op);
}

static bool is_filled(int tcs, uint64_t at, uint64_t length, uint64_t seed)
{
	struct op op = { .code = OP_HASH, .a = at, .b = length };
	uint64_t hash, sum;

	expect(length, seed, &hash, &sum);
	return run(tcs, &op) && op.out[0] == hash && op.out[1] == sum;
}

static void walk(void)
{
	CHECK("filled", fill(0, heap, bytes, 1));
	CHECK("hashed", is_filled(0, heap, bytes, 1));
	CHECK("hashed again", is_filled(0, heap, bytes, 1));
}

static int by_value(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

static void sort(void)
{
	uint64_t count = bytes / 2 / 8, hash = 0, word = 7;
	uint64_t *sorted = malloc(count * 8);
	struct op op = { .code = OP_SORT, .a = heap, .b = count * 8 };

	for (uint64_t i = 0; i < count; i++)
		sorted[i] = word = next_word(word);
	qsort(sorted, count, 8, by_value);
	for (uint64_t i = 0; i < count; i++)
		hash = mix_word(hash, sorted[i]);
	CHECK("filled", fill(0, heap, count * 8, 7));
	CHECK("sorted", run(0, &op));
	op = (struct op){ .code = OP_HASH, .a = heap, .b = count * 8 };
	CHECK("hashed", run(0, &op));
	check_equal("in order", op.out[0], hash);
}

static void *in_thread(void *argument)
{
	uintptr_t index = (uintptr_t)argument, wrong = 0;
	uint64_t length = bytes / THREADS / PAGE * PAGE, at = heap + index * length;

	for (int turn = 0; turn < 2; turn++) {
		uint64_t seed = index * 100 + turn;

		wrong += !fill(index, at, length, seed);
		wrong += !is_filled(index, at, length, seed);
	}
	return (void *)wrong;
}

static void threads(void)
{
	pthread_t thread[THREADS];
	void *wrong;

	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&thread[i], NULL, in_thread, (void *)i))
			fail("pthread_create");
	for (int i = 0; i < THREADS; i++) {
		char name[20];

		pthread_join(thread[i], &wrong);
		snprintf(name, sizeof(name), "thread %d", i);
		check(!wrong, name, "%lu wrong", (unsigned long)wrong);
	}
}

static void both(void)
{
	int status;
	pid_t child;

	CHECK("filled", fill(0, heap, bytes, 3));
	child = fork();
	if (!child) {
		bool right = is_filled(1, heap, bytes, 3) && fill(1, heap, bytes / 2, 4) &&
			     is_filled(1, heap, bytes / 2, 4);

		_exit(!right);
	}
	/* The half that the child does not write. */
	struct op op = { .code = OP_HASH, .a = heap + bytes / 2, .b = bytes / 2 };
	struct op again = op;

	CHECK("hashed", run(0, &op));
	CHECK("hashed again", run(0, &again));
	check_equal("the same both times", again.out[0], op.out[0]);
	waitpid(child, &status, 0);
	check_equal("the child's answers", status, 0);
	CHECK("the child's half", is_filled(0, heap, bytes / 2, 4));
	CHECK("the other half", run(0, &again));
	check_equal("still the same", again.out[0], op.out[0]);
}

static volatile bool enough;

static void *protecting(void *argument)
{
	while (!enough)
		if (mprotect((void *)heap, bytes, PROT_READ) ||
		    mprotect((void *)heap, bytes, PROT_READ | PROT_WRITE))
			fail("mprotect");
	return NULL;
}

static void while_protected(void)
{
	pthread_t thread;

	bytes /= 8;
	CHECK("filled", fill(0, heap, bytes, 1));
	if (pthread_create(&thread, NULL, protecting, NULL))
		fail("pthread_create");
	for (int i = 0; i < 12; i++)
		CHECK("hashed while it is protected", is_filled(0, heap, bytes, 1));
	enough = true;
	pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc < 5)
		fail("usage: pressure ENCLAVE SIGSTRUCT BYTES WHAT");
	bytes = strtoul(argv[3], NULL, 0);
	enclave = build(&the_image);
	heap = at_symbol(&enclave, "heap_begin");
	if (!strcmp(argv[4], "walk"))
		walk();
	else if (!strcmp(argv[4], "sort"))
		sort();
	else if (!strcmp(argv[4], "threads"))
		threads();
	else if (!strcmp(argv[4], "mprotect"))
		while_protected();
	else if (!strcmp(argv[4], "fork"))
		both();
	else
		fail("%s is nothing that can be asked", argv[4]);
	return finish();
}
